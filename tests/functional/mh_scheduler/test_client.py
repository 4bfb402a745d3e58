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
"""The filter's question, over real TLS, to servers good and bad."""

import http.server
import json
import pathlib
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mh_core.errors import MHError, Unavailable, VerificationError
from mh_scheduler.client import TrustClient
from tests.fixture.tls import Authority

GOOD = {"level": "trusted", "expires_in": 20, "event": "e", "tags": {}}


class Server:
    """An attestation server that says what the test wants."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.tls = Authority(folder / "tls")
        leaf = self.tls.issue("attest")
        self.status, self.body = 200, b""
        self.headers: dict[str, str] = {}
        self.endless = self.drips = False
        self.seen: list[tuple[str, str | None, Any]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                outer.seen.append(
                    (
                        self.path,
                        self.headers["Authorization"],
                        json.loads(self.rfile.read(size)),
                    )
                )
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                length = 1 << 30 if outer.endless else len(outer.body)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                try:
                    if outer.drips:
                        for byte in outer.body:
                            time.sleep(0.2)
                            self.wfile.write(bytes([byte]))
                        return
                    self.wfile.write(outer.body)
                    while outer.endless:
                        self.wfile.write(b" " * 65536)
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), Handler
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(leaf.certificate, leaf.key)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True
        )
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self.token = folder / "token"
        self.token.write_text("the-token\n")
        threading.Thread(
            target=self._server.serve_forever, daemon=True
        ).start()

    def say(self, hosts: Any) -> None:
        self.body = json.dumps({"hosts": hosts}).encode()

    def client(self, **changes: Any) -> TrustClient:
        values: dict[str, Any] = {
            "url": self.url,
            "ca_file": str(self.tls.ca_file),
            "token_file": str(self.token),
        }
        return TrustClient(**{**values, **changes})

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[Server]:
    one = Server(tmp_path)
    yield one
    one.stop()


def refused(
    client: TrustClient, kind: type[MHError], event: str, timeout: float = 5
) -> None:
    with pytest.raises(kind) as caught:
        client.ask(["a"], timeout)
    assert caught.value.event == event
    assert "the-token" not in str(caught.value)


def test_one_question(server: Server) -> None:
    server.say({"a": GOOD, "b": {**GOOD, "level": "unknown"}, "c": GOOD})
    found = server.client().ask(["a", "b"], 5)
    assert {name: one.level for name, one in found.items()} == {
        "a": "trusted",
        "b": "unknown",
    }
    assert server.seen == [
        ("/v1/hosts/trust", "Bearer the-token", {"hosts": ["a", "b"]})
    ]


def test_a_new_token_is_read(server: Server) -> None:
    server.say({})
    client = server.client()
    client.ask(["a"], 5)
    server.token.write_text("another")
    client.ask(["a"], 5)
    assert server.seen[-1][1] == "Bearer another"


@pytest.mark.parametrize("status", [301, 307, 401, 403, 500, 503])
def test_another_status(server: Server, status: int) -> None:
    server.say({"a": GOOD})
    server.status = status
    server.headers = {"Location": server.url + "/v1/hosts/trust"}
    refused(server.client(), Unavailable, "scheduler.client.status")
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"hosts": []}',
        b'{"hosts": {"a": {}}}',
        b'{"hosts": {"a": {"level": "TRUSTED", "expires_in": 1, '
        b'"event": "", "tags": {}}}}',
        b'{"hosts": {"a": {"level": "trusted", "expires_in": 1e9, '
        b'"event": "", "tags": {}}}}',
        b'{"hosts": {"a": {"level": "trusted", "expires_in": -1, '
        b'"event": "", "tags": {}}}}',
        b'{"hosts": {}, "more": 1}',
        b'{"hosts": {}, "hosts": {}}',
    ],
)
def test_bad_answers(server: Server, body: bytes) -> None:
    server.body = body
    refused(server.client(), VerificationError, "scheduler.client.reply")


def test_an_answer_without_end(server: Server) -> None:
    server.endless = True
    refused(server.client(), Unavailable, "scheduler.client.silent")


def test_a_byte_now_and_then(server: Server) -> None:
    """Each is within the timeout, all of them are not."""
    server.say({"a": GOOD})
    server.drips = True
    client = server.client()
    before = time.monotonic()
    refused(client, Unavailable, "scheduler.client.silent", timeout=1)
    assert time.monotonic() - before < 3
    server.drips = False
    assert client.ask(["a"], 5)["a"].level == "trusted"


def test_nobody_there_or_another_ca(
    server: Server, tmp_path: pathlib.Path
) -> None:
    event = "scheduler.client.silent"
    gone = server.client(url="https://127.0.0.1:1")
    refused(gone, Unavailable, event)
    other = Authority(tmp_path / "other")
    stranger = server.client(ca_file=str(other.ca_file))
    refused(stranger, Unavailable, event)
    assert server.seen == []


@pytest.mark.parametrize(
    "changes",
    [
        {"url": None},
        {"url": "http://127.0.0.1:1"},
        {"token_file": None},
        {"token_file": "/nonexistent"},
    ],
)
def test_configuration(server: Server, changes: dict[str, Any]) -> None:
    refused(
        server.client(**changes),
        Unavailable,
        "scheduler.client.configuration",
    )


def test_the_environment_has_no_say(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    server.say({"a": GOOD})
    assert server.client().ask(["a"], 5)["a"].level == "trusted"
