# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.
"""An attestation server in this process, on a database of its own."""

import io
import json
import pathlib
import shutil
from datetime import UTC, datetime
from typing import Any

from mh_attest import authority
from mh_attest import conf as conf_module
from mh_attest.db import engine as db_engine
from mh_attest.db import migration, tokens
from mh_attest.deploy import Application, deploy
from mh_core.encoding import b64u
from mh_core.errors import Unavailable
from mh_core.secret import Secret
from tests.unit.mh_attest.host import Maker, SoftHost

ISSUER = "https://attest.test"
ROLES = ("operator", "reader", "relying")
TOKENS = {role: b64u(bytes([n]) * 32) for n, role in enumerate(ROLES, 1)}

CONFIG = """
[authority]
issuer = {issuer}
state_dir = {folder}/state
[database]
connection = sqlite:///{folder}/attest.sqlite
[enrolment]
ek_ca_dir = {folder}/ek-ca
listener_networks = 127.0.0.0/8
"""


def template(folder: pathlib.Path) -> pathlib.Path:
    """Schema, keys and tokens, to be copied for each world."""
    authority.create(folder / "state", datetime.now(UTC))
    path = write_config(folder)
    conf = conf_module.load([str(path)])
    engine = db_engine.connect(conf)
    migration.sync(engine)
    with engine.begin() as connection:
        for role, token in TOKENS.items():
            digest = tokens.digest(Secret(token.encode()))
            tokens.create(connection, role, (role,), digest, 0)
    engine.dispose()
    return folder


def write_config(folder: pathlib.Path, more: str = "") -> pathlib.Path:
    path = folder / "mh-attest.conf"
    path.write_text(CONFIG.format(issuer=ISSUER, folder=folder) + more)
    return path


class World:
    """A server, and hosts by the address of their listener."""

    def __init__(
        self, made: pathlib.Path, folder: pathlib.Path, more: str = ""
    ) -> None:
        shutil.copytree(made, folder, dirs_exist_ok=True)
        (folder / "ek-ca").mkdir(exist_ok=True)
        self.folder = folder
        self.maker = Maker()
        (folder / "ek-ca" / "maker.pem").write_text(self.maker.pem)
        self.config = write_config(folder, more)
        self.conf = conf_module.load([str(self.config)])
        self.app: Application = deploy(self.conf)
        self.service = self.app.service
        self.now = 1_800_000_000.0
        self.hosts: dict[str, SoftHost] = {}
        self.service.listener = self._listener  # type: ignore[method-assign,assignment]

    def _listener(self, url: str, pin: Any, timeout: float) -> SoftHost:
        if url not in self.hosts:
            raise Unavailable("attest.listener.silent", "no such listener")
        return self.hosts[url]

    def stop_clock(self) -> None:
        """From now on the server's time is :attr:`now`."""
        self.now = self.service.clock()
        self.service.clock = lambda: self.now

    def host(self, name: str = "node1", **kwargs: Any) -> SoftHost:
        """A host that is there, and not enrolled."""
        host = SoftHost(self.maker, name, **kwargs)
        self.hosts[f"https://127.0.0.1:{15000 + len(self.hosts)}"] = host
        return host

    def address(self, host: SoftHost) -> str:
        return next(url for url, one in self.hosts.items() if one is host)

    def enrol(
        self, host: SoftHost, status: int = 201, /, **changes: Any
    ) -> dict[str, Any]:
        body = {
            "host": host.tpm.host,
            "listener": self.address(host),
            "listener_sha256": None,
            "ek_sha256": host.ek_sha256,
            "group": "default",
            "tags": {},
            "learn": True,
            **changes,
        }
        return self.call("POST", "/v1/hosts", body, "operator", status)

    def enrolled(self, name: str = "node1", **kwargs: Any) -> SoftHost:
        host = self.host(name, **kwargs)
        self.enrol(host)
        return host

    def trust(self, *names: str) -> dict[str, Any]:
        body = {"hosts": list(names)}
        answer = self.call("POST", "/v1/hosts/trust", body, "reader", 200)
        return dict(answer["hosts"])

    def audit(self) -> list[dict[str, Any]]:
        answer = self.call("GET", "/v1/audit", None, "operator", 200)
        return list(answer["records"])

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        role: str | None = None,
        status: int | None = None,
    ) -> dict[str, Any]:
        data = b"" if body is None else json.dumps(body).encode()
        code, document = self.raw(method, path, data, role)
        assert status in (None, code), (code, document)
        return document

    def raw(
        self, method: str, path: str, data: bytes, role: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """One request through the WSGI interface: status and document."""
        path, _mark, query = path.partition("?")
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "0",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_LENGTH": str(len(data)),
            "wsgi.input": io.BytesIO(data),
            "wsgi.errors": io.StringIO(),
            "wsgi.url_scheme": "https",
            "wsgi.version": (1, 0),
        }
        if role is not None:
            token = TOKENS.get(role, role)
            environ["HTTP_AUTHORIZATION"] = f"Bearer {token}"
        seen: list[Any] = []
        body = b"".join(self.app(environ, lambda *args: seen.append(args)))
        status, headers = seen[0][0], dict(seen[0][1])
        lower = {name.lower(): value for name, value in headers.items()}
        self.headers = lower
        assert lower["x-request-id"].startswith("req-")
        return int(status[:3]), json.loads(body) if body else {}

    def close(self) -> None:
        self.app.close()
