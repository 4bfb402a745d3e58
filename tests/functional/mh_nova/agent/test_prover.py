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
"""The agent's TPM side against swtpm, judged by mh_core and tpm2-tools."""

import datetime
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mh_core import jose
from mh_core.akcert import issue_ak_certificate
from mh_core.errors import MHError, Unavailable, VerificationError
from mh_core.evidence import Evidence, release_claims, verify_host
from mh_core.tpm.credential import make_credential
from mh_core.tpm.ekcert import verify_ek_certificate
from mh_core.tpm.public import Public
from mh_core.tpm.quote import LABEL_HOST, LABEL_RELEASE, LABEL_VM, extra_data
from mh_nova.agent.prover import Prover
from mh_nova.agent.tpm import Tpm
from tests.fixture.swtpm import Swtpm

HOST_ID = "0b1f6b5e-6f4e-4a6e-9a53-2a3f3f0f1e77"
NONCE = bytes(range(32))
APV = b"\x05" * 32
NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swtpm]:
    machine = Swtpm(tmp_path_factory.mktemp("swtpm"))
    machine.manufacture()
    machine.start()
    yield machine
    machine.stop()


@pytest.fixture(scope="module")
def enroller() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "enroller")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(1))
        .not_valid_after(NOW + datetime.timedelta(30))
        .add_extension(x509.BasicConstraints(True, 0), True)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


@pytest.fixture
def tpm(machine: Swtpm, tmp_path: Path) -> Tpm:
    return Tpm(machine.tcti, str(tmp_path / "lock"))


@pytest.fixture
def prover(
    tpm: Tpm,
    tmp_path: Path,
    enroller: tuple[ec.EllipticCurvePrivateKey, x509.Certificate],
) -> Prover:
    prover = Prover(tpm, str(tmp_path), "")
    prover.set_ak_certificate(
        issue_ak_certificate(
            *enroller,
            tpm.ak(),
            HOST_ID,
            "node1",
            NOW,
            datetime.timedelta(1),
            7,
        )
    )
    return prover


def check(
    evidence: Evidence,
    extra: bytes,
    enroller: tuple[ec.EllipticCurvePrivateKey, x509.Certificate],
) -> Public:
    host = verify_host(evidence, extra=extra, enrollers=[enroller[1]], now=NOW)
    assert host.identity.host == "node1"
    assert host.identity.host_id == HOST_ID
    return host.bind


def test_ek_certificate_chains_to_the_maker(machine: Swtpm, tpm: Tpm) -> None:
    identity = tpm.identity()
    certificate = x509.load_der_x509_certificate(identity.ek_certificate)
    roots = [x509.load_pem_x509_certificate(machine.root.read_bytes())]
    middle = [x509.load_pem_x509_certificate(machine.issuer.read_bytes())]
    ek = Public.parse(identity.ek_public)
    now = datetime.datetime.now(datetime.UTC)
    found = verify_ek_certificate(certificate, ek, middle, roots, now)
    assert found == certificate.fingerprint(hashes.SHA256()).hex()


def test_credential_opens_only_for_ek_and_ak(tpm: Tpm) -> None:
    identity = tpm.identity()
    ek = Public.parse(identity.ek_public)
    ak = Public.parse(identity.ak_public)
    secret = secrets.token_bytes(32)
    made = make_credential(ek, secret, ak.name, secrets.token_bytes)
    assert tpm.activate(*made) == secret
    other = make_credential(
        ek, secret, ak.name[:-1] + b"\0", secrets.token_bytes
    )
    with pytest.raises(VerificationError) as refused:
        tpm.activate(*other)
    assert refused.value.event == "agent.tpm.credential"


def test_evidence_verifies_for_each_purpose(
    prover: Prover,
    enroller: tuple[ec.EllipticCurvePrivateKey, x509.Certificate],
) -> None:
    digest = b"\x07" * 32
    evidence = prover.release_evidence(NONCE, digest)
    bind = Public.parse(evidence.bind_public)
    extra = extra_data(LABEL_RELEASE, NONCE, release_claims(digest, bind))
    check(evidence, extra, enroller)
    with pytest.raises(VerificationError) as refused:
        check(evidence, extra_data(LABEL_HOST, NONCE, bind.name), enroller)
    assert refused.value.event == "core.tpm.quote.extra-data"
    check(
        prover.host_evidence(NONCE),
        extra_data(LABEL_HOST, NONCE, bind.name),
        enroller,
    )
    check(
        prover.vm_evidence(NONCE, digest),
        extra_data(LABEL_VM, NONCE, digest),
        enroller,
    )


