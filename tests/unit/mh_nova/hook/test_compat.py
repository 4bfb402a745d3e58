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

import copy

import pytest

from mh_core.errors import Denied
from mh_nova.hook import compat

TESTED = {
    "m:C.a": {"signature": "(self)", "sha256": "00"},
    "m:C.b": {"signature": "(self, x)", "sha256": "01"},
}


def test_equal() -> None:
    assert compat.compare(TESTED, copy.deepcopy(TESTED)) == ()


def test_another_source_is_a_finding() -> None:
    found = copy.deepcopy(TESTED)
    found["m:C.b"]["sha256"] = "ff"
    (event,) = compat.compare(TESTED, found)
    assert event.id == "hook.compat.source"
    assert event.detail.endswith(": b")


def test_another_signature_ends_the_start() -> None:
    found = copy.deepcopy(TESTED)
    found["m:C.a"]["signature"] = "(self, new=None)"
    with pytest.raises(Denied) as caught:
        compat.compare(TESTED, found)
    assert caught.value.event == "hook.compat.signature"
    assert caught.value.message.endswith(": a")


@pytest.mark.parametrize("side", [0, 1])
def test_a_method_that_is_missing(side: int) -> None:
    sides = [copy.deepcopy(TESTED), copy.deepcopy(TESTED)]
    del sides[side]["m:C.a"]
    with pytest.raises(Denied) as caught:
        compat.compare(*sides)
    assert caught.value.event == "hook.compat.signature"


def test_a_target_that_nova_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        compat, "TARGETS", {"nova.virt.images": ("no_such_function",)}
    )
    with pytest.raises(Denied) as caught:
        compat.current()
    assert caught.value.event == "hook.compat.missing"


def test_no_record_of_an_unknown_version() -> None:
    assert compat.recorded("0.0.0") is None
    assert compat.recorded("../__init__") is None


def test_another_series_is_a_finding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compat.metadata, "version", lambda name: "35.0.0")
    assert "hook.compat.version" in [e.id for e in compat.check()]
