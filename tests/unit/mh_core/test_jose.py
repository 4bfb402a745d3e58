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

"""Tokens: properties, limits, and callers' mistakes."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import strategies as st

from mh_core import jose
from mh_core.encoding import b64u, canonical_json, parse_json, unb64u
from mh_core.errors import InputError, MHError, VerificationError
from tests.unit.mh_core.vectors import given, outcome

KEY = jose.generate_key()
OTHER = jose.generate_key()
APV = b"a" * 32
WRAPPED = jose.wrap(b"k" * 32, KEY, APV)
SIGNED = jose.sign(b"{}", KEY, "t")


def _no_z(x: bytes, y: bytes) -> bytes:
    return x


def test_private_members_do_not_leave_public() -> None:
    assert set(jose.public(KEY)) == {"kty", "crv", "x", "y", "kid"}
    assert jose.public({**KEY, "use": "enc", "alg": "none"}) == jose.public(
        KEY
    )


def test_a_kid_of_the_callers_is_not_believed() -> None:
    assert jose.public({**OTHER, "kid": KEY["kid"]})["kid"] == OTHER["kid"]
    borrowed = {**jose.public(OTHER), "kid": KEY["kid"]}
    with pytest.raises(VerificationError) as caught:
        jose.verify(SIGNED, [borrowed], "t")
    assert caught.value.event == "core.jose.signature"


def test_the_first_key_that_fits_is_used_wherever_it_stands() -> None:
    keys = [OTHER, jose.public(KEY)]
    assert jose.verify(SIGNED, keys, "t") == (b"{}", KEY["kid"])
    assert jose.verify(SIGNED, keys[::-1], "t") == (b"{}", KEY["kid"])


def test_no_key_verifies_nothing() -> None:
    assert outcome(jose.verify, SIGNED, [], "t") == "core.jose.signature"


def test_signing_needs_a_private_p256_key() -> None:
    rsa = {"kty": "RSA", "n": b64u(b"\xc1" * 256), "e": "AQAB"}
    assert outcome(jose.sign, b"", jose.public(KEY), "t") == "core.jose.key"
    assert outcome(jose.sign, b"", rsa, "t") == "core.jose.key"
    assert outcome(jose.sign, b"", {**KEY, "d": OTHER["d"]}, "t") == (
        "core.jose.key"
    )


def test_unwrapping_needs_the_private_key() -> None:
    found = outcome(jose.unwrap, WRAPPED, jose.public(KEY), APV)
    assert found == "core.jose.unwrap"
    assert outcome(jose.unwrap, WRAPPED, OTHER, APV) == "core.jose.unwrap"
    assert outcome(jose.unwrap, WRAPPED, KEY, APV[:-1]) == "core.jose.apv"


def test_what_is_made_can_be_read_and_what_is_too_long_is_not_made() -> None:
    most = b"x" * 190_000
    assert jose.verify(jose.sign(most, KEY, "t"), [KEY], "t")[0] == most
    assert jose.unwrap(jose.wrap(most, KEY, APV), KEY, APV) == most
    large = b"x" * jose.MAX_TOKEN
    assert outcome(jose.sign, large, KEY, "t") == "core.jose.size"
    assert outcome(jose.wrap, large, KEY, APV) == "core.jose.size"


@pytest.mark.parametrize("part", range(3))
def test_an_oversized_token_is_not_decoded(part: int) -> None:
    parts = SIGNED.split(".")
    parts[part] += "A" * jose.MAX_TOKEN
    token = ".".join(parts)
    assert outcome(jose.verify, token, [KEY], "t") == "core.jose.token"


@pytest.mark.parametrize("part", range(5))
def test_an_oversized_wrapped_key_is_not_decoded(part: int) -> None:
    parts = WRAPPED.split(".")
    parts[part] += "A" * jose.MAX_TOKEN
    token = ".".join(parts)
    assert outcome(jose.unwrap, token, KEY, APV) == "core.jose.token"
    assert outcome(jose.open_with_z, token, _no_z, APV) == "core.jose.token"
    assert outcome(jose.oaep_parts, token, APV) == "core.jose.token"
    assert outcome(jose.recipient, token) == "core.jose.token"


def test_the_tpm_is_not_asked_about_a_token_that_is_refused() -> None:
    def zgen(x: bytes, y: bytes) -> bytes:
        raise AssertionError("asked")

    for token in (WRAPPED + "=", WRAPPED[:-5], SIGNED):
        assert outcome(jose.open_with_z, token, zgen, APV) == "core.jose.token"
    found = outcome(jose.open_with_z, WRAPPED, zgen, bytes(32))
    assert found == "core.jose.apv"


@pytest.mark.parametrize("size", [16, 24, 32])
def test_a_content_key_of_another_length_is_refused(size: int) -> None:
    """AES would take it: a sender may not choose a weaker one."""
    rsa = {"kty": "RSA", "n": b64u(b"\xc1" * 256), "e": "AQAB"}
    head, key = jose.wrap(b"k", rsa, APV).split(".")[:2]
    made = AESGCM(bytes(size)).encrypt(bytes(12), b"secret", head.encode())
    parts = [head, key, b64u(bytes(12)), b64u(made[:-16]), b64u(made[-16:])]
    _encrypted, finish = jose.oaep_parts(".".join(parts), APV)
    assert outcome(finish, bytes(size)) == (
        "ok" if size == 32 else "core.jose.unwrap"
    )
    for other in (0, 31, 33):
        assert outcome(finish, bytes(other)) == "core.jose.unwrap"


def test_an_rsa_answer_is_bound_to_its_request() -> None:
    rsa = {"kty": "RSA", "n": b64u(b"\xc1" * 256), "e": "AQAB"}
    token = jose.wrap(b"k", rsa, APV)
    assert outcome(jose.oaep_parts, token, bytes(32)) == "core.jose.apv"


# -- whatever comes, one error family leaves ---------------------------------

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
_HEADERS = st.dictionaries(
    st.sampled_from(
        "alg enc typ kid apv apu epk zip crit b64 jku jwk x5c p2c".split()
    ),
    _JSON
    | st.sampled_from(
        ["ES256", "none", "ECDH-ES+A256KW", "RSA-OAEP-256", "A256GCM", "t"]
    ),
)


def _readers(token: str) -> None:
    for read in (
        lambda: jose.verify(token, [KEY], "t"),
        lambda: jose.unwrap(token, KEY, APV),
        lambda: jose.open_with_z(token, _no_z, APV),
        lambda: jose.oaep_parts(token, APV)[1](bytes(32)),
    ):
        with pytest.raises((InputError, VerificationError)):
            read()


@given(st.text(st.characters(exclude_categories=()), max_size=200))
def test_any_text_is_refused(text: str) -> None:
    _readers(text)


@given(
    _HEADERS,
    st.lists(st.binary(max_size=64).map(b64u), min_size=1, max_size=5),
)
def test_any_header_is_refused(header: Any, parts: list[str]) -> None:
    _readers(".".join([b64u(canonical_json(header)), *parts]))


@given(st.data())
def test_any_change_of_a_header_is_refused(data: st.DataObject) -> None:
    parts = data.draw(st.sampled_from([WRAPPED, SIGNED])).split(".")
    header = parse_json(unb64u(parts[0]))
    name = data.draw(st.sampled_from(sorted(header)))
    changed = {**header, name: data.draw(_JSON)}
    if data.draw(st.booleans()):
        del changed[name]
    if changed != header:
        parts[0] = b64u(canonical_json(changed))
        _readers(".".join(parts))


@given(st.integers(0, len(WRAPPED) - 1), st.characters())
def test_any_change_of_a_wrapped_key_is_refused(
    position: int, character: str
) -> None:
    token = WRAPPED[:position] + character + WRAPPED[position + 1 :]
    if token != WRAPPED:
        with pytest.raises(MHError):
            jose.unwrap(token, KEY, APV)


@given(st.integers(0, len(SIGNED) - 1), st.characters())
def test_any_change_of_a_signed_token_is_refused(
    position: int, character: str
) -> None:
    token = SIGNED[:position] + character + SIGNED[position + 1 :]
    if token != SIGNED:
        with pytest.raises(MHError):
            jose.verify(token, [KEY], "t")


@given(
    _JSON
    | st.dictionaries(
        st.sampled_from("kty crv x y n e d p q dp dq qi oth kid use".split()),
        _JSON | st.sampled_from(["EC", "RSA", "P-256", KEY["x"], "AQAB"]),
    )
)
def test_any_key_is_a_key_or_refused(value: Any) -> None:
    found = outcome(jose.public, value)
    assert found in ("ok", "core.jose.key")
    if found == "ok":
        public = jose.public(value)
        assert jose.public(public) == public


def test_derived_keys() -> None:
    """Always the same for key and label, and good for signing."""
    key = jose.generate_key()
    one = jose.derive_key(key, b"a")
    assert one == jose.derive_key(key, b"a")
    others = [jose.derive_key(key, b"b"), jose.derive_key(one, b"a"), key]
    assert len({other["d"] for other in others} | {one["d"]}) == 4
    token = jose.sign(b"x", one, "t")
    assert jose.verify(token, [jose.public(one)], "t")[0] == b"x"
    with pytest.raises(InputError):
        jose.derive_key(jose.public(key), b"a")
