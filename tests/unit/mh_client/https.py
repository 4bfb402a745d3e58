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
"""A real HTTPS server on 127.0.0.1 whose answers a test decides."""

import http.server
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mh_client.config import AttestConfig, Config, Endpoint, KmsConfig
from mh_core import jose
from tests.fixture.tls import Authority, Leaf


@dataclass
class Request:
    """What arrived."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Any


Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]
Handler = Callable[[Request], Answer]


def error(event: str, message: str = "no", **more: Any) -> dict[str, Any]:
    return {
        "error": {
            "event": event,
            "message": message,
            "request_id": "req-1",
            "audit": "",
            **more,
        }
    }


class Server:
    """Routes are (method, path) to a function, or to an answer."""

    def __init__(self, leaf: Leaf) -> None:
        self.routes: dict[tuple[str, str], Handler | Answer] = {}
        self.requests: list[Request] = []
        outer = self

        class Handle(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536

            def _serve(self) -> None:
                path, _, query = self.path.partition("?")
                size = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(size)
                request = Request(
                    self.command,
                    path,
                    query,
                    dict(self.headers.items()),
                    json.loads(raw) if raw else None,
                )
                outer.requests.append(request)
                route = outer.routes.get(
                    (self.command, path), (404, error("kms.api.route"))
                )
                answer = route(request) if callable(route) else route
                self._answer(*answer)

            def _answer(
                self,
                status: int,
                body: Any,
                headers: dict[str, str] | None = None,
            ) -> None:
                data = body
                if not isinstance(body, bytes):
                    data = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                try:
                    self.wfile.write(data)
                except OSError:
                    pass

            do_GET = do_POST = do_PUT = do_DELETE = _serve

            def log_message(self, *words: Any) -> None:
                return

        self._httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handle)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(leaf.certificate, leaf.key)
        self._httpd.socket = context.wrap_socket(
            self._httpd.socket, server_side=True
        )
        self._thread = threading.Thread(
            target=self._httpd.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._httpd.server_address[1]}"

    def close(self) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join()


@dataclass
class World:
    """Two servers, and a configuration that points at them."""

    authority: Authority
    kms: Server
    attest: Server
    folder: Path
    transport: jose.Jwk
    result_key: jose.Jwk
    issuer: str = "https://authority.test"
    enroller_sha256: str = ""

    @property
    def endpoint(self) -> Endpoint:
        token = self.folder / "token"
        if not token.exists():
            token.touch(0o600)
            token.write_text("the-token-itself\n")
        return Endpoint(self.kms.url, str(self.authority.ca_file), str(token))

    def config(self, **pins: str) -> Config:
        kms = KmsConfig(self.endpoint, self.transport["kid"])
        attest = AttestConfig(
            Endpoint(
                self.attest.url,
                self.endpoint.ca_file,
                self.endpoint.token_file,
            ),
            **{
                "issuer": self.issuer,
                "jwk_thumbprint": self.result_key["kid"],
                "enroller_sha256": self.enroller_sha256,
                **pins,
            },
        )
        return Config(
            self.folder / "client.toml",
            kms,
            attest,
            self.folder / "signing.jwk",
        )