def test_evidence_survives_its_json_form(prover: Prover) -> None:
    evidence = prover.host_evidence(NONCE)
    assert Evidence.parse(evidence.to_dict()) == evidence


def test_wrapped_key_opens_only_for_its_request(prover: Prover) -> None:
    bind = Public.parse(prover.host_evidence(NONCE).bind_public)
    token = jose.wrap(b"payload", bind.jwk(), APV)
    assert prover.unwrap(token, APV) == b"payload"
    with pytest.raises(VerificationError) as refused:
        prover.unwrap(token, b"\x06" * 32)
    assert refused.value.event == "core.jose.apv"


def test_wrapped_key_is_dead_after_an_extend(
    machine: Swtpm,
    prover: Prover,
    enroller: tuple[ec.EllipticCurvePrivateKey, x509.Certificate],
) -> None:
    bind = Public.parse(prover.host_evidence(NONCE).bind_public)
    token = jose.wrap(b"payload", bind.jwk(), APV)
    machine.extend(4, b"\xab" * 32)
    with pytest.raises(VerificationError) as refused:
        prover.unwrap(token, APV)
    assert refused.value.event == "agent.tpm.policy"
    # a new bind key shows the new PCR value, and opens under it
    evidence = prover.host_evidence(NONCE)
    again = Public.parse(evidence.bind_public)
    assert again.policy != bind.policy
    check(evidence, extra_data(LABEL_HOST, NONCE, again.name), enroller)
    token = jose.wrap(b"payload", again.jwk(), APV)
    assert prover.unwrap(token, APV) == b"payload"


def test_wrapped_key_is_dead_after_a_reset(
    machine: Swtpm, prover: Prover
) -> None:
    before = prover.host_evidence(NONCE)
    bind = Public.parse(before.bind_public)
    token = jose.wrap(b"payload", bind.jwk(), APV)
    machine.reset()
    with pytest.raises(VerificationError) as refused:
        prover.unwrap(token, APV)
    assert refused.value.event == "agent.tpm.boot"
    after = prover.host_evidence(NONCE)
    assert after.ak_public == before.ak_public
    assert after.bind_public != before.bind_public


def test_bind_key_of_another_boot_is_refused(
    machine: Swtpm,
    prover: Prover,
    enroller: tuple[ec.EllipticCurvePrivateKey, x509.Certificate],
) -> None:
    """A hoarded certification does not pass beside a fresh quote."""
    import dataclasses

    old = prover.host_evidence(NONCE)
    machine.reset()
    new = prover.host_evidence(NONCE)
    mixed = dataclasses.replace(
        new,
        bind_public=old.bind_public,
        bind_attest=old.bind_attest,
        bind_signature=old.bind_signature,
    )
    bind = Public.parse(new.bind_public)
    with pytest.raises(VerificationError) as refused:
        check(mixed, extra_data(LABEL_HOST, NONCE, bind.name), enroller)
    assert refused.value.event == "core.evidence.boot"


def test_not_enrolled_gives_no_evidence(tpm: Tpm, tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as refused:
        Prover(tpm, str(tmp_path), "").host_evidence(NONCE)
    assert refused.value.event == "agent.prover.not-enrolled"


def test_tpm_gone_is_our_error(machine: Swtpm, prover: Prover) -> None:
    machine.stop()
    try:
        with pytest.raises(Unavailable):
            prover.check()
        with pytest.raises(MHError):
            prover.host_evidence(NONCE)
    finally:
        machine.start()
    prover.host_evidence(NONCE)


def test_what_was_left_loaded_goes(machine: Swtpm, tmp_path: Path) -> None:
    """By agents that were killed between two commands, time and again: a
    TPM without a resource manager has three places, and keeps it all."""
    for _agent in range(3):
        code = (
            "import os, sys\n"
            "from mh_nova.agent.tpm import Tpm, _policy_session\n"
            "tpm = Tpm(*sys.argv[1:])\n"
            "with tpm._session() as esys:\n"
            "    esys.context_load(tpm._with_ak(esys)[1])\n"
            "    _policy_session(esys)\n"
            "    os._exit(9)\n"
        )
        lock = str(tmp_path / "lock")
        died = subprocess.run(
            [sys.executable, "-c", code, machine.tcti, lock], check=False
        )
        assert died.returncode == 9
    assert machine.loaded() != []
    tpm = Tpm(machine.tcti, str(tmp_path / "lock"))
    tpm.check()
    assert machine.loaded() == []
    for _time in range(4):
        tpm.make_bind()
