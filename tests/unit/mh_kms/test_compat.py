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

"""The seed's form: a bare AK is posted, everything else is as ever."""

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)

from mh_core.errors import Unavailable, VerificationError
from mh_core.evidence import Evidence
from tests.fixture import softtpm
from tests.unit.mh_kms.world import DEK, ORIGIN, World

FORMS = ["/v1/keys/{}", "/data-encryption-key/request/{}"]


def post(
    world: World, path: str, body: bytes | str, host: str = "x.test"
) -> Any:
    return world.client.simulate_post(path, body=body, headers={"Host": host})


def later(world: World, request: Any) -> tuple[Any, Evidence]:
    """A pending launch; the evidence is made over the server's nonce."""
    return request, replace(
        world.tpm.release_evidence(bytes(32), request), quote_attest=b""
    )


@pytest.fixture
def key(world: World) -> str:
    key_id = str(world.create_key(compat=True)["id"])
    request = world.request(key_id, manifest_digest=world.register(key_id))
    world.attestor.pending = later(world, request)
    return key_id


@pytest.mark.parametrize("form", FORMS)
def test_granted(world: World, key: str, form: str) -> None:
    answer = post(world, form.format(key), world.tpm.ak.pem())
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/jose"
    assert world.attestor.pending is not None
    payload = world.open(answer.text, world.attestor.pending[0])
    assert payload.dek.reveal() == DEK
    assert world.audit(key)[-1]["event"] == "kms.release.granted"
    assert world.attestor.asked[0] == ORIGIN + form.format(key)


def test_url_is_the_one_that_was_asked(world: World, key: str) -> None:
    path = FORMS[0].format(key)
    post(world, path, world.tpm.ak.pem(), host="proxy.test")
    assert world.attestor.asked[0] == "https://proxy.test" + path


def refused(
    world: World,
    key: str,
    body: str,
    event: str,
    detail: str = "",
    status: int = 403,
) -> None:
    answer = post(world, FORMS[1].format(key), body)
    assert answer.status_code == status, answer.text
    assert answer.json["error"]["event"] == event
    record = world.audit(key)[-1]
    assert (record["event"], record["detail"]) == (event, detail)
    assert record["audit"] == answer.json["error"]["audit"]


def test_off_unless_the_key_allows_it(world: World) -> None:
    key_id = world.create_key()["id"]
    refused(world, key_id, world.tpm.ak.pem(), "kms.release.compat")
    assert not world.attestor.asked


def test_evidence_of_another_ak(world: World, key: str) -> None:
    other = softtpm.SoftTpm(world.tpm.enroller)
    refused(world, key, other.ak.pem(), "kms.release.compat")


def test_nothing_pending(world: World, key: str) -> None:
    world.attestor.error = VerificationError(
        "agent.compat.nothing-pending", "refused"
    )
    refused(
        world,
        key,
        world.tpm.ak.pem(),
        "kms.release.attestation",
        "agent.compat.nothing-pending",
    )


def test_authority_down(world: World, key: str) -> None:
    world.attestor.error = Unavailable("kms.authority.silent", "silent")
    refused(
        world,
        key,
        world.tpm.ak.pem(),
        "kms.release.authority",
        "kms.authority.silent",
        503,
    )


def test_evidence_over_another_nonce(world: World, key: str) -> None:
    """The authority replays what the host said some other time."""
    assert world.attestor.pending is not None
    request = world.attestor.pending[0]
    world.attestor.pending = (
        request,
        world.tpm.release_evidence(bytes(32), request),
    )
    refused(
        world,
        key,
        world.tpm.ak.pem(),
        "kms.release.evidence",
        "core.tpm.quote.extra-data",
    )


def test_request_for_another_key(world: World, key: str) -> None:
    other = world.request(world.create_key()["id"])
    world.attestor.pending = later(world, other)
    refused(world, key, world.tpm.ak.pem(), "kms.release.origin")


def test_same_policy(world: World, key: str) -> None:
    assert world.attestor.pending is not None
    request = replace(world.attestor.pending[0], project="another")
    world.attestor.pending = later(world, request)
    refused(world, key, world.tpm.ak.pem(), "kms.release.project")


def test_authority_lies_about_the_result(world: World, key: str) -> None:
    world.attestor.changes = {"nonce": bytes(32)}
    refused(
        world,
        key,
        world.tpm.ak.pem(),
        "kms.release.attestation",
        "core.result.nonce",
    )


_ED = (
    ed25519.Ed25519PrivateKey.generate()
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)
_EC = (
    ec.generate_private_key(ec.SECP256R1())
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)


@pytest.mark.parametrize(
    "body", [b"", b"x", b"{}", _ED, _EC + _EC, _EC + b"\n" * 4096, b"\xff"]
)
def test_bad_bodies(world: World, key: str, body: bytes) -> None:
    before = len(world.audit(key))
    answer = post(world, FORMS[0].format(key), body)
    assert answer.status_code == 400
    assert answer.json["error"]["event"] == "kms.compat.body"
    assert len(world.audit(key)) == before
