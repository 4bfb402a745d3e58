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
"""Our two servers as processes of their own, and a stand-in for Glance."""

import hashlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fixture.tls import Authority, Leaf

_KMS = """\
[DEFAULT]
use_stderr = true
[kms]
origin = {url}
[database]
connection = sqlite:///{folder}/kms.sqlite
[software_key_store]
kek_file = {folder}/kek
[server]
bind_host = 127.0.0.1
bind_port = {port}
certificate_file = {leaf.certificate}
key_file = {leaf.key}
"""

_ATTEST = """\
[DEFAULT]
use_stderr = true
[api]
bind_host = 127.0.0.1
bind_port = {port}
certificate_file = {leaf.certificate}
key_file = {leaf.key}
[authority]
issuer = {url}
state_dir = {folder}
[database]
connection = sqlite:///{folder}/attest.sqlite
[enrolment]
ek_ca_dir = {folder}/ek-ca
listener_networks = 127.0.0.0/8
[listener_client]
certificate_file = {leaf.certificate}
key_file = {leaf.key}
ca_file = {ca}
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Service:
    """``mh-kms`` or ``mh-attest``, with its manage command."""

    def __init__(
        self, name: str, text: str, tls: Authority, leaf: Leaf, folder: Path
    ) -> None:
        self.name = name
        self.folder = folder
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        (folder / "ek-ca").mkdir(parents=True)
        folder.chmod(0o700)
        self.conf = folder / f"{name}.conf"
        self.conf.write_text(
            text.format(
                url=self.url,
                folder=folder,
                port=self.port,
                leaf=leaf,
                ca=tls.ca_file,
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def _tool(self, tool: str) -> list[str]:
        where = Path(sys.executable).parent / f"{self.name}-{tool}"
        return [str(where), "--config-file", str(self.conf)]

    def manage(self, *words: str) -> str:
        done = subprocess.run(
            [*self._tool("manage"), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> None:
        self._log = (self.folder / "log").open("wb")
        self._process = subprocess.Popen(
            self._tool("serve"), stdout=self._log, stderr=self._log
        )
        end = time.monotonic() + 30
        while time.monotonic() < end and self._process.poll() is None:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._log.close()


def kms(tls: Authority, leaf: Leaf, folder: Path) -> Service:
    return Service("mh-kms", _KMS, tls, leaf, folder)


def attest(tls: Authority, leaf: Leaf, folder: Path) -> Service:
    return Service("mh-attest", _ATTEST, tls, leaf, folder)


class Glance:
    """As much of Glance's v2 API as an upload needs, over real HTTP."""

    def __init__(self) -> None:
        self.images: dict[str, dict[str, Any]] = {}
        self.data: dict[str, bytes] = {}
        self.fail = ""
        outer = self

        class Handle(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536

            def _serve(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size)
                path, _, query = self.path.partition("?")
                status, answer = outer.answer(
                    self.command, path.strip("/").split("/"), query, body
                )
                data = b"" if answer is None else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = _serve

            def log_message(self, *words: Any) -> None:
                return

        self._httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handle)
        self._thread = threading.Thread(
            target=self._httpd.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._httpd.server_address[1]}"

    def close(self) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join()

    def answer(
        self, method: str, path: Sequence[str], query: str, body: bytes
    ) -> tuple[int, Any]:
        if path == [""]:
            return 300, self._versions()
        if path[0] == "v2":
            path = path[1:]
        if method == "POST":
            made = {**json.loads(body), "status": "queued"}
            if made["id"] in self.images:
                return 409, {"message": "there"}
            self.images[made["id"]] = made
            return 201, made
        if len(path) == 1:
            name = query.removeprefix("name=")
            found = [i for i in self.images.values() if i["name"] == name]
            return 200, {"images": found}
        image = self.images.get(path[1])
        if image is None:
            return 404, {"message": "no"}
        if method == "PUT":
            if self.fail == "data":
                return 413, {"message": "no room"}
            self._store(image, body)
            return 204, None
        if method == "DELETE":
            del self.images[path[1]]
            return 204, None
        return 200, image

    def _versions(self) -> dict[str, Any]:
        link = {"rel": "self", "href": f"{self.url}/v2/"}
        version = {"id": "v2.9", "status": "CURRENT", "links": [link]}
        return {"versions": [version]}

    def _store(self, image: dict[str, Any], body: bytes) -> None:
        if self.fail == "bytes":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.data[image["id"]] = body
        image |= {
            "status": "active",
            "size": len(body),
            "os_hash_algo": "sha512",
            "os_hash_value": hashlib.sha512(body).hexdigest(),
        }
        if self.fail == "property":
            del image["mh_manifest"]
