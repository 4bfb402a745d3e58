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

"""After a death, on nova's side: against nova's own database layer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nova.conf
import pytest
from keystoneauth1 import exceptions as keystone
from nova import exception, objects
from nova.compute import power_state, task_states, vm_states
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_concurrency import processutils

from mh_core.errors import Denied
from mh_nova.hook import recover
from mh_nova.hook.agent_client import AgentClient
from mh_nova.hook.operations import snapshot
from tests.functional.mh_nova.hook import test_restore
from tests.functional.mh_nova.hook.conftest import OTHER, Stock
from tests.unit.mh_nova.hook.fake_agent import INSTANCE, FakeAgent, no

CONTEXT = test_restore.CONTEXT
database = test_restore.database
instance = test_restore.instance


@pytest.fixture
def forgetting(agent: FakeAgent) -> recover.Forgetting:
    return recover.Forgetting(AgentClient(agent.path, 5, 5))


def forgotten(agent: FakeAgent) -> list[str]:
    return [one["instance"] for one in agent.seen if one["verb"] == "forget"]


def abandons(agent: FakeAgent, *instances: str) -> None:
    agent.answers["abandoned"] = {"ok": True, "instances": list(instances)}
    agent.answers["forget"] = {"ok": True}


# What the agent alone has on record


def test_unknown_to_nova(
    agent: FakeAgent, forgetting: recover.Forgetting
) -> None:
    abandons(agent, OTHER)
    forgetting.step()
    assert forgotten(agent) == [OTHER]


@pytest.mark.parametrize(
    ("host", "task", "gone"),
    [
        # say, its file system is not mounted
        ("node1", None, False),
        ("node1", task_states.SPAWNING, False),
        # nova takes the host of a failed build away
        (None, None, True),
        ("node2", None, True),
        # on its way: perhaps to here
        (None, task_states.SPAWNING, False),
        ("node2", task_states.MIGRATING, False),
    ],
)
def test_known_to_nova(
    agent: FakeAgent,
    forgetting: recover.Forgetting,
    instance: objects.Instance,
    host: str | None,
    task: str | None,
    gone: bool,
) -> None:
    instance.host, instance.task_state = host, task
    instance.save()
    abandons(agent, INSTANCE)
    forgetting.step()
    assert forgotten(agent) == ([INSTANCE] if gone else [])


def test_deleted_by_nova(
    agent: FakeAgent, forgetting: recover.Forgetting
) -> None:
    gone = objects.Instance(
        CONTEXT, uuid=OTHER, project_id="p", user_id="u", host="node1"
    )
    gone.create()
    gone.destroy()
    abandons(agent, OTHER)
    forgetting.step()
    assert forgotten(agent) == [OTHER]


def test_not_asked_all_the_time(agent: FakeAgent) -> None:
    now = [0.0]
    forgetting = recover.Forgetting(
        AgentClient(agent.path, 5, 5), clock=lambda: now[0]
    )
    abandons(agent)
    forgetting.step()
    forgetting.step()
    assert len(agent.seen) == 1
    now[0] = recover.PAUSE
    forgetting.step()
    assert len(agent.seen) == 2


@pytest.mark.parametrize(
    "answer",
    [
        None,
        no("agent.libvirt"),
        {"ok": True, "instances": ["../etc"]},
        {"ok": True, "instances": [OTHER] * 257},
    ],
)
def test_the_agent_does_not_say(
    agent: FakeAgent, forgetting: recover.Forgetting, answer: Any
) -> None:
    agent.answers["abandoned"] = answer
    forgetting.step()
    assert forgotten(agent) == []


# What nova-compute was in the middle of


def fault(instance: objects.Instance) -> str:
    found = objects.InstanceFault.get_latest_for_instance(
        CONTEXT, instance.uuid
    )
    return "" if found is None else str(found.message)


@pytest.mark.parametrize(
    ("state", "task", "said"),
    [
        (vm_states.BUILDING, task_states.SPAWNING, True),
        (vm_states.BUILDING, None, True),
        (vm_states.SHELVED_OFFLOADED, task_states.SPAWNING, True),
        (vm_states.ACTIVE, task_states.REBUILD_SPAWNING, True),
        (vm_states.ACTIVE, None, False),
        (vm_states.ACTIVE, task_states.IMAGE_UPLOADING, False),
        (vm_states.ACTIVE, task_states.RESIZE_MIGRATED, False),
    ],
)
def test_a_build(
    instance: objects.Instance, state: str, task: str | None, said: bool
) -> None:
    """nova itself sets it in ERROR right after."""
    instance.vm_state, instance.task_state = state, task
    instance.save()
    recover.broken_off(CONTEXT, instance)
    assert ("[hook.launch.broken-off]" in fault(instance)) is said
    assert instance.vm_state == state


def moved(
    instance: objects.Instance, task: str, status: str, source: str = "node2"
) -> objects.Migration:
    """To node1."""
    migration = objects.Migration(
        CONTEXT,
        instance_uuid=instance.uuid,
        source_compute=source,
        dest_compute="node1",
        status=status,
        migration_type="migration",
    )
    migration.create()
    instance.task_state = task
    instance.migration_context = objects.MigrationContext(
        CONTEXT,
        instance_uuid=instance.uuid,
        migration_id=migration.id,
    )
    instance.save()
    return migration


def test_an_arrival(instance: objects.Instance) -> None:
    """nova would leave it between two states."""
    migration = moved(instance, task_states.RESIZE_FINISH, "post-migrating")
    recover.broken_off(CONTEXT, instance)
    instance.refresh()
    assert (instance.vm_state, instance.task_state) == ("error", None)
    assert "[hook.launch.broken-off]" in fault(instance)
    found = objects.Migration.get_by_id(CONTEXT, migration.id)
    assert found.status == "error"


@pytest.mark.parametrize(
    "task",
    [
        task_states.IMAGE_SNAPSHOT_PENDING,
        task_states.IMAGE_SNAPSHOT,
        task_states.IMAGE_PENDING_UPLOAD,
        task_states.IMAGE_UPLOADING,
    ],
)
def test_a_snapshot(instance: objects.Instance, task: str) -> None:
    """In the log of the last action: nova only forgets the task."""
    for request, name in (("req-1", "start"), ("req-2", "createImage")):
        context = CONTEXT.elevated()
        context.request_id = request
        objects.InstanceAction.action_start(context, instance.uuid, name)
    instance.task_state = task
    instance.save()
    recover.broken_off(CONTEXT, instance)
    said = {}
    for request in ("req-1", "req-2"):
        action = objects.InstanceAction.get_by_request_id(
            CONTEXT, instance.uuid, request
        )
        said[request] = [
            (event.event, event.result, event.details)
            for event in objects.InstanceActionEventList.get_by_action(
                CONTEXT, action.id
            )
        ]
    assert said["req-1"] == []
    [(event, result, details)] = said["req-2"]
    assert (event, result) == ("mh_snapshot", "Error")
    assert "[hook.snapshot.broken-off]" in details
    assert fault(instance) == ""


def test_a_snapshot_that_nobody_logged(instance: objects.Instance) -> None:
    instance.task_state = task_states.IMAGE_UPLOADING
    instance.save()
    recover.broken_off(CONTEXT, instance)
    assert fault(instance) == ""


def begun(instance: objects.Instance, *, host: str, over: bool) -> None:
    """nova's log of an action, and whether a host is through with it."""
    context = CONTEXT.elevated()
    context.request_id = "req-7"
    objects.InstanceAction.action_start(context, instance.uuid, "a")
    event = ("compute_a_instance",)
    objects.InstanceActionEvent.event_start(
        context, instance.uuid, *event, host=host
    )
    if over:
        objects.InstanceActionEvent.event_finish(
            context, instance.uuid, *event
        )


