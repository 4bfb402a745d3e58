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

"""The audit chain: whatever is done to a record shows."""

import itertools

import pytest
from hypothesis import strategies as st

from mh_core import audit
from mh_core.errors import VerificationError
from tests.unit.mh_core import vectors
from tests.unit.mh_core.vectors import given

Row = tuple[bytes, bytes]


def _chain(records: list[bytes]) -> list[Row]:
    rows, head = [], audit.GENESIS
    for record in records:
        head = audit.link(head, record)
        rows.append((record, head))
    return rows


ROWS = _chain(
    [audit.encode({"seq": number, "event": "x"}) for number in range(6)]
)


def _refused(rows: list[Row]) -> None:
    with pytest.raises(VerificationError) as caught:
        audit.verify_chain(rows)
    assert caught.value.event == "core.audit.chain"


def test_a_whole_chain() -> None:
    assert audit.verify_chain(ROWS) == ROWS[-1][1]
    assert audit.verify_chain([]) == audit.GENESIS
    assert audit.verify_chain(iter(ROWS)) == ROWS[-1][1]


def test_the_rest_of_a_chain_from_a_known_head() -> None:
    assert audit.verify_chain(ROWS[3:], ROWS[2][1]) == ROWS[-1][1]
    with pytest.raises(VerificationError):
        audit.verify_chain(ROWS[3:], ROWS[1][1])


def test_hashes_are_those_of_openssl() -> None:
    head = audit.GENESIS
    cases = [c for c in vectors.load("core/digest") if c["kind"] == "audit"]
    assert len(cases) == 3
    for case in cases:
        head = audit.link(head, case["document"].encode())
        assert head.hex() == case["digest"]


@pytest.mark.parametrize("index", range(len(ROWS)))
def test_a_changed_record(index: int) -> None:
    record, stored = ROWS[index]
    for changed in (record + b" ", record[:-1], b"", record.upper()):
        rows = [*ROWS[:index], (changed, stored), *ROWS[index + 1 :]]
        _refused(rows)


@pytest.mark.parametrize("index", range(len(ROWS)))
def test_a_changed_record_with_its_hash(index: int) -> None:
    """Only who rewrites all that follows gets through; the head shows it."""
    head = ROWS[index - 1][1] if index else audit.GENESIS
    changed = (b"{}", audit.link(head, b"{}"))
    rows = [*ROWS[:index], changed, *ROWS[index + 1 :]]
    if index == len(ROWS) - 1:
        assert audit.verify_chain(rows) != ROWS[-1][1]
    else:
        _refused(rows)


@pytest.mark.parametrize("index", range(len(ROWS) - 1))
def test_a_removed_record(index: int) -> None:
    _refused(ROWS[:index] + ROWS[index + 1 :])


def test_removed_at_the_end_shows_in_the_head() -> None:
    assert audit.verify_chain(ROWS[:-1]) != audit.verify_chain(ROWS)


@pytest.mark.parametrize("index", range(len(ROWS)))
def test_a_record_twice(index: int) -> None:
    _refused([*ROWS[: index + 1], *ROWS[index:]])


def test_records_in_another_order() -> None:
    for order in itertools.permutations(range(4)):
        rows = [ROWS[number] for number in order]
        if list(order) != sorted(order):
            _refused(rows)


def test_an_inserted_record() -> None:
    for index in range(len(ROWS)):
        head = ROWS[index - 1][1] if index else audit.GENESIS
        inserted = (b"{}", audit.link(head, b"{}"))
        _refused([*ROWS[:index], inserted, *ROWS[index:]])


@pytest.mark.parametrize("stored", [b"", bytes(32), b"\xff" * 31])
def test_a_hash_of_another_kind(stored: bytes) -> None:
    _refused([(ROWS[0][0], stored)])


@given(
    st.lists(st.binary(max_size=8), max_size=5),
    st.lists(st.binary(max_size=8), max_size=5),
)
def test_different_records_have_different_heads(
    one: list[bytes], other: list[bytes]
) -> None:
    heads = [audit.verify_chain(_chain(rows)) for rows in (one, other)]
    assert (heads[0] == heads[1]) == (one == other)
