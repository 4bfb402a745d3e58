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
"""Between a claim and its spawn: the key is asked for, nothing is decided."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from nova import context as nova_context
from nova import exception
from oslo_context import context as oslo_context

from tests.functional.mh_nova.hook.conftest import (
    Glance,
    Stock,
    make_instance,
    message,
)
from tests.unit.mh_nova.hook.fake_agent import INSTANCE, TRUSTED, FakeAgent
from tests.unit.mh_nova.hook.test_properties import IMAGE

pytestmark = pytest.mark.usefixtures("saved")


@pytest.fixture(autouse=True)
def current() -> Iterator[None]:
    """nova's manager has one whenever it calls the driver."""
    before = oslo_context.get_current()
    nova_context.RequestContext("user", "project", overwrite=True)
    yield
    if before is not None:
        before.update_store()


def spawn(driver: Any, instance: Any, info: Any = None) -> None:
    driver.spawn(None, instance, None, [], "", {}, block_device_info=info)


def test_the_launch_finds_it_done(
    driver: Any, agent: FakeAgent, glance: Glance, stock: Stock
) -> None:
    stock.replace("spawn")
    one = make_instance()
    driver.prepare_for_spawn(one)
    spawn(driver, one)
    (request,) = agent.asked("prepare")
    assert request["purpose"] == "launch"
    assert stock.calls == ["spawn"]
    # nobody is asked about a plain one, and the next starts from nothing
    driver.prepare_for_spawn(make_instance(trusted=False))
    assert len(agent.asked("prepare")) == 1
    spawn(driver, one)
    assert len(agent.asked("prepare")) == 2


def test_other_disks_than_the_flavor_says(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("spawn")
    one = make_instance()
    driver.prepare_for_spawn(one)
    swap = {"device_name": "/dev/vdb", "swap_size": 64}
    spawn(driver, one, {"swap": swap})
    first, second = agent.asked("prepare")
    assert [disk["name"] for disk in first["disks"]] == ["disk"]
    assert [disk["name"] for disk in second["disks"]] == ["disk", "disk.swap"]


def test_a_host_without_trust_asks_for_nothing(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("spawn")
    agent.answers["status"] = {**TRUSTED, "trusted": False}
    one = make_instance()
    driver.prepare_for_spawn(one)
    with pytest.raises(exception.BuildAbortException):
        spawn(driver, one)
    assert stock.calls == []
    assert agent.asked("prepare") == []


def test_a_refusal_is_told_by_the_launch(
    driver: Any, agent: FakeAgent, glance: Glance, stock: Stock
) -> None:
    stock.replace("spawn")
    glance.images.pop(IMAGE)
    one = make_instance()
    driver.prepare_for_spawn(one)
    with pytest.raises(exception.BuildAbortException) as caught:
        spawn(driver, one)
    assert "hook.image.missing" in message(caught.value)
    assert stock.calls == []


def test_a_launch_that_never_comes_is_forgotten(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("spawn")
    one = make_instance()
    driver.prepare_for_spawn(one)
    driver.failed_spawn_cleanup(one)
    # the guard looks now and then
    assert [v for v in agent.verbs() if v != "status"][-1] == "forget"
    assert agent.asked("forget")[0]["instance"] == INSTANCE
    driver.failed_spawn_cleanup(make_instance(trusted=False))
    assert len(agent.asked("forget")) == 1


@pytest.mark.parametrize("how", ["refused", "deleted"])
def test_a_launch_that_ends_before_it_is_taken(
    driver: Any,
    agent: FakeAgent,
    glance: Glance,
    stock: Stock,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """As in nova's ``_build_resources``, which only shuts it down then; the
    image service answers later still."""
    stock.replace("spawn", "_cleanup")
    asks, go, real = threading.Event(), threading.Event(), glance.get

    def slow(*args: Any, **kwargs: Any) -> Any:
        asks.set()
        assert go.wait(10)
        return real(*args, **kwargs)

    monkeypatch.setattr(glance, "get", slow)
    kernel = "k" if how == "refused" else ""
    one = make_instance(kernel_id=kernel, vm_state="building")
    driver.prepare_for_spawn(one)
    assert asks.wait(10)
    if how == "refused":
        with pytest.raises(exception.BuildAbortException):
            spawn(driver, one)
        assert agent.verbs()[-1] == "forget"
    driver._cleanup(None, one, None, cleanup_instance_disks=True)
    assert agent.verbs()[-1] == "forget"
    go.set()
    driver._mh_launcher._early._workers.shutdown(wait=True)
    assert agent.asked("prepare") == []


def test_without_a_context_it_waits_for_the_launch(
    driver: Any, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oslo_context, "get_current", lambda: None)
    driver.prepare_for_spawn(make_instance())
    assert agent.asked("prepare") == []
