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

"""Attestation results: each claim, and who signed them."""

import dataclasses
from typing import Any

import pytest
from hypothesis import strategies as st

from mh_core import jose
from mh_core.encoding import b64u, canonical_json, parse_json, unb64u
from mh_core.result import MAX_LIFE, PROFILE, TYP, AttestationResult
from tests.unit.mh_core import vectors
from tests.unit.mh_core.vectors import Case, given, outcome

NOW = 1_800_000_000
KEY = jose.generate_key()
BIND = jose.generate_key()
RESULT = AttestationResult(
    issuer="https://attest.test",
    audience="https://kms.test",
    issued_at=NOW,
    expires_at=NOW + 60,
    nonce=b"n" * 32,
    request_digest=b"r" * 32,
    host="node1",
    host_id="4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10",
    level="trusted",
    bind_jwk=jose.public(BIND),
    tags={"geo": "eu-1"},
)
EXPECTED: dict[str, Any] = {
    "issuer": RESULT.issuer,
    "audience": RESULT.audience,
    "nonce": RESULT.nonce,
    "request_digest": RESULT.request_digest,
    "bind_jwk": RESULT.bind_jwk,
    "now": NOW,
}


def _outcome(token: str, **changes: Any) -> str:
    return outcome(
        AttestationResult.verify, token, KEY, **{**EXPECTED, **changes}
    )


@vectors.parameters("core/result")
def test_result(case: Case) -> None:
    found = outcome(
        AttestationResult.verify,
        case["token"],
        case["jwk"],
        issuer=case["issuer"],
        audience=case["audience"],
        nonce=bytes.fromhex(case["nonce"]),
        request_digest=bytes.fromhex(case["request_digest"]),
        bind_jwk=case["bind_jwk"],
        now=case["now"],
    )
    assert found == case["expect"]


def test_what_is_signed_is_read() -> None:
    token = RESULT.sign(KEY)
    assert AttestationResult.verify(token, KEY, **EXPECTED) == RESULT


@pytest.mark.parametrize(
    ("name", "value", "event"),
    [
        ("issuer", "https://attest.test/", "issuer"),
        ("audience", "https://KMS.test", "audience"),
        ("nonce", b"m" * 32, "nonce"),
        ("nonce", b"", "nonce"),
        ("request_digest", b"s" * 32, "request"),
        ("request_digest", b"r" * 31, "request"),
        ("bind_jwk", jose.generate_key(), "bind-key"),
        ("now", NOW - 31, "time"),
        ("now", NOW + 60, "time"),
        ("now", NOW + 86400, "time"),
        ("now", 0, "time"),
    ],
)
def test_what_the_caller_knows_by_itself(
    name: str, value: Any, event: str
) -> None:
    assert (
        _outcome(RESULT.sign(KEY), **{name: value}) == f"core.result.{event}"
    )


def test_a_bind_key_as_a_tpm_gives_it() -> None:
    bare = {name: BIND[name] for name in ("kty", "crv", "x", "y")}
    result = dataclasses.replace(RESULT, bind_jwk=bare)
    assert _outcome(result.sign(KEY), bind_jwk=bare) == "ok"


def test_no_private_key_is_published() -> None:
    token = dataclasses.replace(RESULT, bind_jwk=BIND).sign(KEY)
    claims = parse_json(unb64u(token.split(".")[1]))
    assert claims["cnf"]["jwk"] == jose.public(BIND)
    assert claims["eat_profile"] == PROFILE


def test_a_life_too_long_is_refused_whoever_signed_it() -> None:
    long = dataclasses.replace(RESULT, expires_at=NOW + MAX_LIFE + 1)
    assert _outcome(long.sign(KEY)) == "core.result.time"


@pytest.mark.parametrize("life", [0, -5])
def test_a_life_that_ends_before_it_begins(life: int) -> None:
    short = dataclasses.replace(RESULT, expires_at=NOW + life)
    assert _outcome(short.sign(KEY), now=NOW - 10) == "core.result.time"


def test_another_authoritys_word() -> None:
    other = jose.generate_key()
    assert _outcome(RESULT.sign(other)) == "core.jose.signature"


def test_another_kind_of_token_of_the_same_authority() -> None:
    payload = unb64u(RESULT.sign(KEY).split(".")[1])
    for typ in ("mh-vm-report+jwt", "mh-manifest+jws", "JWT", "EAT+JWT"):
        assert _outcome(jose.sign(payload, KEY, typ)) == "core.jose.token"


_CLAIMS = parse_json(unb64u(RESULT.sign(KEY).split(".")[1]))
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


@given(st.sampled_from(sorted(_CLAIMS)), _JSON)
def test_any_claim_of_any_kind(name: str, value: Any) -> None:
    claims = {**_CLAIMS, name: value}
    token = jose.sign(canonical_json(claims), KEY, TYP)
    found = _outcome(token)
    if found == "ok":
        assert value == _CLAIMS[name] or name in (
            "mh_tags",
            "mh_host",
            "mh_level",
        )
    else:
        assert found.startswith(("core.result.", "core.jose.", "core.json."))


@given(st.binary(max_size=80) | _JSON.map(canonical_json))
def test_any_payload(payload: bytes) -> None:
    found = _outcome(jose.sign(payload, KEY, TYP))
    assert found.startswith(("core.result.", "core.json."))


def test_a_payload_larger_than_a_result() -> None:
    large = canonical_json({**_CLAIMS, "mh_host": b64u(bytes(16384))})
    assert _outcome(jose.sign(large, KEY, TYP)) == "core.json.size"