LEFT = (
    "pausing",
    "suspending",
    "resuming",
    "rescuing",
    "unrescuing",
    "shelving",
    "shelving_image_pending_upload",
    "shelving_image_uploading",
    "shelving_offloading",
    "unshelving",
)


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("task", LEFT)
def test_what_nova_would_leave(instance: objects.Instance, task: str) -> None:
    """The tenant can ask again, and the log says why."""
    begun(instance, host="node1", over=False)
    instance.vm_state, instance.task_state = vm_states.ACTIVE, task
    instance.save()
    recover.broken_off(CONTEXT, instance)
    instance.refresh()
    assert (instance.vm_state, instance.task_state) == ("active", None)
    action = objects.InstanceAction.get_by_request_id(
        CONTEXT, instance.uuid, "req-7"
    )
    [said] = [
        event.details
        for event in objects.InstanceActionEventList.get_by_action(
            CONTEXT, action.id
        )
        if event.event == "mh_recover"
    ]
    assert "[hook.task.broken-off]" in said
    assert task in said


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize(
    ("task", "running", "state"),
    [
        ("resuming", True, "active"),
        ("resuming", False, "suspended"),
        ("unshelving", True, "suspended"),
    ],
)
def test_a_resume_behind_the_gate(
    instance: objects.Instance, task: str, running: bool, state: str
) -> None:
    """What runs is not said to sleep: nothing could wake it."""
    begun(instance, host="node1", over=False)
    instance.vm_state, instance.task_state = vm_states.SUSPENDED, task
    instance.save()
    recover.broken_off(CONTEXT, instance, lambda: running)
    instance.refresh()
    assert (instance.vm_state, instance.task_state) == (state, None)


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("task", [*LEFT, task_states.RESIZE_REVERTING])
@pytest.mark.parametrize(
    ("host", "over"), [("node2", False), ("node1", True), ("", False)]
)
def test_what_is_still_to_come(
    instance: objects.Instance, task: str, host: str, over: bool
) -> None:
    """Asked for while nova-compute was away: it needs its task."""
    if host:
        begun(instance, host=host, over=over)
    instance.vm_state, instance.task_state = vm_states.ACTIVE, task
    instance.save()
    recover.broken_off(CONTEXT, instance)
    instance.refresh()
    assert (instance.vm_state, instance.task_state) == ("active", task)


