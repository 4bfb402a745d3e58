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
"""The listener over real TLS, with a real TPM behind it."""

import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from mh_core.encoding import b64u, unb64u
from mh_core.request import Disk, KeyRequest
from mh_core.tpm.credential import make_credential
from mh_core.tpm.public import Public
from mh_nova.agent.listener import Listener, ListenerOptions
from mh_nova.agent.prover import Prover
from mh_nova.agent.tpm import Tpm
from tests.fixture.swtpm import Swtpm
from tests.fixture.tls import Authority, Leaf

KEY_URL = "https://127.0.0.1:9/v1/keys/1"
REQUEST = KeyRequest(
    key_id="5a4f7f0e-6a55-4f0e-8c3c-d2c6f1c9a001",
    kms_origin="https://127.0.0.1:9",
    purpose="launch",
    instance="5a4f7f0e-6a55-4f0e-8c3c-d2c6f1c9a002",
    project="p",
    user="u",
    host="node1",
    image="5a4f7f0e-6a55-4f0e-8c3c-d2c6f1c9a003",
    manifest_digest="00" * 32,
    disks=(Disk("disk", "5a4f7f0e-6a55-4f0e-8c3c-d2c6f1c9a004"),),
)


class Client:
    """Calls one listener with one client certificate."""

    def __init__(self, listener: Listener, ca: Path, leaf: Leaf) -> None:
        self.base = "https://{}:{}".format(*listener.address)
        self.verify, self.cert = str(ca), (leaf.certificate, leaf.key)

    def __call__(
        self, method: str, path: str, **kwargs: Any
    ) -> requests.Response:
        return requests.request(
            method,
            self.base + path,
            verify=self.verify,
            cert=tuple(map(str, self.cert)),
            timeout=10,
            **kwargs,
        )


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Listener, Authority, Leaf]]:
    folder = tmp_path_factory.mktemp("listener")
    authority = Authority(folder / "tls")
    server, client = authority.issue("server"), authority.issue("client")
    machine = Swtpm(folder)
    machine.manufacture()
    machine.start()
    prover = Prover(Tpm(machine.tcti, str(folder / "lock")), str(folder), "")
    options = ListenerOptions(
        host="node1",
        host_id="5a4f7f0e-6a55-4f0e-8c3c-d2c6f1c9a005",
        address=("127.0.0.1", 0),
        certificate_file=str(server.certificate),
        key_file=str(server.key),
        ca_file=str(authority.ca_file),
        client_sha256=client.sha256,
        timeout=3,
    )
    listener = Listener(options, prover, {KEY_URL: REQUEST}.get)
    listener.start()
    yield listener, authority, client
    listener.stop()
    machine.stop()


@pytest.fixture
def call(served: tuple[Listener, Authority, Leaf]) -> Client:
    listener, authority, client = served
    return Client(listener, authority.ca_file, client)


def test_identity_then_credential(call: Client) -> None:
    identity = call("GET", "/v1/identity").json()
    assert identity["host"] == "node1"
    ek = Public.parse(unb64u(identity["ek_public"]))
    ak = Public.parse(unb64u(identity["ak_public"]))
    secret = secrets.token_bytes(32)
    blob, seed = make_credential(ek, secret, ak.name, secrets.token_bytes)
    answer = call(
        "POST",
        "/v1/activate",
        json={"credential": b64u(blob), "secret": b64u(seed)},
    )
    assert unb64u(answer.json()["credential"]) == secret


def test_another_client_certificate_is_refused(
    served: tuple[Listener, Authority, Leaf],
) -> None:
    """One of the same CA, but not the pinned one."""
    listener, authority, _client = served
    stranger = Client(listener, authority.ca_file, authority.issue("stranger"))
    answer = stranger("GET", "/v1/identity")
    assert answer.status_code == 403
    assert answer.json()["error"]["event"] == "agent.listener.client"


def test_no_client_certificate_no_answer(
    served: tuple[Listener, Authority, Leaf],
) -> None:
    listener, authority, _client = served
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(
            "https://{}:{}/v1/identity".format(*listener.address),
            verify=str(authority.ca_file),
            timeout=10,
        )


@pytest.mark.parametrize(
    ("path", "event"),
    [
        ("/v1/host-quote", "agent.listener.length"),
        ("/nothing", "agent.listener.route"),
    ],
)
def test_a_slow_caller_hears_why_its_body_was_refused(
    call: Client, path: str, event: str
) -> None:
    """The refusal comes before the body; once it was lost with a reset."""

    def body() -> Iterator[bytes]:
        for _ in range(9):
            yield b" " * 100_000
            time.sleep(0.05)

    headers = {"Content-Length": "900000"}
    answer = call("POST", path, data=body(), headers=headers)
    assert answer.json()["error"]["event"] == event


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "event"),
    [
        ("GET", "/nothing", b"", 404, "agent.listener.route"),
        ("POST", "/v1/host-quote", b"[]", 400, "agent.listener.body"),
        ("POST", "/v1/host-quote", b"{", 400, "core.json.syntax"),
        ("POST", "/v1/host-quote", b"{}", 400, "agent.listener.body"),
        (
            "POST",
            "/v1/host-quote",
            b'{"nonce":"AAAA"}',
            400,
            "agent.listener.body",
        ),
        (
            "POST",
            "/v1/host-quote",
            b" " * 70000,
            400,
            "agent.listener.length",
        ),
        (
            "PUT",
            "/v1/certificate",
            b'{"ak_certificate":"x"}',
            400,
            "core.akcert.parse",
        ),
    ],
)
def test_bad_input(
    call: Client,
    method: str,
    path: str,
    body: bytes,
    status: int,
    event: str,
) -> None:
    answer = call(method, path, data=body)
    assert (answer.status_code, answer.json()["error"]["event"]) == (
        status,
        event,
    )


def test_no_quote_without_a_pending_launch(call: Client) -> None:
    body = {"nonce": b64u(bytes(32)), "key_url": KEY_URL + "2"}
    answer = call("POST", "/v1/pending-release", json=body)
    assert answer.status_code == 404
    assert answer.json()["error"]["event"] == "agent.compat.nothing-pending"


def test_not_enrolled_is_said(call: Client) -> None:
    body = {"nonce": b64u(bytes(32)), "key_url": KEY_URL}
    answer = call("POST", "/v1/pending-release", json=body)
    assert answer.status_code == 503
    assert answer.json()["error"]["event"] == "agent.prover.not-enrolled"
