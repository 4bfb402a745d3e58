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

"""What an end in the middle left to clear up: nova's side of it."""

import threading
import time
from collections.abc import Callable
from typing import Any

import nova.conf
import nova.context
from nova import exception, objects
from nova.compute import power_state, rpcapi, task_states, vm_states
from nova.compute import utils as compute_utils
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_log import log as logging
from oslo_messaging import (  # type: ignore[import-untyped]
    MessagingException,
)

from mh_core.errors import Denied, MHError
from mh_core.fields import Fields, text_item
from mh_nova.hook import faults
from mh_nova.hook.agent_client import AgentClient

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
#: Seconds between two looks at what the agent alone has on record.
PAUSE = 10.0
#: Seconds for which "it has ended" is said; nova asks twice a second.
STANDS = 30.0
_BUILDING = (
    task_states.SCHEDULING,
    task_states.BLOCK_DEVICE_MAPPING,
    task_states.NETWORKING,
    task_states.SPAWNING,
    task_states.REBUILDING,
    task_states.REBUILD_BLOCK_DEVICE_MAPPING,
    task_states.REBUILD_SPAWNING,
)
_COPYING = (
    task_states.IMAGE_SNAPSHOT_PENDING,
    task_states.IMAGE_SNAPSHOT,
    task_states.IMAGE_PENDING_UPLOAD,
    task_states.IMAGE_UPLOADING,
)
#: nova itself leaves a server in these for ever.
_LEFT = (
    task_states.PAUSING,
    task_states.SUSPENDING,
    task_states.RESUMING,
    task_states.RESCUING,
    task_states.UNRESCUING,
    task_states.SHELVING,
    task_states.SHELVING_IMAGE_PENDING_UPLOAD,
    task_states.SHELVING_IMAGE_UPLOADING,
    task_states.SHELVING_OFFLOADING,
    task_states.UNSHELVING,
)


