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
"""What a live migration leaves, and who ends it."""

import threading
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import libvirt
import nova.conf
import pytest
from nova import exception, objects
from nova.virt import driver as virt_driver
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_serialization import jsonutils

from tests.functional.mh_nova.hook.conftest import (
    Stock,
    make_instance,
    migrate_data,
)
from tests.unit.mh_nova.hook.fake_agent import INSTANCE, FakeAgent, no

CONF = nova.conf.CONF
ROLLED_BACK = "rollback_live_migration_at_destination"
pytestmark = pytest.mark.usefixtures("saved", "tls", "libvirt_here", "bdms")


class Here:
    """libvirt of this host, and of the other."""

    def __init__(self) -> None:
        #: None: no such domain; else whether it is active.
        self.active: bool | None = None
        self.there: int | None = None
        self.asked: list[str] = []

    def get_guest(self, instance: Any) -> Any:
        if self.active is None:
            raise exception.InstanceNotFound(instance_id=instance.uuid)
        return SimpleNamespace(
            is_active=lambda: self.active,
            _domain=SimpleNamespace(
                abortJob=lambda: self.asked.append("abort")
            ),
        )

    def open_read_only(self, uri: str) -> Any:
        self.asked.append(uri)
        if self.there is None:
            raise libvirt.libvirtError("no way")
        state = [self.there, 1]
        return SimpleNamespace(
            lookupByUUIDString=lambda uuid: SimpleNamespace(
                state=lambda: state
            ),
            close=lambda: None,
        )


