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

"""A refused rescue and shelve, through nova's own manager methods and a
real database; only what would need other services is left out."""

import functools
import inspect
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from nova import context as nova_context
from nova import exception, objects
from nova.compute import manager, task_states, vm_states
from nova.compute import utils as compute_utils
from nova.db.main import api as db_api
from nova.db.main import models
from nova.virt.libvirt.driver import LibvirtDriver

from mh_nova.hook import restore
from tests.functional.mh_nova.hook.conftest import IMAGE, OTHER, Glance
from tests.unit.mh_nova.hook.fake_agent import (
    INSTANCE,
    TRUSTED,
    FakeAgent,
    no,
)

CONTEXT = nova_context.get_admin_context()


@pytest.fixture(scope="module", autouse=True)
def database(tmp_path_factory: pytest.TempPathFactory) -> None:
    _database(tmp_path_factory.getbasetemp() / "nova.sqlite")


@functools.cache
def _database(path: Path) -> None:
    """Once for a run: other modules have this fixture, too, and nova's
    database layer is started only once."""
    db_api.context_manager.configure(connection=f"sqlite:///{path}")
    engine = db_api.get_engine()

    # as on a server's database, two writers wait for each other: SQLite
    # fails a transaction that read before another one wrote
    @sqlalchemy.event.listens_for(engine, "begin")
    def lock(connection: sqlalchemy.Connection) -> None:
        raw: Any = connection.connection.driver_connection
        # in place of the BEGIN of oslo.db, after which nothing was read yet
        raw.commit()
        raw.execute("BEGIN IMMEDIATE")

    models.BASE.metadata.create_all(engine)


@pytest.fixture
def instance() -> Iterator[objects.Instance]:
    one = objects.Instance(
        CONTEXT,
        uuid=INSTANCE,
        project_id="project",
        user_id="user",
        host="node1",
        image_ref=OTHER,
        vm_state=vm_states.ACTIVE,
        task_state=task_states.RESCUING,
        system_metadata={"image_mh_version": "1"},
        flavor=objects.Flavor(
            id=1,
            name="f",
            flavorid="1",
            memory_mb=64,
            vcpus=1,
            root_gb=0,
            ephemeral_gb=0,
            swap=0,
            rxtx_factor=1.0,
            vcpu_weight=0,
            disabled=False,
            is_public=True,
            extra_specs={},
        ),
    )
    one.create()
    yield objects.Instance.get_by_uuid(CONTEXT, INSTANCE)
    left = objects.Instance.get_by_uuid(CONTEXT, INSTANCE)
    left.destroy(hard_delete=True)


