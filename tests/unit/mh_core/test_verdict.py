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

"""Verdicts: a refusal cannot be taken for a yes."""

import pytest

from mh_core.errors import Denied, InputError, MHError
from mh_core.verdict import Event, Findings, Verdict


def test_nothing_found_is_a_yes() -> None:
    verdict = Findings().verdict()
    assert verdict.allowed
    assert verdict
    verdict.require()


def test_anything_found_is_a_no_with_every_reason() -> None:
    findings = Findings()
    findings.add("core.test.one", "first")
    findings.note(InputError("core.test.two", "second"))
    verdict = findings.verdict()
    assert not verdict.allowed
    assert not verdict
    assert verdict.events == (
        Event("core.test.one", "first"),
        Event("core.test.two", "second"),
    )
    with pytest.raises(Denied) as caught:
        verdict.require()
    assert caught.value.event == "core.test.one"
    assert caught.value.message == "first"


def test_a_refusal_without_a_reason_is_one() -> None:
    with pytest.raises(Denied) as caught:
        Verdict(False).require()
    assert caught.value.event == "core.verdict.empty"


def test_a_note_in_a_yes_does_not_refuse() -> None:
    Verdict(True, (Event("core.test.passed"),)).require()


def test_a_verdict_does_not_change_afterwards() -> None:
    findings = Findings()
    verdict = findings.verdict()
    findings.add("core.test", "late")
    assert verdict.events == ()
    with pytest.raises(AttributeError):
        verdict.allowed = False  # type: ignore[misc]


def test_an_error_names_its_event() -> None:
    error = MHError("core.test", "a sentence")
    assert str(error) == "a sentence [core.test]"
