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
"""Enrolment and appraisal of a host with a real TPM, over real TLS.

The host is swtpm and the product's own trust agent; the attestation server
is its own process.
"""

import hashlib
import os
import pathlib
import secrets
import time
from collections.abc import Iterator

import pytest

from mh_core.encoding import b64u
from mh_core.evidence import Evidence
from mh_core.request import KeyRequest
from mh_core.result import AttestationResult
from mh_core.tpm import eventlog
from mh_core.tpm.ekcert import fingerprint, load_certificate
from mh_core.tpm.public import Public
from mh_nova.agent.listener import Listener, ListenerOptions
from mh_nova.agent.prover import Prover
from mh_nova.agent.tpm import Tpm
from tests.fixture.softtpm import key_request
from tests.fixture.swtpm import Swtpm
from tests.functional.mh_attest.server import Server
from tests.unit.mh_attest.host import Maker, log_of

HOST_ID = "5a4f7f0e-6a55-4f0e-8c3c-d2c6f1c9a005"
KEY_URL = "https://kms.test/data-encryption-key/request/1"


class Node:
    """A machine: TPM, event log, trust agent."""

    def __init__(self, folder: pathlib.Path, server: Server) -> None:
        self.folder = folder
        self.machine = Swtpm(folder)
        self.machine.manufacture()
        self.machine.start()
        self.leaf = server.tls.issue("node1")
        self.pending: dict[str, KeyRequest] = {}
        log = folder / "log"
        log.write_bytes(log_of())
        for event in eventlog.parse(log.read_bytes()):
            self.machine.extend(event.pcr, event.digests[0x0B])
        prover = Prover(
            Tpm(self.machine.tcti, str(folder / "lock")),
            str(folder),
            str(log),
        )
        self.prover = prover
        self.listener = Listener(
            ListenerOptions(
                host="node1",
                host_id=HOST_ID,
                address=("127.0.0.1", 0),
                certificate_file=str(self.leaf.certificate),
                key_file=str(self.leaf.key),
                ca_file=str(server.tls.ca_file),
                client_sha256=server.client.sha256,
                timeout=5,
            ),
            prover,
            self.pending.get,
        )
        self.listener.start()
        self.url = "https://{}:{}".format(*self.listener.address)

    def ek_sha256(self) -> str:
        identity = self.prover.identity()
        return fingerprint(load_certificate(identity.ek_certificate))

    def stop(self) -> None:
        self.listener.stop()
        self.machine.stop()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("server"))
    one.manage("db", "sync")
    one.start()
    yield one
    assert one.stop() == 0


@pytest.fixture(scope="module")
def node(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    one = Node(tmp_path_factory.mktemp("node"), server)
    yield one
    one.stop()


def test_the_whole_life_of_a_host(server: Server, node: Node) -> None:
    """One TPM through all of it: manufacture is slow, order matters."""
    body = {
        "host": "node1",
        "listener": node.url,
        "listener_sha256": node.leaf.sha256,
        "ek_sha256": node.ek_sha256(),
        "group": "default",
        "tags": {"geo": "eu-1"},
        "learn": True,
    }

    def refused(status: int = 403, **changes: object) -> str:
        answer = server.call(
            "POST", "/v1/hosts", {**body, **changes}, "operator", status
        )
        assert answer["error"]["audit"]
        return str(answer["error"]["event"])

    # a foreign manufacturer
    ca = server.folder / "ek-ca"
    (ca / "foreign.pem").write_text(Maker("foreign").pem)
    assert refused() == "attest.enrol.ek-certificate"
    for path in (node.machine.root, node.machine.issuer):
        (ca / path.name).write_bytes(path.read_bytes())
    # not in the inventory; another name; another listener certificate
    assert refused(ek_sha256="00" * 32) == "attest.enrol.inventory"
    assert refused(host="node2") == "attest.enrol.host"
    assert refused(listener_sha256="00" * 32) == (
        "attest.listener.certificate"
    )
    assert refused(503, listener="https://127.0.0.1:1") == (
        "attest.listener.silent"
    )
    assert server.call("GET", "/v1/hosts", None, "reader") == {"hosts": []}
    # the real thing
    document = server.call("POST", "/v1/hosts", body, "operator", 201)
    assert (document["host_id"], document["level"]) == (HOST_ID, "trusted")
    _released(server, node)
    _compat(server, node)
    trust = server.call(
        "POST", "/v1/hosts/trust", {"hosts": ["node1"]}, "reader", 200
    )
    assert trust["hosts"]["node1"]["level"] == "trusted"
    assert trust["hosts"]["node1"]["tags"] == {"geo": "eu-1"}
    # one measurement more
    node.machine.extend(4, hashlib.sha256(b"evil").digest())
    nonce, digest = os.urandom(32), os.urandom(32)
    answer = server.call(
        "POST",
        "/v1/appraisals",
        _request(node, nonce, digest),
        "relying",
        403,
    )
    assert answer["error"]["event"] == "attest.appraise.event-log"
    assert "PCR 4:" in answer["error"]["message"]
    assert "host-policy" not in answer["error"]["event"]
    # and the trust state follows within max_age
    time.sleep(2.1)
    trust = server.call(
        "POST", "/v1/hosts/trust", {"hosts": ["node1"]}, "reader", 200
    )
    assert trust["hosts"]["node1"]["level"] == "untrusted"
    assert trust["hosts"]["node1"]["event"] == "attest.appraise.event-log"
    # the audit chain has it all
    server.manage("audit", "verify")


def _request(node: Node, nonce: bytes, digest: bytes) -> dict[str, object]:
    return {
        "nonce": b64u(nonce),
        "audience": "https://kms.test",
        "request_digest": digest.hex(),
        "evidence": node.prover.release_evidence(nonce, digest).to_dict(),
    }


def _released(server: Server, node: Node) -> None:
    nonce, digest = secrets.token_bytes(32), secrets.token_bytes(32)
    body = _request(node, nonce, digest)
    answer = server.call("POST", "/v1/appraisals", body, "relying", 200)
    _verify(server, answer["result"], body["evidence"], nonce, digest)


def _compat(server: Server, node: Node) -> None:
    nonce = secrets.token_bytes(32)
    ask = {
        "nonce": b64u(nonce),
        "audience": "https://kms.test",
        "key_url": KEY_URL,
        "ak_pem": node.prover.ak_pem(),
    }
    answer = server.call("POST", "/v1/compat/appraisals", ask, "relying", 404)
    assert answer["error"]["event"] == "agent.compat.nothing-pending"
    request = key_request(
        "5a4f7f0e-6a55-4f0e-8c3c-d2c6f1c9a001", "https://kms.test"
    )
    node.pending[KEY_URL] = request
    answer = server.call("POST", "/v1/compat/appraisals", ask, "relying", 200)
    assert answer["request"] == request.to_dict()
    _verify(
        server,
        answer["result"],
        answer["evidence"],
        nonce,
        request.digest(),
    )


def _verify(
    server: Server, token: str, evidence: object, nonce: bytes, digest: bytes
) -> None:
    root = server.call("GET", "/v1")
    bind = Public.parse(Evidence.parse(evidence).bind_public)
    AttestationResult.verify(
        token,
        root["jwk"],
        issuer=root["issuer"],
        audience="https://kms.test",
        nonce=nonce,
        request_digest=digest,
        bind_jwk=bind.jwk(),
        now=int(time.time()),
    )