class There:
    """Another host, as nova's ssh reaches it."""

    def __init__(self, shared: bool, error: Exception | None) -> None:
        self.shared, self.error = shared, error
        self.removed: list[tuple[str, str]] = []

    def create_file(self, _host: str, path: str) -> None:
        if self.error is not None:
            raise self.error
        if self.shared:
            Path(path).touch()

    def remove_file(self, _host: str, path: str) -> None:
        Path(path).unlink(missing_ok=True)

    def remove_dir(self, host: str, path: str) -> None:
        self.removed.append((host, path))


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize(
    ("case", "goes"),
    [
        ("copying", True),
        ("no placement", True),
        ("nothing held", True),
        # its only disk
        ("shared", False),
        ("not told", False),
        ("disk full", False),
        ("arriving here", False),
        ("same host", False),
        ("copied", False),
        ("no move", False),
    ],
)
def test_what_was_copied_in_part(
    driver: Any,
    instance: objects.Instance,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    case: str,
    goes: bool,
) -> None:
    """Nobody else would take it away from the other host."""
    errors = {
        "not told": processutils.ProcessExecutionError("ssh"),
        "disk full": OSError(28, "No space left on device"),
    }
    there = There(case == "shared", errors.get(case))
    monkeypatch.setattr(driver, "_remotefs", there)
    monkeypatch.setattr(driver, "get_host_ip_addr", lambda: "192.0.2.2")
    freed: list[tuple[str, str]] = []

    def move(_context: Any, source: str, target: str) -> bool:
        freed.append((source, target))
        if case == "no placement":
            raise keystone.ConnectFailure()
        return True

    driver.virtapi = SimpleNamespace(
        reportclient=SimpleNamespace(
            move_allocations=move,
            get_allocations_for_consumer=lambda *_: (
                {} if case == "nothing held" else {"p": {}}
            ),
        )
    )
    monkeypatch.setattr(
        LibvirtDriver,
        "process_instances_at_startup",
        lambda self, context, instances: instances,
    )
    folder = tmp_path / "of-both"
    folder.mkdir()
    nova.conf.CONF.set_override("instances_path", str(folder))
    instance.vm_state = vm_states.ACTIVE
    instance.system_metadata = {"image_mh_version": "1"}
    task = task_states.RESIZE_MIGRATING
    migration = moved(
        instance,
        task_states.RESIZE_MIGRATED if case == "copied" else task,
        "migrating",
        "node2" if case == "arriving here" else "node1",
    )
    if case not in ("arriving here", "same host"):
        migration.dest_compute = "node2"
    migration.dest_host = "192.0.2.3"
    migration.save()
    if case == "no move":
        instance.migration_context = None
        instance.save()
    try:
        assert driver.process_instances_at_startup(CONTEXT, [instance]) == [
            instance
        ]
    finally:
        nova.conf.CONF.clear_override("instances_path")
    path = str(folder / instance.uuid)
    assert there.removed == ([("192.0.2.3", path)] if goes else [])
    found = objects.Migration.get_by_id(CONTEXT, migration.id)
    if case in ("arriving here", "copied", "no move"):
        assert (freed, found.status) == ([], "migrating")
    else:
        # what the move held of its hosts is the server's again
        held = [(migration.uuid, instance.uuid)]
        assert freed == ([] if case == "nothing held" else held)
        assert found.status == "error"
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize(
    ("task", "over", "called"),
    [
        (task_states.RESIZE_FINISH, False, ["delete"]),
        (task_states.RESIZE_REVERTING, False, ["move"]),
        # another host goes on with it
        (task_states.RESIZE_REVERTING, True, []),
        (task_states.RESIZE_MIGRATED, False, []),
        (task_states.SPAWNING, False, []),
    ],
)
@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("away", [False, True])
def test_what_a_move_held(
    driver: Any,
    instance: objects.Instance,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    task: str,
    over: bool,
    called: list[str],
    away: bool,
    runs: bool,
) -> None:
    """Nothing of the host where it is not; placement may be away."""
    seen: list[str] = []

    def note(name: str, uuid: str) -> None:
        assert uuid == migration.uuid
        seen.append(name)
        if away:
            raise keystone.ConnectFailure()

    driver.virtapi = SimpleNamespace(
        reportclient=SimpleNamespace(
            get_allocations_for_consumer=lambda *_: {"p": {}},
            move_allocations=lambda _, uuid, to: note("move", uuid),
            delete_allocation_for_instance=lambda _, uuid, consumer_type: note(
                "delete", uuid
            ),
        )
    )
    monkeypatch.setattr(
        LibvirtDriver,
        "process_instances_at_startup",
        lambda self, context, instances: instances,
    )
    begun(instance, host="node1", over=over)
    instance.vm_state = vm_states.RESIZED
    instance.system_metadata = {"image_mh_version": "1"}
    migration = moved(instance, task, "reverting")
    migration.source_compute, migration.dest_compute = "node1", "node2"
    migration.save()
    guest = power_state.RUNNING if runs else power_state.SHUTDOWN
    states(monkeypatch, guest)
    folder = tmp_path / "of-nova"
    aside, home = (folder / f"{INSTANCE}{end}" for end in ("_resize", ""))
    for path in (aside, home):
        path.mkdir(parents=True)
        (path / "disk").write_text(path.name)
    nova.conf.CONF.set_override("instances_path", str(folder))
    try:
        driver.process_instances_at_startup(CONTEXT, [instance])
    finally:
        nova.conf.CONF.clear_override("instances_path")
    assert seen == called
    # what nova set aside is its disk again, for the hard reboot to come
    came_home = called == ["move"] and not runs
    assert aside.exists() is not came_home
    assert (home / "disk").read_text() == (
        aside.name if came_home else home.name
    )


