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

"""An attestation authority on TLS that says whatever a test wants."""

import http.server
import json
import pathlib
import ssl
import threading
from collections.abc import Callable
from typing import Any

from tests.functional.mh_kms.tls import Ca

#: Path and body of a question to status, headers and body of the answer.
Answer = tuple[int, dict[str, str], bytes]
Script = Callable[[str, dict[str, Any]], Answer]


def say(status: int, document: Any, **headers: str) -> Answer:
    return status, headers, json.dumps(document).encode()


class LyingServer:
    """:param script: decides each answer; may be changed at any time."""

    def __init__(self, ca: Ca, script: Script) -> None:
        self.script = script
        self.seen: list[tuple[str, str, dict[str, Any]]] = []
        self.drop = False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                outer.seen.append(
                    (self.path, self.headers["Authorization"], body)
                )
                status, headers, data = outer.script(self.path, body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                # Without a word: the client believes it stays open.
                self.close_connection = outer.drop

            def log_message(self, format: str, *args: Any) -> None:
                pass

        certificate, key = ca.leaf("authority")
        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), Handler
        )
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True
        )
        port = self._server.server_address[1]
        self.origin = f"https://127.0.0.1:{port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,)
        )
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def token_file(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "attest.token"
    path.touch(0o600)
    path.write_text("mha_relying-party\n")
    return path
