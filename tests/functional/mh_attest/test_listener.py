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
"""Calls to a trust agent over real TLS, to peers that misbehave."""

import json
import pathlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mh_attest.address import Address
from mh_attest.listener import Listener, client_context
from mh_core.errors import MHError, NotFound, Unavailable, VerificationError
from tests.fixture.tls import Authority, Leaf

Behaviour = Callable[[ssl.SSLSocket], None]


class Peer:
    """A TLS server that does to each connection what the test says."""

    def __init__(self, tls: Authority, leaf: Leaf) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(leaf.certificate, leaf.key)
        self._context.load_verify_locations(tls.ca_file)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.behaviour: Behaviour = answer(200, b"{}")
        self.handshake = True
        self.seen: list[bytes] = []
        self._end = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                raw, _peer = self._socket.accept()
            except OSError:
                return
            if not self.handshake:
                self._end.wait(10)
                raw.close()
                continue
            try:
                with self._context.wrap_socket(raw, server_side=True) as sock:
                    sock.settimeout(10)
                    self.seen.append(_request(sock))
                    self.behaviour(sock)
            except OSError:
                pass

    def stop(self) -> None:
        self._end.set()
        self._socket.close()


def _request(sock: ssl.SSLSocket) -> bytes:
    """A whole request: closing with some unread would reset the answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part:
            return data
        data += part
    head, _end, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split()[0])
    while len(body) < length:
        body += sock.recv(65536)
    return data


def answer(status: int, body: bytes, *headers: str) -> Behaviour:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    data = "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def respond(sock: ssl.SSLSocket) -> None:
        sock.sendall(data)

    return respond


@pytest.fixture
def tls(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path / "tls")


@pytest.fixture
def peer(tls: Authority) -> Iterator[Peer]:
    one = Peer(tls, tls.issue("node1"))
    yield one
    one.stop()


def client(
    tls: Authority,
    port: int,
    pin: str | None = None,
    timeout: float = 5,
    host: str = "127.0.0.1",
) -> Listener:
    leaf = tls.issue("attest")
    context = client_context(
        str(leaf.certificate), str(leaf.key), str(tls.ca_file)
    )
    return Listener(Address(host, port, "127.0.0.1"), pin, context, timeout)


def refused(listener: Listener, kind: type[MHError], event: str) -> None:
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        listener.host_quote(bytes(32))
    assert caught.value.event == event
    assert time.monotonic() - started < 6


def test_honest(tls: Authority, peer: Peer) -> None:
    peer.behaviour = answer(200, b'{"evidence":{"a":1}}')
    assert client(tls, peer.port).host_quote(bytes(32)) == {"a": 1}
    assert peer.seen[0].startswith(b"POST /v1/host-quote HTTP/1.1\r\n")


def test_redirect_is_not_followed(tls: Authority, peer: Peer) -> None:
    other = Peer(tls, tls.issue("elsewhere"))
    peer.behaviour = answer(
        307, b"", f"Location: https://127.0.0.1:{other.port}/v1/host-quote"
    )
    refused(
        client(tls, peer.port),
        VerificationError,
        "attest.listener.redirect",
    )
    assert other.seen == []
    other.stop()


def test_another_certificate_of_the_same_ca(
    tls: Authority, tmp_path: pathlib.Path
) -> None:
    enrolled, other = tls.issue("enrolled"), tls.issue("other")
    one = Peer(tls, other)
    refused(
        client(tls, one.port, enrolled.sha256),
        VerificationError,
        "attest.listener.certificate",
    )
    assert one.seen in ([], [b""])  # nothing was said to it
    one.behaviour = answer(200, b'{"evidence":{}}')
    assert client(tls, one.port, other.sha256).host_quote(bytes(32)) == {}
    one.stop()


def test_a_certificate_of_another_ca_or_name(
    tls: Authority, tmp_path: pathlib.Path, peer: Peer
) -> None:
    foreign = Authority(tmp_path / "foreign")
    one = Peer(tls, foreign.issue("node1"))
    event = "attest.listener.certificate"
    refused(client(tls, one.port), VerificationError, event)
    one.stop()
    refused(
        client(tls, peer.port, host="node9.test"), VerificationError, event
    )


def test_nobody_there(tls: Authority) -> None:
    refused(client(tls, 1), Unavailable, "attest.listener.silent")


def test_hanging_before_the_handshake(tls: Authority, peer: Peer) -> None:
    peer.handshake = False
    started = time.monotonic()
    refused(
        client(tls, peer.port, timeout=0.5),
        Unavailable,
        "attest.listener.silent",
    )
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 X\r\nContent-Length"])
def test_dripping(tls: Authority, peer: Peer, first: bytes) -> None:
    """Each byte within a socket's timeout, for ever."""
    stop = threading.Event()

    def drip(sock: ssl.SSLSocket) -> None:
        sock.sendall(first)
        while not stop.wait(0.05):
            sock.sendall(b"x")

    peer.behaviour = drip
    started = time.monotonic()
    refused(
        client(tls, peer.port, timeout=0.5),
        Unavailable,
        "attest.listener.silent",
    )
    assert time.monotonic() - started < 2
    stop.set()


def test_huge_answers(tls: Authority, peer: Peer) -> None:
    def endless(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"HTTP/1.1 200 X\r\nContent-Length: 99999999\r\n\r\n")
        for _part in range(40):
            sock.sendall(b" " * 65536)

    peer.behaviour = endless
    refused(client(tls, peer.port), VerificationError, "attest.listener.size")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"{}",
        b'{"evidence":1}',
        b'{"evidence":{},"more":1}',
        b'{"evidence":{},"evidence":{}}',
    ],
)
def test_bad_documents(tls: Authority, peer: Peer, body: bytes) -> None:
    peer.behaviour = answer(200, body)
    refused(client(tls, peer.port), VerificationError, "attest.listener.reply")


def test_errors_of_the_agent(tls: Authority, peer: Peer) -> None:
    error = {"error": {"event": "agent.tpm.gone", "message": "no"}}
    peer.behaviour = answer(503, json.dumps(error).encode())
    with pytest.raises(VerificationError, match=r"agent\.tpm\.gone"):
        client(tls, peer.port).host_quote(bytes(32))
    error["error"]["event"] = "agent.compat.nothing-pending"
    peer.behaviour = answer(404, json.dumps(error).encode())
    with pytest.raises(NotFound):
        client(tls, peer.port).pending_release(bytes(32), "https://k/1")


def test_not_http(tls: Authority, peer: Peer) -> None:
    peer.behaviour = lambda sock: sock.sendall(b"SSH-2.0-x\r\n" * 10)
    refused(client(tls, peer.port), Unavailable, "attest.listener.silent")
