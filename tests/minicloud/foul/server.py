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
"""HTTPS on the loopback for servers that lie; one process each."""

import argparse
import contextlib
import http.server
import json
import signal
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

ADDRESS = "127.0.0.1"
#: Longest body read, octets.
LARGEST = 4 * 1024 * 1024


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, document: Any, status: int = 200) -> "Answer":
        return cls(
            status,
            json.dumps(document).encode(),
            {"Content-Type": "application/json"},
        )

    @classmethod
    def error(cls, status: int, event: str) -> "Answer":
        document = {"event": event, "message": "no", "request_id": "-"}
        return cls.json({"error": {**document, "audit": ""}}, status)


class Liar(Protocol):
    """What a server of ours does with a request."""

    def answer(self, request: Request) -> Answer: ...


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: "Server"

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= LARGEST:
            self.send_error(413)
            return
        request = Request(
            self.command,
            self.path,
            dict(self.headers.items()),
            self.rfile.read(length),
        )
        answer = self.server.liar.answer(request)
        self.server.note(request, answer)
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are noted by the server, without bodies."""


class Server(http.server.ThreadingHTTPServer):
    """
    :param port: on 127.0.0.1; 0 for any.
    :param certificate: PEM file, and ``key`` its key.
    :param talk: print a line for each request.
    """

    daemon_threads = True

    def __init__(
        self,
        liar: Liar,
        port: int,
        certificate: Path,
        key: Path,
        *,
        talk: bool = False,
    ) -> None:
        super().__init__((ADDRESS, port), _Handler)
        self.liar = liar
        #: (method, path, status) of each request so far.
        self.seen: list[tuple[str, str, int]] = []
        self._talk = talk
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
        # The handshake is left to the thread of the connection.
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"https://{ADDRESS}:{self.port}"

    def note(self, request: Request, answer: Answer) -> None:
        line = (request.method, request.path, answer.status)
        self.seen.append(line)
        if self._talk:
            print(json.dumps(line), flush=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that goes away, or does not trust us, is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Serve from a thread while the context lasts."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def arguments(prog: str) -> argparse.ArgumentParser:
    """What the command line of every liar has."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--cert", type=Path, required=True, help="TLS certificate, PEM"
    )
    parser.add_argument(
        "--key-file", type=Path, required=True, help="its key, PEM"
    )
    return parser


def serve(liar: Liar, options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    server = Server(
        liar, options.port, options.cert, options.key_file, talk=True
    )

    def end(number: int, frame: object) -> None:
        # shutdown() waits for the loop, which this thread is in
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    server.serve_forever(0.1)
    server.server_close()
    return 0
