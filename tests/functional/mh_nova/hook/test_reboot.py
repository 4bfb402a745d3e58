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
"""Reboots, refused while the guest that they end still runs."""

from types import SimpleNamespace
from typing import Any

import libvirt
import pytest
from nova import exception
from nova.virt.libvirt.driver import LibvirtDriver

from mh_nova.hook import restore
from tests.functional.mh_nova.hook.conftest import (
    Stock,
    make_instance,
    message,
)
from tests.functional.mh_nova.hook.test_driver import XML, hard_reboot
from tests.unit.mh_nova.hook.fake_agent import FakeAgent, no

REVOKED = no("agent.kms.refused", "kms.release.revoked")


def libvirt_has(driver: Any, active: Any, saved: Any = 0) -> None:
    def answer(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    domain = SimpleNamespace(hasManagedSaveImage=lambda flags: answer(saved))
    guest = SimpleNamespace(is_active=lambda: answer(active), _domain=domain)
    driver._host = SimpleNamespace(get_guest=lambda instance: guest)


def no_domain(driver: Any) -> None:
    def missing(instance: Any) -> Any:
        raise exception.InstanceNotFound(instance_id=instance.uuid)

    driver._host = SimpleNamespace(get_guest=missing)


@pytest.mark.parametrize("answer", [REVOKED, no("agent.kms.unavailable")])
def test_a_running_guest_goes_on_where_the_key_server_refuses(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    saved: list[dict[str, str]],
    answer: dict[str, Any],
) -> None:
    stock.replace("_hard_reboot")
    libvirt_has(driver, active=True)
    agent.answers["ask-start"] = answer
    with pytest.raises(exception.NovaException) as caught:
        hard_reboot(driver, make_instance())
    assert stock.calls == []
    assert answer["error"]["event"] in message(caught.value)
    assert saved[-1]["mh_refused"] == message(caught.value)


def test_it_is_asked_before_nova_begins(
    driver: Any, agent: FakeAgent, stock: Stock, saved: Any
) -> None:
    one = make_instance()
    stock.replace("_hard_reboot", "_create_guest")
    libvirt_has(driver, active=True)
    stock.during = lambda driver: (
        driver._create_guest(None, XML, one)
        if stock.calls == ["_hard_reboot"]
        else None
    )
    hard_reboot(driver, one)
    verbs = [one for one in agent.verbs() if one not in ("ours", "status")]
    assert verbs == ["ask-start", "start", "started"]
    assert stock.calls == ["_hard_reboot", "_create_guest"]


@pytest.mark.parametrize(
    ("active", "memory", "asked"),
    [
        (True, 0, True),
        # it would be lost as well
        (False, 1, True),
        (False, 0, False),
        # who cannot tell asks
        (libvirt.libvirtError("gone"), 0, True),
        (exception.InternalError("gone"), 0, True),
    ],
)
def test_asked_where_something_would_be_lost(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    active: Any,
    memory: int,
    asked: bool,
) -> None:
    stock.replace("_hard_reboot")
    libvirt_has(driver, active, memory)
    hard_reboot(driver, make_instance())
    assert bool(agent.asked("ask-start")) is asked
    assert stock.calls == ["_hard_reboot"]


def test_a_boot_of_the_host_goes_as_ever(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("_hard_reboot")
    no_domain(driver)
    driver.resume_state_on_host_boot(None, make_instance(), [], [], {})
    assert stock.calls == ["_hard_reboot"]
    assert agent.asked("ask-start") == []


def test_a_soft_reboot_is_refused_before_the_guest_is_shut_down(
    driver: Any, agent: FakeAgent, stock: Stock, saved: Any
) -> None:
    stock.replace("_clean_shutdown", "_hard_reboot")
    libvirt_has(driver, active=True)
    agent.answers["ask-start"] = REVOKED
    with pytest.raises(exception.NovaException, match="revoked"):
        driver.reboot(None, make_instance(), [], "SOFT")
    assert stock.calls == []


def test_a_soft_reboot_asks_first_and_ends_as_a_hard_one(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock.replace("_hard_reboot")
    libvirt_has(driver, active=True)
    asked: list[int] = []

    def shutdown(driver: Any, *args: Any) -> bool:
        asked.append(len(agent.asked("ask-start")))
        libvirt_has(driver, active=False)
        return True

    monkeypatch.setattr(LibvirtDriver, "_clean_shutdown", shutdown)
    driver.reboot(None, make_instance(), [], "SOFT")
    assert asked == [1]
    assert len(agent.asked("ask-start")) == 1
    assert stock.calls == ["_hard_reboot"]


def test_a_plain_guest_is_rebooted_without_a_question(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("_hard_reboot")
    libvirt_has(driver, active=True)
    hard_reboot(driver, make_instance(trusted=False))
    assert stock.calls == ["_hard_reboot"]
    assert agent.asked("ask-start") == []


@pytest.fixture
def put_back(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a thread would write once nova has set ERROR."""
    states: list[str] = []
    monkeypatch.setattr(
        restore, "vm_state", lambda instance, state: states.append(state)
    )
    return states


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ("paused", ["paused"]),
        ("suspended", ["suspended"]),
        ("stopped", ["stopped"]),
        # nova itself leaves alone what runs
        ("active", []),
        ("error", []),
    ],
)
def test_a_refused_reboot_leaves_the_state(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    saved: Any,
    put_back: list[str],
    state: str,
    wanted: list[str],
) -> None:
    stock.replace("_hard_reboot")
    libvirt_has(driver, active=False)
    agent.answers["ask-start"] = REVOKED
    one = make_instance(vm_state=state, task_state="reboot_started_hard")
    with pytest.raises(exception.NovaException, match="revoked"):
        hard_reboot(driver, one)
    assert stock.calls == []
    assert put_back == wanted


def test_refused_at_the_gate_it_is_off(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    saved: Any,
    put_back: list[str],
) -> None:
    """E.g. after a shutdown that took so long that the key is asked for
    again."""
    stock.replace("_hard_reboot")
    libvirt_has(driver, active=False)
    agent.answers["start"] = REVOKED
    one = make_instance(task_state="reboot_started")
    stock.during = lambda driver: driver._create_guest(None, XML, one)
    with pytest.raises(exception.NovaException, match="revoked"):
        hard_reboot(driver, one)
    assert put_back == ["stopped"]


@pytest.mark.parametrize("task", ["powering-on", None])
def test_other_starts_are_novas_to_end(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    saved: Any,
    put_back: list[str],
    task: str | None,
) -> None:
    libvirt_has(driver, active=True)
    agent.answers["ask-start"] = REVOKED
    one = make_instance(vm_state="stopped", task_state=task)
    with pytest.raises(exception.NovaException, match="revoked"):
        hard_reboot(driver, one)
    assert put_back == []
