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

"""A key in software says what a TPM would not."""

import dataclasses
import hashlib

import pytest

from mh_core import errors
from mh_core.tpm import attest, build, policy, quote
from mh_core.tpm import constants as c
from mh_core.tpm import public as public_module
from mh_core.tpm.public import Public
from tests.unit.mh_core.tpm import vectors

EXTRA = quote.extra_data(quote.LABEL_HOST, b"nonce", b"claims")
VALUES = {0: b"\1" * 32, 7: b"\2" * 32}
AK = vectors.SoftwareAk()


def _quote(message: bytes, signature: bytes) -> str:
    return vectors.outcome(
        quote.verify_quote,
        AK.public,
        message,
        signature,
        EXTRA,
        VALUES,
        {0, 7},
    )


def test_good_quote_gives_clock() -> None:
    message, signature = AK.quote(
        EXTRA, VALUES, clock=5, reset=6, restart=7, firmware=8, safe=False
    )
    got = quote.verify_quote(
        AK.public, message, signature, EXTRA, VALUES, [7, 0]
    )
    assert (got.clock, got.reset, got.restart, got.firmware) == (5, 6, 7, 8)
    assert got.safe is False
    with pytest.raises(dataclasses.FrozenInstanceError):
        got.reset = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("at", "new", "event"),
    [
        (0, b"\xfe", "core.tpm.attest.magic"),
        (4, b"\x80\x14", "core.tpm.attest.type"),
        (-2, b"", "core.tpm.quote.pcr-digest"),
    ],
)
def test_signed_nonsense(at: int, new: bytes, event: str) -> None:
    message = bytearray(AK.quote(EXTRA, VALUES)[0])
    message[at : at + len(new) if new else len(message)] = new or b"\0\0"
    data = bytes(message)
    assert _quote(data, AK.sign(data)) == event


def test_signed_with_trailing_octet() -> None:
    message = AK.quote(EXTRA, VALUES)[0] + b"\0"
    assert _quote(message, AK.sign(message)) == "core.tpm.reader.trailing"


def test_signed_with_safe_two() -> None:
    message = bytearray(AK.quote(EXTRA, VALUES)[0])
    at = 4 + 2 + 2 + 2 + 32 + 8 + 4 + 4
    message[at] = 2
    data = bytes(message)
    assert _quote(data, AK.sign(data)) == "core.tpm.attest.safe"


@pytest.mark.parametrize(
    "banks",
    [
        [],
        [(c.ALG_SHA256, b"\x81\0\0\0")],
        [(c.ALG_SHA256, b"\x81")],
        [(c.ALG_SHA384, b"\x81\0\0")],
        [(c.ALG_SHA256, b"\x81\0\0")] * 2,
    ],
)
def test_other_forms_of_the_selection(
    banks: list[tuple[int, bytes]],
) -> None:
    body = build.quote_body(build.selection(banks), policy.pcr_digest(VALUES))
    message = build.attest(c.ST_QUOTE, EXTRA, body)
    assert _quote(message, AK.sign(message)) == "core.tpm.quote.selection"


def test_too_many_banks() -> None:
    body = build.quote_body(build.selection([(c.ALG_SHA256, b"")] * 17), b"")
    message = build.attest(c.ST_QUOTE, EXTRA, body)
    assert _quote(message, AK.sign(message)) == "core.tpm.attest.selection"


@pytest.mark.parametrize(
    "attributes",
    [
        0,
        c.AK_ATTRIBUTES & ~c.RESTRICTED,
        c.AK_ATTRIBUTES & ~c.FIXED_TPM,
        c.AK_ATTRIBUTES & ~c.FIXED_PARENT,
        c.AK_ATTRIBUTES & ~c.SENSITIVE_DATA_ORIGIN,
        c.AK_ATTRIBUTES & ~c.SIGN,
        c.AK_ATTRIBUTES | c.DECRYPT,
        c.AK_ATTRIBUTES | c.ENCRYPTED_DUPLICATION,
        c.AK_ATTRIBUTES | 1 << 19,
    ],
)
def test_ak_attributes(attributes: int) -> None:
    ak = vectors.SoftwareAk(attributes)
    message, signature = ak.quote(EXTRA, VALUES)
    got = vectors.outcome(
        quote.verify_quote, ak.public, message, signature, EXTRA, VALUES, [0]
    )
    assert got == "core.tpm.ak.attributes"


def _bind(attributes: int = c.BIND_ATTRIBUTES) -> Public:
    key = vectors.SoftwareAk().public.key
    return Public.parse(
        build.ecc_public_area(
            key,  # type: ignore[arg-type]
            attributes,
            policy=policy.policy_pcr(VALUES),
            scheme=c.ALG_ECDH,
        )
    )


def test_certify_and_hierarchy() -> None:
    bind = _bind()
    message, signature = AK.certify(EXTRA, bind)
    got = quote.verify_certify(AK.public, message, signature, EXTRA, bind)
    public_module.check_bind(bind, policy.policy_pcr(VALUES))
    attest.check_primary(got, bind, c.RH_NULL)
    with pytest.raises(errors.VerificationError) as caught:
        attest.check_primary(got, bind, c.RH_OWNER)
    assert caught.value.event == "core.tpm.certify.hierarchy"


@pytest.mark.parametrize(
    "bit",
    [
        c.USER_WITH_AUTH,
        c.ADMIN_WITH_POLICY,
        c.SIGN,
        c.RESTRICTED,
        c.ENCRYPTED_DUPLICATION,
        1,
        1 << 31,
    ],
)
def test_bind_surplus(bit: int) -> None:
    got = vectors.outcome(
        public_module.check_bind,
        _bind(c.BIND_ATTRIBUTES | bit),
        policy.policy_pcr(VALUES),
    )
    assert got == "core.tpm.bind.attributes"


def test_empty_policy_is_not_equal_to_none() -> None:
    key = vectors.SoftwareAk().public.key
    area = build.ecc_public_area(
        key,  # type: ignore[arg-type]
        c.BIND_ATTRIBUTES,
        scheme=c.ALG_ECDH,
    )
    got = vectors.outcome(public_module.check_bind, Public.parse(area), b"")
    assert got == "core.tpm.bind.policy"


def test_extra_data_is_length_prefixed() -> None:
    made = quote.extra_data("ab", b"c", b"")
    assert (
        made
        == hashlib.sha256(b"\0\0\0\2ab" + b"\0\0\0\1c" + b"\0\0\0\0").digest()
    )
    assert len({made, quote.extra_data("a", b"bc", b"")}) == 2
    labels = {
        quote.LABEL_RELEASE,
        quote.LABEL_HOST,
        quote.LABEL_VM,
        quote.LABEL_BIND,
    }
    assert len(labels) == 4
    for label in ("", "\ud800"):
        assert vectors.outcome(quote.extra_data, label, b"", b"") == (
            "core.tpm.extra-data"
        )


def test_jwk() -> None:
    case = next(v for v in vectors.load("public") if v["name"] == "bind")
    jwk = Public.parse(bytes.fromhex(case["public"])).jwk()
    assert set(jwk) == {"kty", "crv", "x", "y"}
    assert (jwk["kty"], jwk["crv"], len(jwk["x"])) == ("EC", "P-256", 43)
    case = next(v for v in vectors.load("public") if v["name"] == "bind-rsa")
    jwk = Public.parse(bytes.fromhex(case["public"])).jwk()
    assert (jwk["kty"], jwk["e"], len(jwk["n"])) == ("RSA", "AQAB", 342)
