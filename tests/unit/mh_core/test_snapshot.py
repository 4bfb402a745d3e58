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
"""Snapshot claims: what is quoted, and what is not read."""

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mh_core import jose
from mh_core.errors import InputError
from mh_core.snapshot import SnapshotClaims, jwe_digest, key_apv

SIGNER = jose.public(jose.generate_key())
CLAIMS = SnapshotClaims(
    key_id="0f1e2d3c-4b5a-4978-8675-645342312011",
    image="d5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51",
    manifest_digest="11" * 32,
    signer=SIGNER,
    jwe_digest="22" * 32,
    source_key_id="1f1e2d3c-4b5a-4978-8675-645342312011",
    source_image="e5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51",
    source_manifest="33" * 32,
    kms_origin="https://kms.test:15543",
    instance="4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10",
    project="p",
    host="node1",
    release="5d0f3c6a-0000-4000-8000-000000000000#7",
    taken_at=1_800_000_000,
)


def test_round_trip() -> None:
    assert SnapshotClaims.parse(CLAIMS.to_dict()) == CLAIMS


def test_the_digest_is_what_the_protocol_says() -> None:
    """SHA-256 over label and canonical JSON, each after its length."""
    document = json.dumps(
        CLAIMS.to_dict(), sort_keys=True, separators=(",", ":")
    ).encode()
    label = b"mh/snapshot-claims/v1"
    expected = hashlib.sha256(
        len(label).to_bytes(4, "big")
        + label
        + len(document).to_bytes(4, "big")
        + document
    ).digest()
    assert CLAIMS.digest() == expected


CHANGES: dict[str, Any] = {
    "key_id": "2f1e2d3c-4b5a-4978-8675-645342312011",
    "image": "f5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51",
    "manifest_digest": "44" * 32,
    "signer": jose.public(jose.generate_key()),
    "jwe_digest": "55" * 32,
    "source_key_id": "3f1e2d3c-4b5a-4978-8675-645342312011",
    "source_image": "a5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51",
    "source_manifest": "66" * 32,
    "kms_origin": "https://other.test",
    "instance": "5f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10",
    "project": "q",
    "host": "node2",
    "release": "5d0f3c6a-0000-4000-8000-000000000000#8",
    "taken_at": 1,
}


def test_every_field_has_a_change() -> None:
    assert set(CHANGES) == {f.name for f in dataclasses.fields(CLAIMS)}


@pytest.mark.parametrize("name", CHANGES)
def test_the_digest_covers(name: str) -> None:
    changed = dataclasses.replace(CLAIMS, **{name: CHANGES[name]})
    assert changed.digest() != CLAIMS.digest()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", 2),
        ("key_id", CLAIMS.source_key_id),
        ("key_id", "x"),
        ("manifest_digest", "11" * 31),
        ("signer", {}),
        ("signer", {**SIGNER, "crv": "P-384"}),
        ("kms_origin", "ftp://x"),
        ("host", "a/b"),
        ("release", "kms#7"),
        ("release", CLAIMS.release + "\n"),
        ("taken_at", -1),
        ("more", 1),
    ],
)
def test_malformed(name: str, value: Any) -> None:
    with pytest.raises(InputError):
        SnapshotClaims.parse({**CLAIMS.to_dict(), name: value})


def test_nothing_private_is_kept() -> None:
    own = jose.generate_key()
    claims = dataclasses.replace(CLAIMS, signer=own)
    assert "d" not in claims.to_dict()["signer"]
    document = {**CLAIMS.to_dict(), "signer": own}
    assert "d" not in SnapshotClaims.parse(document).signer


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    ),
    st.sampled_from(sorted(CLAIMS.to_dict())),
)
def test_any_member(value: Any, name: str) -> None:
    document = {**CLAIMS.to_dict(), name: value}
    try:
        claims = SnapshotClaims.parse(document)
    except InputError:
        return
    assert claims.to_dict() == document


def test_the_wrapped_keys_apv_is_of_key_and_release() -> None:
    values = {
        key_apv(key, release) for key in ("a", "b") for release in ("1#1", "2")
    }
    assert len(values) == 4
    # length-prefixed: no two pairs are one
    assert key_apv("ab", "c") != key_apv("a", "bc")
    assert jwe_digest("x") == hashlib.sha256(b"x").hexdigest()
