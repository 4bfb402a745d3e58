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

"""What jwcrypto and openssl made, and named bad inputs."""

import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from joserfc.jwk import ECKey, RSAKey
from jwcrypto import jwe, jwk, jws

from mh_core import jose
from mh_core.encoding import b64u, lp, unb64u
from mh_core.errors import VerificationError
from tests.unit.mh_core import vectors
from tests.unit.mh_core.vectors import Case, outcome


@vectors.parameters("jose/jwk")
def test_key(case: Case) -> None:
    assert outcome(jose.public, case["jwk"]) == case["expect"]
    assert outcome(jose.thumbprint, case["jwk"]) == case["expect"]
    if case["expect"] == "ok":
        assert jose.thumbprint(case["jwk"]) == case["thumbprint"]
        assert jose.public(case["jwk"])["kid"] == case["thumbprint"]
    else:
        wrap = outcome(jose.wrap, b"x", case["jwk"], b"apv")
        assert wrap == case["expect"]


class Tpm:
    """What a TPM does with a key, and what openssl said it would answer."""

    def __init__(self, case: Case) -> None:
        self._case = case
        members = {
            name: value for name, value in case["jwk"].items() if name != "kid"
        }
        if members["kty"] == "EC":
            self._key = ECKey.import_key(members).private_key
        else:
            self._key = RSAKey.import_key(members).private_key

    def _check(self, secret: bytes) -> bytes:
        assert secret.hex() == self._case.get("secret", secret.hex())
        return secret

    def zgen(self, x: bytes, y: bytes) -> bytes:
        assert isinstance(self._key, ec.EllipticCurvePrivateKey)
        point = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
        ).public_key()
        return self._check(self._key.exchange(ec.ECDH(), point))

    def decrypt(self, data: bytes) -> bytes:
        assert isinstance(self._key, rsa.RSAPrivateKey)
        sha = hashes.SHA256()
        oaep = padding.OAEP(padding.MGF1(sha), sha, None)
        try:
            return self._check(self._key.decrypt(data, oaep))
        except ValueError as exc:
            raise VerificationError("core.jose.unwrap", "by a TPM") from exc

    def open(self, token: str, apv: bytes) -> bytes:
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return jose.open_with_z(token, self.zgen, apv)
        encrypted, finish = jose.oaep_parts(token, apv)
        return finish(self.decrypt(encrypted))


@vectors.parameters("jose/jwe")
def test_wrapped_key(case: Case) -> None:
    token, apv = case["token"], bytes.fromhex(case["apv"])
    tpm = Tpm(case)
    assert outcome(jose.unwrap, token, case["jwk"], apv) == case["expect"]
    assert outcome(tpm.open, token, apv) == case["expect"]
    if case["expect"] == "ok":
        plaintext = bytes.fromhex(case["plaintext"])
        assert jose.unwrap(token, case["jwk"], apv) == plaintext
        assert tpm.open(token, apv) == plaintext
        assert jose.recipient(token) == jose.thumbprint(case["jwk"])
    else:
        recipient = outcome(jose.recipient, token)
        assert recipient == "ok" or recipient.startswith(("core.j",))


@vectors.parameters("jose/jws")
def test_signature(case: Case) -> None:
    def run() -> None:
        payload, kid = jose.verify(
            case["token"], [jose.generate_key(), case["jwk"]], case["typ"]
        )
        assert payload.hex() == case["payload"]
        assert kid == jose.thumbprint(case["jwk"])

    assert outcome(run) == case["expect"]


def test_there_are_good_and_bad_vectors() -> None:
    # a file that lost its cases would pass every test above
    for name, most in (("jwk", 4), ("jwe", 5), ("jws", 2)):
        cases = vectors.load(f"jose/{name}")
        good = [case for case in cases if case["expect"] == "ok"]
        assert len(good) == most
        assert len(cases) > 5 * most


def test_concat_kdf_of_rfc_7518_appendix_c() -> None:
    z = "9e56d91d817135d372834283bf84269cfb316ea3da806a48f6daa7798cfe90c4"
    info = lp(b"A128GCM") + lp(b"Alice") + lp(b"Bob")
    derived = ConcatKDFHash(
        hashes.SHA256(), 16, info + (128).to_bytes(4, "big")
    ).derive(bytes.fromhex(z))
    assert b64u(derived) == "VqqN6vgjbSBcIijNcacQGg"


@pytest.fixture(params=["EC", "RSA"], scope="module")
def foreign(request: pytest.FixtureRequest) -> jwk.JWK:
    if request.param == "EC":
        return jwk.JWK.generate(kty="EC", crv="P-256")
    return jwk.JWK.generate(kty="RSA", size=2048)


@pytest.mark.parametrize("size", [1, 32, 3000, 120_000])
def test_jwcrypto_opens_what_we_wrap(foreign: jwk.JWK, size: int) -> None:
    token = jose.wrap(b"k" * size, foreign.export_public(as_dict=True), b"a")
    found = jwe.JWE()
    found.allowed_algs = ["ECDH-ES+A256KW", "RSA-OAEP-256", "A256GCM"]
    found.deserialize(token, foreign)
    assert found.payload == b"k" * size
    assert found.jose_header["apv"] == b64u(b"a")
    assert found.jose_header["kid"] == foreign.thumbprint()
    own = foreign.export_private(as_dict=True)
    assert jose.unwrap(token, own, b"a") == b"k" * size


def test_a_sender_who_names_another_key(foreign: jwk.JWK) -> None:
    """It would open; but who looks for the key by its kid took another."""
    own = foreign.export_private(as_dict=True)
    alg = "RSA-OAEP-256" if own["kty"] == "RSA" else "ECDH-ES+A256KW"
    header = {
        "alg": alg,
        "enc": "A256GCM",
        "typ": "mh",
        "kid": jose.generate_key()["kid"],
        "apv": b64u(b"a"),
    }
    made = jwe.JWE(b"k", json.dumps(header), algs=[alg, "A256GCM"])
    made.add_recipient(foreign)
    token = made.serialize(compact=True)
    assert outcome(jose.unwrap, token, own, b"a") == "core.jose.unwrap"


@pytest.mark.parametrize("size", [0, 1, 3000, 120_000])
def test_jwcrypto_verifies_what_we_sign(size: int) -> None:
    key = jose.generate_key()
    token = jose.sign(b"p" * size, key, "mh-manifest+jws")
    found = jws.JWS()
    found.allowed_algs = ["ES256"]
    found.deserialize(token, jwk.JWK(**jose.public(key)))
    assert found.payload == b"p" * size
    assert found.jose_header == {
        "alg": "ES256",
        "typ": "mh-manifest+jws",
        "kid": key["kid"],
    }
    assert jose.verify(token, [key], "mh-manifest+jws")[0] == b"p" * size


def test_a_header_is_only_what_it_says() -> None:
    """Nothing of the key but its thumbprint is in a token."""
    key = jose.generate_key()
    token = jose.sign(b"", key, "t")
    assert key["d"] not in token
    assert key["x"].encode() not in unb64u(token.split(".")[0])
