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

"""VM reports: claims and their digest."""

import dataclasses
from typing import Any

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from mh_core.encoding import canonical_json, parse_json
from mh_core.vm_report import MAX_VERDICTS, VmClaims
from tests.unit.mh_core import vectors
from tests.unit.mh_core.vectors import given, outcome

CASE = next(c for c in vectors.load("core/digest") if c["kind"] == "vm-claims")
GOOD: dict[str, Any] = CASE["document"]
FIELDS = [field.name for field in dataclasses.fields(VmClaims)]
_HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
_LINES = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Cf")),
    max_size=32,
)
CLAIMS = st.builds(
    VmClaims,
    instance=st.uuids().map(str),
    project=_LINES,
    image=st.uuids().map(str),
    key_id=st.uuids().map(str),
    kms_origin=_LINES,
    host=_LINES,
    purpose=_LINES,
    manifest_digest=_HEX,
    domain_digest=_HEX,
    request_digest=_HEX,
    started_at=st.integers(0, 1 << 40),
    measured=st.dictionaries(_LINES, _LINES, max_size=3),
)


def test_the_digest_is_that_of_openssl() -> None:
    assert VmClaims.parse(GOOD).digest().hex() == CASE["digest"]


@given(CLAIMS)
def test_what_is_written_is_read(claims: VmClaims) -> None:
    document = parse_json(canonical_json(claims.to_dict()))
    assert VmClaims.parse(document) == claims
    assert VmClaims.parse(document).digest() == claims.digest()


@given(CLAIMS, CLAIMS, st.sampled_from(FIELDS))
def test_the_digest_covers_every_field(
    claims: VmClaims, other: VmClaims, name: str
) -> None:
    value = getattr(other, name)
    assume(value != getattr(claims, name))
    changed = dataclasses.replace(claims, **{name: value})
    assert changed.digest() != claims.digest()


BAD: dict[str, list[Any]] = {
    "instance": ["", GOOD["instance"].upper(), None],
    "project": ["p" * 65, "a\nb", "\x1b", "\ud800", 1],
    "image": ["x", None],
    "key_id": ["x", None],
    "kms_origin": ["a" * 256, "a\nb", None],
    "host": ["a" * 256, "\u202e", None],
    "purpose": ["a" * 33, "\0", None],
    "manifest_digest": ["", "12" * 31, "AB" * 32],
    "domain_digest": ["", "12" * 33, 1],
    "request_digest": ["", "zz" * 32, None],
    "started_at": [-1, (1 << 40) + 1, True, "1", None],
    "measured": [
        None,
        [],
        {"a": None},
        {"a": 1},
        {"a": {}},
        {"a" * 4401: "ok"},
        {f"a{number}": "ok" for number in range(MAX_VERDICTS + 1)},
        {"a": "o" * 256},
        {"a\n": "ok"},
        {"a": "ok\nfailed"},
    ],
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_member_that_is_wrong_or_missing(name: str) -> None:
    assert BAD[name]
    for value in BAD[name]:
        found = outcome(VmClaims.parse, {**GOOD, name: value})
        assert found == "core.vm-report", value
    without = {key: value for key, value in GOOD.items() if key != name}
    assert outcome(VmClaims.parse, without) == "core.vm-report"


def test_a_member_that_is_not_known() -> None:
    assert outcome(VmClaims.parse, {**GOOD, "x": 1}) == "core.vm-report"


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters(exclude_categories=()), max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(FIELDS) | st.text(max_size=3),
                inner,
                max_size=3,
            )
        ),
        max_leaves=6,
    ),
    st.sampled_from(FIELDS),
)
def test_any_value(value: Any, name: str) -> None:
    assert outcome(VmClaims.parse, value) == "core.vm-report"
    found = outcome(VmClaims.parse, {**GOOD, name: value})
    assert found in ("ok", "core.vm-report")
