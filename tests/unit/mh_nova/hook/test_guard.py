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

import logging

import pytest

from mh_core.errors import Denied
from mh_core.verdict import Event
from mh_nova.hook.guard import Guard
from tests.unit.mh_nova.hook.fake_agent import TRUSTED, FakeAgent

UNTRUSTED = {
    **TRUSTED,
    "trusted": False,
    "findings": [
        {"event": "agent.guard.tmpfs", "message": "not on tmpfs"},
        {"event": "agent.guard.core", "message": "core dumps"},
    ],
}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def guard(
    agent: FakeAgent, clock: Clock, own: tuple[Event, ...] = ()
) -> Guard:
    return Guard(agent.client(), own, 5, clock)


def test_an_answer_is_used_for_a_while(agent: FakeAgent) -> None:
    clock = Clock()
    one = guard(agent, clock)
    assert one.trusted()
    agent.answers["status"] = UNTRUSTED
    clock.now = 4.9
    assert one.trusted()
    clock.now = 5.0
    assert not one.trusted()
    assert agent.verbs() == ["status", "status"]


def test_a_launch_asks_afresh(agent: FakeAgent) -> None:
    one = guard(agent, Clock())
    assert one.trusted()
    agent.answers["status"] = UNTRUSTED
    with pytest.raises(Denied) as caught:
        one.require()
    assert caught.value.event == "agent.guard.tmpfs"
    assert not one.trusted()


def test_no_agent_is_a_finding(agent: FakeAgent) -> None:
    one = guard(agent, Clock())
    agent.close()
    assert [e.id for e in one.findings()] == ["hook.agent.unavailable"]
    with pytest.raises(Denied):
        one.require()


def test_untrusted_without_a_reason(agent: FakeAgent) -> None:
    agent.answers["status"] = {**TRUSTED, "trusted": False}
    one = guard(agent, Clock())
    assert [e.id for e in one.findings()] == ["hook.guard.untrusted"]


def test_the_hooks_own_finding_outlives_a_trusting_agent(
    agent: FakeAgent,
) -> None:
    one = guard(agent, Clock(), (Event("hook.compat.source", "changed"),))
    assert not one.trusted()
    with pytest.raises(Denied) as caught:
        one.require()
    assert caught.value.event == "hook.compat.source"


def test_logged_once_per_change(
    agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    one = guard(agent, clock)
    for answer in (UNTRUSTED, UNTRUSTED, TRUSTED, TRUSTED):
        agent.answers["status"] = answer
        one.findings(fresh=True)
    lines = [
        r.getMessage() for r in caplog.records if "trusted launch" in r.msg
    ]
    assert len(lines) == 3
    assert lines[0].endswith("not on tmpfs [agent.guard.tmpfs]")
    assert lines[2] == "This host may carry trusted launches"
