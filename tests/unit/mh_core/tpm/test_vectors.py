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

"""What swtpm and tpm2-tools made, and named bad inputs."""

import datetime
import hashlib
import hmac
from typing import Any

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from mh_core.tpm import (
    attest,
    credential,
    ekcert,
    eventlog,
    policy,
    quote,
    reader,
)
from mh_core.tpm import public as public_module
from mh_core.tpm.public import Public
from tests.unit.mh_core.tpm import vectors

Case = dict[str, Any]


def _hex(case: Case, *names: str) -> list[bytes]:
    return [bytes.fromhex(case[name]) for name in names]


@vectors.parameters("quote")
def test_quote(case: Case) -> None:
    def run() -> None:
        ak, message, signature, extra = _hex(
            case, "ak", "attest", "signature", "extra"
        )
        parsed = quote.verify_quote(
            Public.parse(ak),
            message,
            signature,
            extra,
            vectors.pcrs(case),
            case["selection"],
        )
        assert parsed.extra == extra
        assert parsed.qualified_signer
        assert parsed.reset >= 1

    assert vectors.outcome(run) == case["expect"]


@vectors.parameters("certify")
def test_certify(case: Case) -> None:
    def run() -> None:
        ak, message, signature, extra, certified, wanted = _hex(
            case, "ak", "attest", "signature", "extra", "certified", "policy"
        )
        key = Public.parse(certified)
        parsed = quote.verify_certify(
            Public.parse(ak), message, signature, extra, key
        )
        public_module.check_bind(key, wanted)
        attest.check_primary(parsed, key, case["hierarchy"])

    assert vectors.outcome(run) == case["expect"]


@vectors.parameters("public")
def test_public(case: Case) -> None:
    def run() -> None:
        key = Public.parse(bytes.fromhex(case["public"]))
        assert key.name.hex() == case["object_name"]
        parent = public_module.hierarchy_name(case["hierarchy"])
        assert key.qualified_name(parent).hex() == case["qualified_name"]
        assert key.pem() == case["pem"]

    assert vectors.outcome(run) == case["expect"]


@vectors.parameters("policy", "pcr")
def test_policy_pcr(case: Case) -> None:
    def run() -> None:
        digest = policy.policy_pcr(
            vectors.pcrs(case), bytes.fromhex(case["start"])
        )
        assert digest.hex() == case["policy"]

    assert vectors.outcome(run) == case["expect"]


@vectors.parameters("policy", "authorize")
def test_policy_authorize(case: Case) -> None:
    area, name, ref = _hex(case, "public", "key_name", "ref")
    assert Public.parse(area).name == name
    assert policy.policy_authorize(name, ref).hex() == case["policy"]


def _seed(case: Case, ek: Public, secret: bytes) -> bytes:
    """What the TPM does first in TPM2_ActivateCredential."""
    key = serialization.load_pem_private_key(case["ek_private"].encode(), None)
    if isinstance(key, rsa.RSAPrivateKey):
        sha = hashes.SHA256()
        return key.decrypt(
            secret, padding.OAEP(padding.MGF1(sha), sha, b"IDENTITY\0")
        )
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    r = reader.Reader(secret)
    x, y = r.sized(), r.sized()
    r.end()
    theirs = ec.EllipticCurvePublicNumbers(
        int.from_bytes(x, "big"), int.from_bytes(y, "big"), key.curve
    )
    z = key.exchange(ec.ECDH(), theirs.public_key())
    own = key.public_key().public_numbers().x.to_bytes(len(z), "big")
    return credential.kdfe(ek.name_alg, z, b"IDENTITY", x, own, 256)


@vectors.parameters("credential", "open")
def test_credential_made_by_the_tool(case: Case) -> None:
    area, name, wanted, identity, secret = _hex(
        case, "ek", "object_name", "credential", "identity", "secret"
    )
    ek = Public.parse(area)
    seed = _seed(case, ek, secret)
    r = reader.Reader(identity)
    mac, encrypted = r.sized(), r.take(r.remaining)
    key = credential.kdfa(ek.name_alg, seed, b"INTEGRITY", b"", b"", 256)
    assert hmac.digest(key, encrypted + name, "sha256") == mac
    key = credential.kdfa(ek.name_alg, seed, b"STORAGE", name, b"", 128)
    decryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).decryptor()
    assert reader.unwrap(decryptor.update(encrypted)) == wanted


@vectors.parameters("credential", "make")
def test_credential_opened_by_the_tool(case: Case) -> None:
    def run() -> None:
        area, name, wanted = _hex(case, "ek", "object_name", "credential")
        ek = Public.parse(area)
        title = case["random"].removeprefix("SHAKE256(").removesuffix(")")
        made = credential.make_credential(
            ek, wanted, name, hashlib.shake_256(title.encode()).digest
        )
        # OAEP is randomised: there only the part with our seed is equal.
        assert made[0].hex() == case["identity"]
        if isinstance(ek.key, ec.EllipticCurvePublicKey):
            assert made[1].hex() == case["secret"]

    assert vectors.outcome(run) == case["expect"]


@vectors.parameters("ekcert")
def test_ek_certificate(case: Case) -> None:
    def run() -> None:
        ek, der = _hex(case, "ek", "certificate")
        certificate = ekcert.load_certificate(der)
        chain, roots = (
            [ekcert.load_certificate(pem.encode()) for pem in case[name]]
            for name in ("intermediates", "roots")
        )
        found = ekcert.verify_ek_certificate(
            certificate,
            Public.parse(ek),
            chain,
            roots,
            datetime.datetime.fromisoformat(case["now"]),
        )
        assert found == certificate.fingerprint(hashes.SHA256()).hex()

    assert vectors.outcome(run) == case["expect"]


@vectors.parameters("eventlog")
def test_event_log(case: Case) -> None:
    def run() -> None:
        events = eventlog.parse(bytes.fromhex(case["log"]))
        values = eventlog.replay(events)
        lines = eventlog.command_lines(events)
        assert values == vectors.pcrs(case)
        assert list(lines) == case["command_lines"]

    assert vectors.outcome(run) == case["expect"]