class Forgetting:
    """Instances that the agent has on record, and nova no longer here.

    nova tells its driver once that an instance is gone; an agent that did
    not run just then would keep its record for ever.
    """

    def __init__(
        self,
        client: AgentClient,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0

    def step(self) -> None:
        """Look, unless that was done a moment ago; never raises."""
        with self._lock:
            if self._clock() < self._next:
                return
            self._next = self._clock() + PAUSE
        try:
            for instance in self._client.answer("abandoned", {}, _abandoned):
                if _gone(instance):
                    LOG.info("Instance %s is gone: forgotten", instance)
                    self._client.forget(instance)
        except MHError as error:
            LOG.debug("What the agent has on record: %s", error)
        except (exception.NovaException, MessagingException) as exc:
            LOG.warning("Instances on the agent's record: %s", exc)


def _abandoned(fields: Fields) -> tuple[str, ...]:
    item = text_item(
        fields.event, 36, r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    )
    return fields.list("instances", item, 256)


def _gone(instance: str) -> bool:
    """nova has no such instance here, and is not about to have one."""
    context = nova.context.get_admin_context(read_deleted="yes")
    try:
        found = objects.Instance.get_by_uuid(context, instance)
    except exception.InstanceNotFound:
        return True
    if found.deleted:
        return True
    return found.host != CONF.host and found.task_state is None


def runs(driver: LibvirtDriver, instance: Any) -> bool:
    """Its guest does, now."""
    try:
        info = LibvirtDriver.get_info(driver, instance, use_cache=False)
    except exception.NovaException:
        return False
    return bool(info.state == power_state.RUNNING)


def broken_off(
    context: Any, instance: Any, running: Callable[[], bool] = lambda: False
) -> None:
    """Say why, where nova-compute ended in the middle of a build, and
    where nova itself would leave a move unfinished, end it.

    nova sets instances in ERROR that were being built, with no fault; one
    whose disk had arrived stays between two states for ever; of a snapshot
    it forgets the task and says nothing, and of others not even the task.

    :param running: whether its guest does.
    :raises nova.exception.NovaException: nova's.
    """
    if (
        instance.vm_state == vm_states.BUILDING
        or instance.task_state in _BUILDING
    ):
        _fault(
            context,
            instance,
            "nova-compute ended while the server was being launched",
        )
    elif instance.task_state == task_states.RESIZE_FINISH:
        _stays(
            context,
            instance,
            migration_of(context, instance),
            "nova-compute ended while the server was arriving; its disk is "
            "on this host",
        )
    elif instance.task_state in _COPYING:
        error = Denied(
            "hook.snapshot.broken-off",
            "nova-compute ended while the snapshot was being made",
        )
        _act(context, instance, "mh_snapshot", error)
    elif instance.task_state in _LEFT and _begun(context, instance):
        task = instance.task_state
        instance.task_state = None
        why = f"nova-compute ended while this was under way: {task}"
        if task == task_states.RESUMING and running():
            # nothing can start it once more
            instance.vm_state = vm_states.ACTIVE
            why += "; the guest had been started, and runs"
        instance.save()
        error = Denied("hook.task.broken-off", why)
        _act(context, instance, "mh_recover", error)
    elif instance.task_state == task_states.RESIZE_REVERTING:
        if _begun(context, instance):
            _revert(context, instance)


def migration_of(context: Any, instance: Any) -> Any:
    """The move that it is in, or that is to be confirmed.

    :raises nova.exception.NovaException: there is none, or nova's.
    """
    if instance.migration_context is None:
        raise exception.MigrationNotFoundForInstance(
            migration_id="", instance_id=instance.uuid
        )
    return objects.Migration.get_by_id_and_instance(
        context, instance.migration_context.migration_id, instance.uuid
    )


def _revert(context: Any, instance: Any) -> None:
    """Where it had been moved to, that is done again: it takes the server
    away and asks the other host to go on, and can be done twice.  What the
    other host does cannot; nor where both are one."""
    migration = migration_of(context, instance)
    here = (migration.dest_compute, instance.host) == (CONF.host, CONF.host)
    if here and migration.source_compute != CONF.host:
        LOG.info("The move is reverted once more", instance=instance)
        context = context.elevated()
        context.request_id = _action(context, instance).request_id
        rpcapi.ComputeAPI().revert_resize(
            context, instance, migration, CONF.host, None
        )
    else:
        _stays(
            context,
            instance,
            migration,
            "nova-compute ended while a resize was being reverted; the disk "
            "is on this host, and a hard reboot starts the server",
        )


def _stays(context: Any, instance: Any, migration: Any, why: str) -> None:
    """A move that nobody will finish.  By its state nova clears up the
    other host when the server is deleted."""
    migration.status = "error"
    migration.save()
    instance.vm_state = vm_states.ERROR
    instance.task_state = None
    instance.save()
    _fault(context, instance, why)


def about_to_leave(context: Any, instance: Any) -> bool:
    """It was to be moved or resized while nova-compute was away, and the
    message waits: once nova had taken the task away, that would end in
    ERROR, between two states."""
    return (
        instance.task_state == task_states.RESIZE_PREP
        and instance.vm_state != vm_states.ERROR
        and _action(context, instance) is not None
        and not _begun(context, instance)
    )


def _action(context: Any, instance: Any) -> Any:
    """The last thing that somebody asked for; None: nothing is known."""
    found = objects.InstanceActionList.get_by_instance_uuid(
        context, instance.uuid, limit=1
    )
    return found[0] if found else None


def _begun(context: Any, instance: Any) -> bool:
    """This host had begun with it: what was only asked for is still to come,
    and needs its task."""
    action = _action(context, instance)
    if action is None:
        return False
    return any(
        event.event.startswith("compute_")
        and event.finish_time is None
        and event.host == CONF.host
        for event in objects.InstanceActionEventList.get_by_action(
            context, action.id
        )
    )


def _act(context: Any, instance: Any, name: str, error: MHError) -> None:
    """In the log of the action that was under way, where its user looks."""
    LOG.error("%s", error, instance=instance)
    action = _action(context, instance)
    if action is not None:
        context = context.elevated()
        context.request_id = action.request_id
        faults.record(context, instance, name, faults.refusal(error))


def _fault(context: Any, instance: Any, why: str) -> None:
    error = faults.abort(Denied("hook.launch.broken-off", why))
    LOG.error("%s", error, instance=instance)
    compute_utils.add_instance_fault_from_exc(context, instance, error)


class Begun:
    """Guests that were started, and that nova may still wait for.

    nova waits for that without end; a QEMU that has ended meanwhile would
    hold the server in its state for ever.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._all: dict[str, float | None] = {}

    def add(self, instance: str) -> None:
        with self._lock:
            self._all[instance] = None

    def runs(self, instance: str) -> None:
        """Somebody saw it run: not, for sure, the one who waits for that,
        who asks twice a second."""
        with self._lock:
            if instance in self._all and self._all[instance] is None:
                self._all[instance] = self._clock() + STANDS

    def discard(self, instance: str) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._all.pop(instance, None)

    def ended(self, instance: str) -> bool:
        """It is off; whether whoever asks may be waiting for it.

        Others ask as well, and must not take the answer from the one who
        waits: it stands for a while.
        """
        with self._lock:
            if instance not in self._all:
                return False
            until = self._all[instance]
            now = self._clock()
            if until is None:
                until = self._all[instance] = now + STANDS
            if now < until:
                return True
            del self._all[instance]
            return False