@pytest.fixture
def libvirt_here(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Here:
    here = Here()
    monkeypatch.setattr(driver._host, "get_guest", here.get_guest)
    monkeypatch.setattr(libvirt, "openReadOnly", here.open_read_only)
    return here


@pytest.fixture
def bdms(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """nova's record of what is attached."""
    found: list[Any] = []
    monkeypatch.setattr(
        objects.BlockDeviceMappingList,
        "get_by_instance_uuid",
        lambda context, uuid: found,
    )
    return found


def attached(number: int, **changes: Any) -> Any:
    connection = {"driver_volume_type": "local", "serial": str(number)}
    found = objects.BlockDeviceMapping(
        **{
            "id": number,
            "volume_id": str(uuid.UUID(int=number)),
            "source_type": "volume",
            "destination_type": "volume",
            "connection_info": jsonutils.dumps(connection),
            **dict.fromkeys(
                ("deleted", "no_device", "delete_on_termination", "encrypted"),
                False,
            ),
            **changes,
        }
    )
    for name, field in found.fields.items():
        if field.nullable and not found.obj_attr_is_set(name):
            setattr(found, name, None)
    return found


class Disconnected:
    """What nova's own methods were told to disconnect, by serial."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.found: list[tuple[str, list[str]]] = []
        for name in names:
            monkeypatch.setattr(LibvirtDriver, name, self._note(name))

    def _note(self, name: str) -> Any:
        def method(
            driver: Any,
            context: Any,
            instance: Any,
            network: Any,
            block: Any = None,
            *rest: Any,
            **words: Any,
        ) -> None:
            found = virt_driver.block_device_info_get_mapping(block)
            self.found.append(
                (name, [one["connection_info"]["serial"] for one in found])
            )

        return method


@pytest.fixture
def knows(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """nova's record of the instance."""

    def say(instance: Any) -> None:
        def get_by_uuid(context: Any, uuid: str) -> Any:
            assert context.read_deleted == "yes"
            assert uuid == INSTANCE
            if isinstance(instance, Exception):
                raise instance
            return instance

        monkeypatch.setattr(objects.Instance, "get_by_uuid", get_by_uuid)

    return say


@pytest.fixture
def came(agent: FakeAgent, stock: Stock) -> FakeAgent:
    """One of which nobody has said how it ended."""
    agent.answers["unfinished"] = {
        "ok": True,
        "incoming": [INSTANCE],
        "offered": [],
    }
    stock.replace("get_available_resource", ROLLED_BACK)
    return agent


def record(**changes: Any) -> Any:
    one = make_instance(host="node0", root_device_name="/dev/vda", **changes)
    one.get_network_info = list
    return one


# -- the destination ----------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"deleted": True}])
def test_what_is_over_goes(
    driver: Any,
    came: FakeAgent,
    stock: Stock,
    knows: Callable[[Any], None],
    changes: dict[str, Any],
) -> None:
    knows(record(**changes))
    driver.get_available_resource("node1")
    assert stock.calls == [ROLLED_BACK, "get_available_resource"]
    assert came.verbs()[-2:] == ["started", "forget"]
    assert came.asked("started")[-1]["ok"] is False


@pytest.mark.parametrize("deleted", [False, True])
def test_its_volumes_are_disconnected(
    driver: Any,
    came: FakeAgent,
    knows: Callable[[Any], None],
    bdms: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    deleted: bool,
) -> None:
    """Those that are still its own: another may have the rest by now."""
    noted = Disconnected(monkeypatch, ROLLED_BACK)
    bdms += [attached(1), attached(2, deleted=True)]
    knows(record(deleted=deleted))
    driver.get_available_resource("node1")
    assert noted.found == [(ROLLED_BACK, [] if deleted else ["1"])]


def test_what_has_arrived_is_said(
    driver: Any,
    came: FakeAgent,
    stock: Stock,
    knows: Callable[[Any], None],
) -> None:
    one = record()
    one.host = CONF.host
    knows(one)
    driver.get_available_resource("node1")
    assert stock.calls == ["get_available_resource"]
    assert [said["ok"] for said in came.asked("started")] == [True]
    assert came.asked("forget") == []


@pytest.mark.parametrize("task", ["migrating", "deleting"])
def test_what_is_under_way_is_left_alone(
    driver: Any,
    came: FakeAgent,
    stock: Stock,
    knows: Callable[[Any], None],
    task: str,
) -> None:
    knows(record(task_state=task))
    driver.get_available_resource("node1")
    assert stock.calls == ["get_available_resource"]
    assert not {"started", "forget"} & set(came.verbs())


def test_a_guest_that_runs_is_never_ended(
    driver: Any,
    came: FakeAgent,
    stock: Stock,
    knows: Callable[[Any], None],
    libvirt_here: Here,
) -> None:
    knows(record())
    libvirt_here.active = True
    driver.get_available_resource("node1")
    assert stock.calls == ["get_available_resource"]
    assert came.asked("forget") == []


def test_what_cannot_be_told_stays(
    driver: Any,
    came: FakeAgent,
    stock: Stock,
    knows: Callable[[Any], None],
) -> None:
    knows(exception.InstanceNotFound(instance_id=INSTANCE))
    driver.get_available_resource("node1")
    for answer in (
        no("agent.verb"),
        {"ok": True, "incoming": ["../x"], "offered": []},
    ):
        came.answers["unfinished"] = answer
        driver.get_available_resource("node1")
    assert set(stock.calls) == {"get_available_resource"}
    assert came.asked("forget") == []


def test_the_next_try_finds_nothing_of_the_last(
    driver: Any, came: FakeAgent, stock: Stock
) -> None:
    stock.replace("pre_live_migration")
    one = record(task_state="migrating")
    driver.pre_live_migration(None, one, None, None, None, migrate_data())
    assert stock.calls == [ROLLED_BACK, "pre_live_migration"]
    verbs = came.verbs()
    assert verbs.index("forget") < verbs.index("prepare")


def test_a_roll_back_waits_for_what_it_rolls_back(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("pre_live_migration", ROLLED_BACK)
    one = record(task_state="migrating")
    back = threading.Thread(
        target=driver.rollback_live_migration_at_destination,
        args=(None, one, None, None),
    )

    def slow(_driver: Any) -> None:
        stock.during = lambda _driver: None
        back.start()
        back.join(0.5)
        assert stock.calls == ["pre_live_migration"]

    stock.during = slow
    driver.pre_live_migration(None, one, None, None, None, migrate_data())
    back.join(10)
    assert stock.calls == ["pre_live_migration", ROLLED_BACK]


# -- the source ---------------------------------------------------------------


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch, stock: Stock) -> Stock:
    """nova's records of a migration to node3 that runs."""
    monkeypatch.setattr(
        objects.Migration,
        "get_by_instance_and_status",
        lambda context, uuid, status: SimpleNamespace(dest_compute="node3"),
    )
    monkeypatch.setattr(
        objects.ComputeNodeList,
        "get_all_by_host",
        lambda context, host: [
            SimpleNamespace(hypervisor_hostname=host, id=3)
        ],
    )
    stock.replace(
        "post_live_migration_at_source", "cleanup", "resume_state_on_host_boot"
    )
    return stock


def home(**changes: Any) -> Any:
    one = record(task_state="migrating", **changes)
    one.host = CONF.host
    one.node = CONF.host
    return one


def test_moved_while_nobody_looked(
    driver: Any, agent: FakeAgent, libvirt_here: Here, moved: Stock
) -> None:
    libvirt_here.there = libvirt.VIR_DOMAIN_RUNNING
    one = home()
    driver.live_migration_abort(one)
    assert (one.host, one.node, one.compute_id) == ("node3", "node3", 3)
    assert "node3" in libvirt_here.asked[0]
    assert moved.calls == ["post_live_migration_at_source", "cleanup"]
    assert len(agent.asked("migrate-left")) == 1
    # nova would start what it does not find here
    driver.resume_state_on_host_boot(None, one, None, None)
    assert "resume_state_on_host_boot" not in moved.calls
    driver.resume_state_on_host_boot(None, home(), None, None)
    assert "resume_state_on_host_boot" in moved.calls


def test_moved_with_its_volumes(
    driver: Any,
    libvirt_here: Here,
    moved: Stock,
    bdms: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libvirt_here.there = libvirt.VIR_DOMAIN_RUNNING
    noted = Disconnected(monkeypatch, "cleanup")
    bdms.append(attached(1))
    driver.live_migration_abort(home())
    assert noted.found == [("cleanup", ["1"])]


def test_nothing_is_done_where_its_volumes_cannot_be_told(
    driver: Any,
    libvirt_here: Here,
    moved: Stock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libvirt_here.there = libvirt.VIR_DOMAIN_RUNNING

    def fails(context: Any, uuid: str) -> Any:
        raise exception.NovaException("no")

    monkeypatch.setattr(
        objects.BlockDeviceMappingList, "get_by_instance_uuid", fails
    )
    one = home()
    with pytest.raises(exception.NovaException):
        driver.live_migration_abort(one)
    assert one.host == CONF.host
    assert moved.calls == []


@pytest.mark.parametrize("there", [None, libvirt.VIR_DOMAIN_PAUSED])
def test_in_doubt_its_disk_is_kept(
    driver: Any, libvirt_here: Here, moved: Stock, there: int | None
) -> None:
    libvirt_here.there = there
    one = home()
    with pytest.raises(exception.InstanceNotFound):
        driver.live_migration_abort(one)
    assert one.host == CONF.host
    assert moved.calls == []


def test_only_where_nobody_looks(
    driver: Any, libvirt_here: Here, moved: Stock
) -> None:
    libvirt_here.there = libvirt.VIR_DOMAIN_RUNNING
    driver.active_migrations[INSTANCE] = []
    with pytest.raises(exception.InstanceNotFound):
        driver.live_migration_abort(home())
    del driver.active_migrations[INSTANCE]
    with pytest.raises(exception.InstanceNotFound):
        driver.live_migration_abort(make_instance(trusted=False))
    # one that is here is told to stay
    libvirt_here.active = True
    driver.live_migration_abort(home())
    assert libvirt_here.asked == ["abort"]
    assert moved.calls == []


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, 1),
        ({"task_state": "migrating"}, 0),
        ({"host": "node3"}, 0),
    ],
)
def test_a_lease_that_was_offered_is_taken_back(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    knows: Callable[[Any], None],
    changes: dict[str, Any],
    taken: int,
) -> None:
    stock.replace("get_available_resource")
    agent.answers["unfinished"] = {
        "ok": True,
        "incoming": [],
        "offered": [INSTANCE],
    }
    knows(make_instance(**{"host": CONF.host, **changes}))
    driver.get_available_resource("node1")
    # again, until the key server has heard it
    agent.answers["migrate-offer"] = no("agent.kms.unavailable")
    driver.get_available_resource("node1")
    asked = agent.asked("migrate-offer")
    assert [one["destination"] for one in asked] == [""] * (2 * taken)
    assert len(stock.calls) == 2