class Messages:
    """What nova would send to hosts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[Any, ...]] = []
        monkeypatch.setattr(
            recover.rpcapi,
            "ComputeAPI",
            lambda: SimpleNamespace(
                revert_resize=lambda *args: self.sent.append(args)
            ),
        )


@pytest.mark.usefixtures("where")
def test_a_revert_goes_on(
    instance: objects.Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it had been moved to: else nobody would tell the other host."""
    messages = Messages(monkeypatch)
    begun(instance, host="node1", over=False)
    instance.vm_state = vm_states.RESIZED
    migration = moved(instance, task_states.RESIZE_REVERTING, "reverting")
    recover.broken_off(CONTEXT, instance)
    [(context, one, what, host, spec)] = messages.sent
    assert context.request_id == "req-7"
    assert (one.uuid, what.id) == (instance.uuid, migration.id)
    assert (host, spec) == ("node1", None)
    instance.refresh()
    assert instance.vm_state == vm_states.RESIZED
    assert instance.task_state == task_states.RESIZE_REVERTING
    assert fault(instance) == ""
    assert objects.Migration.get_by_id(CONTEXT, migration.id).status == (
        "reverting"
    )


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("source", ["node1", "node2"])
def test_a_revert_at_home(
    instance: objects.Instance, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """It cannot be done twice: it would take the disk away, say, where both
    hosts are one."""
    messages = Messages(monkeypatch)
    begun(instance, host="node1", over=False)
    instance.vm_state = vm_states.RESIZED
    migration = moved(
        instance, task_states.RESIZE_REVERTING, "reverting", source
    )
    if source != "node1":
        migration.source_compute, migration.dest_compute = "node1", "node2"
        migration.save()
    recover.broken_off(CONTEXT, instance)
    assert messages.sent == []
    instance.refresh()
    assert (instance.vm_state, instance.task_state) == ("error", None)
    assert "[hook.launch.broken-off]" in fault(instance)
    found = objects.Migration.get_by_id(CONTEXT, migration.id)
    assert found.status == "error"


def test_at_the_start(
    driver: Any, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours only, and whatever becomes of one, all of them go on to nova."""
    seen: list[str] = []

    def broken_off(_context: Any, one: Any, _running: Any) -> None:
        seen.append(one.uuid)
        raise exception.InstanceNotFound(instance_id=one.uuid)

    monkeypatch.setattr(recover, "broken_off", broken_off)
    monkeypatch.setattr(
        LibvirtDriver,
        "process_instances_at_startup",
        lambda self, context, instances: instances,
    )
    both = [
        SimpleNamespace(
            uuid=INSTANCE,
            system_metadata={"image_mh_version": "1"},
            task_state=None,
        ),
        SimpleNamespace(uuid=OTHER, system_metadata={}),
    ]
    assert driver.process_instances_at_startup(CONTEXT, both) == both
    assert seen == [INSTANCE]


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize(
    ("task", "host", "over", "left_alone"),
    [
        # the destination has prepared; what it sent has not been read
        (task_states.RESIZE_PREP, "node2", True, True),
        (task_states.RESIZE_PREP, "node2", False, True),
        # to another size, on this host
        (task_states.RESIZE_PREP, "node1", True, True),
        (task_states.RESIZE_PREP, "node1", False, False),
        # nobody knows of it
        (task_states.RESIZE_PREP, "", False, False),
        (task_states.RESIZE_MIGRATING, "node2", True, False),
        (None, "node2", True, False),
    ],
)
def test_about_to_leave(
    driver: Any,
    instance: objects.Instance,
    monkeypatch: pytest.MonkeyPatch,
    task: str | None,
    host: str,
    over: bool,
    left_alone: bool,
) -> None:
    """nova, which would clear its task, does not see it."""
    monkeypatch.setattr(
        LibvirtDriver,
        "process_instances_at_startup",
        lambda self, context, instances: instances,
    )
    if host:
        begun(instance, host=host, over=over)
    instance.task_state = task
    instance.system_metadata = {"image_mh_version": "1"}
    instance.save()
    left = driver.process_instances_at_startup(CONTEXT, [instance])
    assert left == ([] if left_alone else [instance])


# A guest that ended right after its start


def states(monkeypatch: pytest.MonkeyPatch, *found: int) -> None:
    left = list(found)
    monkeypatch.setattr(
        LibvirtDriver,
        "get_info",
        lambda self, instance, use_cache=True: SimpleNamespace(
            state=left.pop(0)
        ),
    )


@pytest.mark.parametrize("state", [power_state.SHUTDOWN, power_state.CRASHED])
def test_ended_at_once(
    driver: Any, monkeypatch: pytest.MonkeyPatch, state: int
) -> None:
    """nova waits for it no longer, whoever else asks before; after a while
    it is simply off."""
    states(monkeypatch, *[state] * 3)
    one = SimpleNamespace(uuid=INSTANCE)
    now = [0.0]
    driver._mh_begun = recover.Begun(clock=lambda: now[0])
    driver._mh_begun.add(INSTANCE)
    for _ in range(2):
        with pytest.raises(Denied) as caught:
            driver.get_info(one)
        assert caught.value.event == "hook.launch.ended"
    now[0] = recover.STANDS
    assert driver.get_info(one).state == state


def test_ended_and_destroyed(
    driver: Any, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nova then waits for it to be off."""
    states(monkeypatch, power_state.SHUTDOWN)
    stock.replace("_destroy")
    one = SimpleNamespace(uuid=INSTANCE)
    driver._mh_begun.add(INSTANCE)
    driver._destroy(one)
    assert driver.get_info(one).state == power_state.SHUTDOWN


def test_ended_later(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    states(
        monkeypatch,
        power_state.NOSTATE,
        power_state.RUNNING,
        power_state.SHUTDOWN,
    )
    one = SimpleNamespace(uuid=INSTANCE)
    now = [0.0]
    driver._mh_begun = recover.Begun(clock=lambda: now[0])
    driver._mh_begun.add(INSTANCE)
    for _ in range(2):
        driver.get_info(one)
    now[0] = recover.STANDS
    assert driver.get_info(one).state == power_state.SHUTDOWN


def test_suspended_soon_after_its_start(
    driver: Any, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off, and meant to be."""
    states(monkeypatch, power_state.RUNNING, power_state.SHUTDOWN)
    stock.replace("suspend")
    monkeypatch.setattr(driver, "_mh_decide", lambda _instance: False)
    one = SimpleNamespace(uuid=INSTANCE)
    driver._mh_begun.add(INSTANCE)
    driver.get_info(one)
    driver.suspend(None, one)
    assert driver.get_info(one).state == power_state.SHUTDOWN


def test_ended_after_another_saw_it_run(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nova asks at each event of libvirt's as well, and the one who waits
    would never see it run."""
    states(monkeypatch, power_state.RUNNING, power_state.SHUTDOWN)
    one = SimpleNamespace(uuid=INSTANCE)
    driver._mh_begun.add(INSTANCE)
    driver.get_info(one)
    with pytest.raises(Denied) as caught:
        driver.get_info(one)
    assert caught.value.event == "hook.launch.ended"


# The image service while a snapshot is stored


def test_a_snapshot_that_cannot_be_stored() -> None:
    with pytest.raises(Denied) as caught:
        with snapshot._image_service():
            raise exception.GlanceConnectionFailed(server="g", reason="gone")
    assert caught.value.event == "hook.snapshot.service"
    assert "gone" in caught.value.message


def test_a_snapshot_that_was_deleted_meanwhile() -> None:
    """nova's own end of it."""
    with pytest.raises(exception.ImageNotFound):
        with snapshot._image_service():
            raise exception.ImageNotFound(image_id=OTHER)


# A guest that ended while its disk was copied


def test_a_copy_of_a_deleted_instance(instance: objects.Instance) -> None:
    instance.task_state = task_states.DELETING
    instance.save()
    assert snapshot._deleted(instance)


def test_a_copy_of_one_whose_guest_ended(
    instance: objects.Instance,
) -> None:
    instance.task_state = task_states.IMAGE_PENDING_UPLOAD
    instance.save()
    assert not snapshot._deleted(instance)
