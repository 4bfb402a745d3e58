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

"""Requests and answers about leases: what is covered, what is refused."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mh_core import jose
from mh_core.encoding import canonical_json
from mh_core.errors import InputError, VerificationError
from mh_core.lease import PURPOSES, TYP, LeaseGrant, LeaseRequest
from mh_core.request import KeyRequest

KEY = jose.generate_key()
REQUEST = LeaseRequest(
    key_id="4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10",
    kms_origin="https://kms.test:15543",
    purpose="renew",
    instance="0b7e2d39-3a63-4d53-9d9b-2a5cf4d5c6a7",
    lease="d5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51#12",
    host="node1",
)
GRANT = LeaseGrant(b"d" * 32, b"n" * 32, 600, 1_800_000_000, "main#3")


@given(
    st.builds(
        LeaseRequest,
        key_id=st.uuids().map(str),
        kms_origin=st.just("https://kms.test"),
        purpose=st.sampled_from(PURPOSES),
        instance=st.uuids().map(str),
        lease=st.just("a#1"),
        host=st.from_regex(r"[a-z0-9.\-]{1,20}", fullmatch=True),
    )
)
def test_what_is_written_is_read(request_: LeaseRequest) -> None:
    assert LeaseRequest.parse(request_.to_dict()) == request_


def test_every_member_is_covered() -> None:
    digests = {REQUEST.digest()}
    changed: dict[str, Any] = {
        "key_id": REQUEST.instance,
        "kms_origin": "https://kms.test",
        "purpose": "left",
        "instance": REQUEST.key_id,
        "lease": "x",
        "host": "node2",
        "to": "node2",
    }
    assert set(changed) == set(REQUEST.to_dict())
    for name, value in changed.items():
        digests.add(dataclasses.replace(REQUEST, **{name: value}).digest())
    assert len(digests) == 1 + len(changed)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("purpose", "launch"),
        ("purpose", "start"),
        ("instance", "x"),
        ("lease", ""),
        ("lease", "a b"),
        ("lease", "a" * 81),
        ("host", ""),
        ("host", "a/b"),
        ("to", "a/b"),
        ("to", "node2"),
        ("kms_origin", "https://kms.test/"),
        ("more", 1),
    ],
)
def test_refused(member: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        LeaseRequest.parse({**REQUEST.to_dict(), member: value})
    assert caught.value.event == "core.lease"


def test_no_purpose_is_that_of_a_key_request() -> None:
    from mh_core import request

    assert not set(PURPOSES) & set(request.PURPOSES)
    assert KeyRequest.__name__ != LeaseRequest.__name__


def test_grant() -> None:
    token = GRANT.sign(KEY)
    found = LeaseGrant.verify(token, jose.public(KEY), b"d" * 32, b"n" * 32)
    assert found == GRANT


@pytest.mark.parametrize(
    ("digest", "nonce", "key", "event"),
    [
        (b"e" * 32, b"n" * 32, KEY, "core.lease.binding"),
        (b"d" * 32, b"m" * 32, KEY, "core.lease.binding"),
        (b"d" * 32, b"n" * 32, jose.generate_key(), "core.jose.signature"),
    ],
)
def test_an_answer_to_something_else(
    digest: bytes, nonce: bytes, key: jose.Jwk, event: str
) -> None:
    token = GRANT.sign(KEY)
    with pytest.raises(VerificationError) as caught:
        LeaseGrant.verify(token, jose.public(key), digest, nonce)
    assert caught.value.event == event


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": -1},
        {"seconds": (1 << 31) + 1},
        {"seconds": "600"},
        {"version": 2},
        {"nonce": ""},
        {"more": 1},
    ],
)
def test_a_signed_answer_that_is_none(change: dict[str, Any]) -> None:
    document = {
        "version": 1,
        "request_digest": "64" * 32,
        "nonce": "bm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm4",
        "seconds": 600,
        "issued_at": 1,
        "audit": "a#1",
    }
    good = jose.sign(canonical_json(document), KEY, TYP)
    LeaseGrant.verify(good, jose.public(KEY), b"d" * 32, b"n" * 32)
    token = jose.sign(canonical_json(document | change), KEY, TYP)
    with pytest.raises(InputError):
        LeaseGrant.verify(token, jose.public(KEY), b"d" * 32, b"n" * 32)


def test_another_kind_of_token() -> None:
    token = jose.sign(b"{}", KEY, "mh-vm-report+jwt")
    with pytest.raises(InputError):
        LeaseGrant.verify(token, jose.public(KEY), b"d" * 32, b"n" * 32)