class Manager(manager.ComputeManager):
    """nova's manager without its start, which needs all of a cloud."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.host = "node1"
        self.notifier = None
        self.network_api = SimpleNamespace(
            get_instance_nw_info=lambda context, instance: []
        )
        self.image_api = None
        self.rt = SimpleNamespace(update_usage=lambda *args: None)
        self.share_manager = SimpleNamespace(
            get_share_info=lambda context, instance: objects.ShareMappingList(
                objects=[]
            ),
            mount_all=lambda *args: None,
            umount_all=lambda *args: None,
        )

    def _get_rescue_image(self, *args: Any) -> Any:
        return objects.ImageMeta.from_dict({"id": IMAGE, "properties": {}})

    def _get_instance_block_device_info(self, *args: Any, **kwargs: Any):  # type: ignore[no-untyped-def]
        return {}

    def _notify_about_instance_usage(self, *args: Any, **kwargs: Any) -> None:
        return None

    def _get_image_name(self, image: Any) -> str:
        return ""

    def _get_power_off_values(self, *args: Any) -> tuple[int, int]:
        return (0, 0)


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "notify_about_instance_rescue_action",
        "notify_about_instance_action",
        "notify_usage_exists",
    ):
        monkeypatch.setattr(compute_utils, name, lambda *a, **k: None)
    monkeypatch.setattr(
        LibvirtDriver,
        "power_off",
        lambda *args: pytest.fail("the guest was stopped"),
    )


def now() -> tuple[str, str | None]:
    fresh = objects.Instance.get_by_uuid(CONTEXT, INSTANCE)
    return fresh.vm_state, fresh.task_state


def wait_for(state: str) -> tuple[str, str | None]:
    deadline = time.monotonic() + 5
    while now()[0] != state and time.monotonic() < deadline:
        time.sleep(0.05)
    return now()


@pytest.mark.parametrize("state", [vm_states.ACTIVE, vm_states.STOPPED])
def test_a_refused_rescue_leaves_the_server_as_it_was(
    driver: Any,
    agent: FakeAgent,
    instance: objects.Instance,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
) -> None:
    quiet(monkeypatch)
    agent.answers["make-rescue"] = no("agent.rescue.stranger")
    instance.vm_state = state
    instance.save()
    # below nova's RPC decorators, of which reverts_task_state matters
    undecorated = manager.ComputeManager.rescue_instance
    while undecorated.__name__ != "rescue_instance" or hasattr(
        undecorated, "__wrapped__"
    ):
        undecorated = undecorated.__wrapped__
    reverting = manager.reverts_task_state(undecorated)
    with pytest.raises(exception.InstanceNotRescuable) as caught:
        reverting(
            Manager(driver),
            CONTEXT,
            instance=instance,
            rescue_password=None,
            rescue_image_ref=None,
            clean_shutdown=True,
        )
    assert "agent.rescue.stranger" in str(caught.value)
    assert wait_for(state) == (state, None)


def test_a_refused_shelve_leaves_the_server_and_no_image(
    driver: Any,
    instance: objects.Instance,
    glance: Glance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet(monkeypatch)
    instance.task_state = task_states.SHELVING
    instance.save()
    deleted: list[str] = []
    found = [
        {
            "id": "queued",
            "status": "queued",
            "properties": {"instance_uuid": INSTANCE},
        },
        # what Glance would not send, but must not be lost if it did
        {
            "id": "active",
            "status": "active",
            "properties": {"instance_uuid": INSTANCE},
        },
        {"id": "foreign", "status": "queued", "properties": {}},
    ]
    glance.get_all = lambda context, filters: found  # type: ignore[attr-defined]
    glance.delete = lambda context, image: deleted.append(image)  # type: ignore[attr-defined]

    def shelve(self: Any, context: Any, instance: Any) -> None:
        self._shelve_instance(context, instance, "queued", False)

    with pytest.raises(exception.NovaException) as caught:
        manager.reverts_task_state(shelve)(
            Manager(driver), CONTEXT, instance=instance
        )
    assert "agent.snapshot.policy" in str(caught.value)
    assert deleted == ["queued"]
    assert now() == (vm_states.ACTIVE, None)


def test_somebody_elses_later_state_is_kept(
    instance: objects.Instance,
) -> None:
    thread = restore.vm_state(instance, instance.vm_state, seconds=1.5)
    assert thread is not None
    instance.vm_state = vm_states.ERROR
    instance.task_state = task_states.DELETING
    instance.save()
    thread.join(5)
    assert now() == (vm_states.ERROR, task_states.DELETING)


def test_a_server_that_is_deleted_meanwhile(
    instance: objects.Instance,
) -> None:
    gone = SimpleNamespace(uuid=OTHER, vm_state=vm_states.ACTIVE)
    thread = restore.vm_state(gone, gone.vm_state, seconds=5)
    assert thread is not None
    thread.join(2)
    assert not thread.is_alive()


def test_nothing_to_put_back(instance: objects.Instance) -> None:
    assert restore.vm_state(instance, vm_states.ERROR) is None


def test_a_glance_that_does_not_answer(
    instance: objects.Instance, glance: Glance
) -> None:
    def fail(context: Any, filters: Any) -> Any:
        raise exception.GlanceConnectionFailed(server="x", reason="y")

    glance.get_all = fail  # type: ignore[attr-defined]
    restore.queued_image(instance)


def test_a_refused_snapshot_stands_in_the_servers_action_log(
    driver: Any, instance: objects.Instance
) -> None:
    context = nova_context.get_admin_context()
    objects.InstanceAction.action_start(
        context, INSTANCE, "createImage", want_result=False
    )
    with pytest.raises(exception.NovaException):
        driver.snapshot(context, instance, OTHER, None)
    action = objects.InstanceAction.get_by_request_id(
        context, INSTANCE, context.request_id
    )
    (event,) = objects.InstanceActionEventList.get_by_action(
        context, action.id
    )
    assert event.event == "mh_snapshot"
    assert event.result == "Error"
    assert event.details.endswith("[agent.snapshot.policy]")


def test_a_snapshot_that_nobody_asked_for_is_refused_too(
    driver: Any, instance: objects.Instance
) -> None:
    with pytest.raises(exception.NovaException, match="agent.snapshot.policy"):
        driver.snapshot(
            nova_context.get_admin_context(), instance, OTHER, None
        )


def test_a_volume_is_refused_before_cinder_hears_of_it(
    driver: Any, agent: FakeAgent, instance: objects.Instance
) -> None:
    """nova's API waits for this call; InvalidVolume is its 400."""
    agent.answers["status"] = {
        **TRUSTED,
        "trusted": False,
        "findings": [{"event": "agent.guard.swap", "message": "swap"}],
    }
    instance.task_state = None
    instance.save()
    with pytest.raises(exception.InvalidVolume) as caught:
        inspect.unwrap(manager.ComputeManager.reserve_block_device_name)(
            Manager(driver),
            CONTEXT,
            instance,
            None,
            OTHER,
            None,
            None,
            None,
            False,
        )
    assert "[agent.guard.swap]" in str(caught.value)
    bdms = objects.BlockDeviceMappingList.get_by_instance_uuid(
        CONTEXT, INSTANCE
    )
    assert list(bdms) == []
