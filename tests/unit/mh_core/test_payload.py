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

"""Release payloads: what the agent reads, and what is not written."""

import dataclasses
from typing import Any

import pytest
from hypothesis import strategies as st

from mh_core import jose
from mh_core.encoding import b64u, canonical_json, parse_json
from mh_core.launch_policy import LaunchPolicy
from mh_core.payload import ReleasePayload
from mh_core.request import PURPOSES
from mh_core.secret import Secret
from tests.unit.mh_core.vectors import given, outcome

DEK = b"0123456789abcdef0123456789abcdef"
SIGNER, TRANSPORT = jose.generate_key(), jose.generate_key()
GOOD = ReleasePayload(
    purpose="launch",
    key_id="4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10",
    dek=Secret(DEK),
    overlay_keys={"disk": Secret(DEK[::-1])},
    manifest_keys=(jose.public(SIGNER),),
    manifest_digests=("12" * 32,),
    kms_origin="https://kms.test:15543",
    transport_jwk=jose.public(TRANSPORT),
    lease=0,
    request_digest=b"r" * 32,
    issued_at=1_800_000_000,
    audit="main#1",
    launch_policy=LaunchPolicy(snapshots=True),
)
DOCUMENT: dict[str, Any] = parse_json(GOOD.to_bytes())
_SECRETS = st.binary(min_size=32, max_size=32).map(Secret)
PAYLOADS = st.builds(
    ReleasePayload,
    purpose=st.sampled_from(PURPOSES),
    key_id=st.uuids().map(str),
    dek=_SECRETS,
    overlay_keys=st.dictionaries(
        st.from_regex(r"[A-Za-z0-9._\-]{1,64}", fullmatch=True),
        _SECRETS,
        max_size=3,
    ),
    manifest_keys=st.just((jose.public(SIGNER),)) | st.just(()),
    manifest_digests=st.lists(
        st.binary(min_size=32, max_size=32).map(bytes.hex), max_size=3
    ).map(tuple),
    kms_origin=st.just("https://kms.test"),
    transport_jwk=st.just(jose.public(TRANSPORT)),
    lease=st.integers(0, 1 << 31),
    request_digest=st.binary(min_size=32, max_size=32),
    issued_at=st.integers(0, 1 << 40),
    audit=st.just("main#1"),
    launch_policy=st.builds(LaunchPolicy, snapshots=st.booleans()),
    signing_jwk=st.just(jose.public(SIGNER)) | st.just({}),
)


@given(PAYLOADS)
def test_what_is_written_is_read(payload: ReleasePayload) -> None:
    assert ReleasePayload.parse(payload.to_bytes()) == payload


def test_no_secret_shows() -> None:
    text = repr(GOOD) + str(GOOD)
    assert DEK.decode() not in text
    assert b64u(DEK) not in text
    assert "<secret>" in text


def test_no_private_key_is_sent() -> None:
    careless = dataclasses.replace(
        GOOD, manifest_keys=(SIGNER,), transport_jwk=TRANSPORT
    )
    data = careless.to_bytes().decode()
    assert SIGNER["d"] not in data
    assert TRANSPORT["d"] not in data
    assert careless.to_bytes() == GOOD.to_bytes()


def test_private_members_that_came_are_dropped() -> None:
    data = canonical_json({**DOCUMENT, "transport_jwk": TRANSPORT})
    found = ReleasePayload.parse(data)
    assert found.transport_jwk == jose.public(TRANSPORT)


BAD: dict[str, list[Any]] = {
    "version": [0, 2, True, "1", None],
    "purpose": ["", "LAUNCH", None],
    "key_id": ["", DOCUMENT["key_id"].upper()],
    "dek": ["", b64u(DEK[:-1]), b64u(DEK + b"x"), b64u(DEK) + "=", None, 1],
    "overlay_keys": [
        None,
        [],
        {"disk": None},
        {"disk": b64u(DEK[:-1])},
        {"": b64u(DEK)},
        {"../disk": b64u(DEK)},
        {"d" * 65: b64u(DEK)},
        {"disk\n": b64u(DEK)},
    ],
    "manifest_keys": [
        None,
        {},
        [None],
        ["x"],
        [5],
        [[]],
        [{}],
        [{"kty": "oct", "k": "AAAA"}],
        [jose.public(SIGNER)] * 65,
    ],
    "manifest_digests": [None, [""], ["*"], [None], ["AB" * 32], [["12"]]],
    "kms_origin": ["", "https://kms.test/", "kms.test", None],
    "transport_jwk": [None, [], {}, {**DOCUMENT["transport_jwk"], "x": 1}],
    "signing_jwk": [None, [], {"kty": "EC"}, {**jose.public(SIGNER), "x": 1}],
    "lease": [-1, (1 << 31) + 1, True, "0", None],
    "request_digest": ["", "12" * 31, None],
    "issued_at": [-1, (1 << 40) + 1, True],
    "audit": ["a" * 129, "a\nb", "\x1b", None],
    "launch_policy": [None, [], {"snapshots": 1}, {"x": 1}],
}


@pytest.mark.parametrize("name", sorted(DOCUMENT))
def test_a_member_that_is_wrong_or_missing(name: str) -> None:
    assert BAD[name]
    events = {"core.payload", "core.jose.key", "core.launch-policy"}
    for value in BAD[name]:
        data = canonical_json({**DOCUMENT, name: value})
        assert outcome(ReleasePayload.parse, data) in events, value
    without = {key: value for key, value in DOCUMENT.items() if key != name}
    found = outcome(ReleasePayload.parse, canonical_json(without))
    assert found == "core.payload"


def test_a_member_that_is_not_known() -> None:
    data = canonical_json({**DOCUMENT, "x": 1})
    assert outcome(ReleasePayload.parse, data) == "core.payload"


def test_no_refusal_repeats_a_key() -> None:
    for name, value in (
        ("dek", b64u(DEK) + "A"),
        ("overlay_keys", {"d": b64u(DEK) + "A"}),
    ):
        data = canonical_json({**DOCUMENT, name: value})
        with pytest.raises(Exception, match="core.payload") as caught:
            ReleasePayload.parse(data)
        assert b64u(DEK) not in str(caught.value)


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


@given(st.sampled_from(sorted(DOCUMENT)), _JSON)
def test_any_member_of_any_kind(name: str, value: Any) -> None:
    found = outcome(
        ReleasePayload.parse, canonical_json({**DOCUMENT, name: value})
    )
    assert found == "ok" or found.startswith("core.")


@given(st.binary(max_size=80) | _JSON.map(canonical_json))
def test_any_bytes(data: bytes) -> None:
    found = outcome(ReleasePayload.parse, data)
    assert found == "core.payload" or found.startswith("core.json.")
