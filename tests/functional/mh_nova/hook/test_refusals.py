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

"""Refused operations, through the driver as nova loads it."""

from collections.abc import Callable
from typing import Any

import nova.conf
import pytest
from nova import exception
from nova.compute import manager, task_states

from mh_nova.hook import faults, restore
from tests.functional.mh_nova.hook.conftest import (
    IMAGE,
    Stock,
    make_instance,
    message,
)
from tests.unit.mh_nova.hook.fake_agent import (
    FakeAgent,
    no,
)

CONF = nova.conf.CONF
pytestmark = pytest.mark.usefixtures("saved")


class Manager:
    """The part of nova's manager that decides about an instance's state."""

    def __init__(self) -> None:
        self.state: str | None = None

    def _instance_update(
        self, context: Any, instance: Any, vm_state: str, task_state: Any
    ) -> None:
        self.state = vm_state

    def _set_instance_obj_error_state(
        self, instance: Any, clean_task_state: bool = False
    ) -> None:
        self.state = "error"

    def run(self, one: Any, operation: Callable[[], Any]) -> Exception:
        """nova's own context manager around a driver's operation."""
        around = manager.ComputeManager._error_out_instance_on_exception
        with pytest.raises(exception.NovaException) as caught:
            with around(self, None, one, instance_state=one.vm_state):
                operation()
        return caught.value


@pytest.mark.parametrize("state", ["active", "stopped"])
def test_suspend_leaves_the_state(
    driver: Any, agent: FakeAgent, stock: Stock, state: str
) -> None:
    stock.replace("suspend")
    one = make_instance(vm_state=state)
    nova = Manager()
    agent.answers["suspend"] = no("agent.suspend.clear")
    error = nova.run(one, lambda: driver.suspend(None, one))
    assert nova.state == state
    assert message(error).endswith("[agent.suspend.clear]")
    assert stock.calls == []


def test_snapshot(
    driver: Any, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        faults, "record", lambda c, i, n, error: told.append(str(error))
    )
    stock.replace("snapshot")
    with pytest.raises(exception.NovaException) as caught:
        driver.snapshot(None, make_instance(), IMAGE, None)
    # the manager takes these for "gone", and would say nothing
    assert not isinstance(
        caught.value,
        exception.InstanceNotFound
        | exception.InstanceNotRunning
        | exception.ImageNotFound,
    )
    assert message(caught.value).endswith("[agent.snapshot.policy]")
    assert told == [str(caught.value)]
    assert stock.calls == []


@pytest.mark.parametrize(
    ("vnic", "kind", "refused"),
    [
        ("normal", "ovs", False),
        ("macvtap", "macvtap", False),
        ("normal", "vhostuser", True),
        ("direct", "hw_veb", True),
        ("direct-physical", "hostdev_physical", True),
        ("vdpa", "ovs", True),
        ("unheard-of", "ovs", True),
    ],
)
def test_attach_interface(
    driver: Any, stock: Stock, vnic: str, kind: str, refused: bool
) -> None:
    stock.replace("attach_interface")
    vif = {"vnic_type": vnic, "type": kind}
    if refused:
        with pytest.raises(exception.NovaException) as caught:
            driver.attach_interface(None, make_instance(), None, vif)
        assert message(caught.value).endswith(
            "[hook.refused.attach-interface]"
        )
        assert stock.calls == []
    else:
        driver.attach_interface(None, make_instance(), None, vif)
        assert stock.calls == ["attach_interface"]


def test_shelve_does_not_stop_the_guest(
    driver: Any,
    stock: Stock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undone: list[str] = []
    monkeypatch.setattr(
        restore, "queued_image", lambda i: undone.append("shelve")
    )
    stock.replace("power_off")
    one = make_instance(task_state=task_states.SHELVING)
    with pytest.raises(exception.NovaException) as caught:
        driver.power_off(one, 60, 10)
    assert message(caught.value).endswith("[agent.snapshot.policy]")
    assert stock.calls == []
    assert undone == ["shelve"]


@pytest.mark.parametrize(
    "task",
    [None, task_states.POWERING_OFF, "deleting"],
)
def test_stopping_is_always_possible(
    driver: Any, agent: FakeAgent, stock: Stock, task: str | None
) -> None:
    stock.replace("power_off")
    agent.close()
    driver.power_off(make_instance(task_state=task))
    assert stock.calls == ["power_off"]
