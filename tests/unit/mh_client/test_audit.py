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
"""Audit records as people see them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mh_client.audit import entry

RECORD: dict[str, Any] = {
    "seq": 7,
    "audit": "chain#3",
    "event": "kms.release.granted",
    "time": 1700000000,
    "key_id": "k",
    "detail": "",
    "purpose": "launch",
    "host": "node1",
    "claims": {"instance": "i", "host": "claimed", "project": "p"},
}


def test_a_release() -> None:
    found = entry(RECORD)
    assert (found.number, found.event) == (7, "kms.release.granted")
    assert found.time == "2023-11-14T22:13:20Z"
    assert (found.host, found.instance) == ("node1", "i")
    assert found.release
    assert found.granted


def test_a_host_that_proved_nothing_is_a_claim() -> None:
    record = {k: v for k, v in RECORD.items() if k != "host"}
    assert entry(record).host == "claimed"


@pytest.mark.parametrize("event", ["kms.release.ticket", "kms.key.created"])
def test_only_one_event_is_a_grant(event: str) -> None:
    assert not entry({**RECORD, "event": event}).granted


@given(
    st.dictionaries(
        st.sampled_from([*RECORD, "request", "record"]),
        st.none()
        | st.text()
        | st.integers()
        | st.dictionaries(st.sampled_from([*RECORD]), st.integers()),
    )
)
def test_any_record_can_be_shown(record: dict[str, Any]) -> None:
    found = entry(record)
    assert isinstance(found.time, str)
    assert isinstance(found.number, int)


def test_a_move_is_said() -> None:
    """A host that asks for what another one ran."""
    moved = {**RECORD, "detail": "", "previous_host": "node2"}
    assert entry(moved).detail == "was on node2 before"
    refused = {**moved, "detail": "core.akcert.issuer"}
    assert entry(refused).detail == "core.akcert.issuer"
