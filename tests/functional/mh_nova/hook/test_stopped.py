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
"""A guest that the agent stopped: its owner is told, nova goes on."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from nova import exception, objects
from nova.virt import event as virtevent
from nova.virt.libvirt.driver import LibvirtDriver

from mh_nova.hook.operations.stopped import Stopped
from tests.functional.mh_nova.hook.conftest import (
    Stock,
    make_instance,
    message,
)
from tests.unit.mh_nova.hook.fake_agent import (
    INSTANCE,
    TRUSTED,
    FakeAgent,
    no,
)


class Driver(Stopped):
    """Of a driver only what this is about."""

    def __init__(self, agent: FakeAgent) -> None:
        self._mh_client = agent.client()
        self._mh_decide = self._mh_protected = lambda instance: True
        self._mh_require = lambda: None


class Server:
    """nova's record of it."""

    def __init__(self) -> None:
        self.uuid = INSTANCE
        self.metadata: dict[str, str] = {}
        self.saved = 0

    def save(self) -> None:
        self.saved += 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(
        objects.Instance, "get_by_uuid", lambda *args, **kwargs: server
    )
    return server


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Events that reached nova."""
    seen: list[Any] = []
    monkeypatch.setattr(
        LibvirtDriver, "emit_event", lambda self, event: seen.append(event)
    )
    return seen


Driver.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


def stopped(kind: int = virtevent.EVENT_LIFECYCLE_STOPPED) -> Any:
    return virtevent.LifecycleEvent(INSTANCE, kind)


def lease(why: str) -> dict[str, Any]:
    return {"ok": True, "lease": "c#1", "ends_in": 0, "stopped": why}


def test_told(agent: FakeAgent, server: Server, passed: list[Any]) -> None:
    agent.answers["lease"] = lease("its lease ended: agent.kms.refused")
    event = stopped()
    Driver(agent).emit_event(event)
    assert server.metadata["mh_refused"] == (
        "Trusted guest stopped: its lease ended: agent.kms.refused"
        " [agent.lease.stopped]"
    )
    assert server.saved == 1
    assert passed == [event]


def test_stopped_by_somebody_else(
    agent: FakeAgent, server: Server, passed: list[Any]
) -> None:
    Driver(agent).emit_event(stopped())
    assert (server.metadata, len(passed)) == ({}, 1)


def test_another_event_asks_nobody(
    agent: FakeAgent, server: Server, passed: list[Any]
) -> None:
    agent.answers["lease"] = lease("x")
    Driver(agent).emit_event(stopped(virtevent.EVENT_LIFECYCLE_STARTED))
    assert agent.asked("lease") == []
    assert len(passed) == 1


@pytest.mark.parametrize("answer", [None, b"x", no("agent.verb.unknown")])
def test_nova_hears_of_it_in_any_case(
    agent: FakeAgent, server: Server, passed: list[Any], answer: Any
) -> None:
    agent.answers["lease"] = answer
    Driver(agent).emit_event(stopped())
    assert len(passed) == 1


def test_a_server_that_is_gone(
    agent: FakeAgent, passed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: Any, **kwargs: Any) -> Any:
        raise exception.InstanceNotFound(instance_id=INSTANCE)

    monkeypatch.setattr(objects.Instance, "get_by_uuid", gone)
    agent.answers["lease"] = lease("x")
    Driver(agent).emit_event(stopped())
    assert len(passed) == 1


# -- a start that was refused is said, whichever way it was asked for --------


def _gone(*args: Any) -> Any:
    raise exception.InstanceNotFound(instance_id=INSTANCE)


def _start(driver: Any, instance: Any) -> None:
    driver._host = SimpleNamespace(get_guest=_gone)
    driver.power_on(None, instance, None, [])


def _reboot(driver: Any, instance: Any) -> None:
    driver._host = SimpleNamespace(get_guest=_gone)
    driver.reboot(None, instance, None, "HARD", [])


def _boot(driver: Any, instance: Any) -> None:
    driver._host = SimpleNamespace(get_guest=_gone)
    driver.resume_state_on_host_boot(None, instance, None, [], [])


WAYS = [_start, _reboot, _boot]


@pytest.mark.parametrize("way", WAYS)
def test_refused_by_the_host(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    saved: list[dict[str, str]],
    way: Callable[[Any, Any], None],
) -> None:
    """Before nova touches the guest."""
    stock.replace("_hard_reboot")
    finding = {"event": "agent.guard.tmpfs", "message": "not on tmpfs"}
    agent.answers["status"] = {
        **TRUSTED,
        "trusted": False,
        "findings": [finding],
    }
    with pytest.raises(exception.NovaException) as caught:
        way(driver, make_instance())
    assert stock.calls == []
    assert "agent.guard.tmpfs" in message(caught.value)
    assert saved[-1]["mh_refused"] == message(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_refused_by_the_key_server(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    saved: list[dict[str, str]],
    way: Callable[[Any, Any], None],
) -> None:
    """At the gate, amid nova's own start."""
    one = make_instance()
    stock.replace("_hard_reboot")
    stock.during = lambda driver: driver._create_guest(None, "<domain/>", one)
    agent.answers["start"] = no("agent.kms.refused", "kms.release.revoked")
    with pytest.raises(exception.NovaException) as caught:
        way(driver, one)
    assert "kms.release.revoked" in message(caught.value)
    assert saved[-1]["mh_refused"] == message(caught.value)
