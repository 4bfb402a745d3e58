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

"""Undoing what nova's manager does around a refusal it has no word for."""

import threading
import time
from typing import Any

from nova import context as nova_context
from nova import exception, objects
from nova.compute import task_states, vm_states
from nova.virt import images
from oslo_log import log as logging
from oslo_messaging import MessagingException  # type: ignore[import-untyped]

LOG = logging.getLogger(__name__)
_POLL = 0.1
#: What was refused may still be winding up; nova then clears the task.
_TASKS = [
    None,
    task_states.RESCUING,
    task_states.UNRESCUING,
    task_states.REBOOT_STARTED,
    task_states.REBOOT_STARTED_HARD,
]
_STATES = (
    vm_states.ACTIVE,
    vm_states.STOPPED,
    vm_states.RESCUED,
    vm_states.PAUSED,
    vm_states.SUSPENDED,
)


def vm_state(
    instance: Any, before: str, seconds: float = 30.0
) -> threading.Thread | None:
    """Put the vm_state back after a refused rescue, unrescue or reboot.

    ``ComputeManager.rescue_instance`` and ``unrescue_instance`` set ERROR
    on whatever their driver raises, ``reboot_instance`` unless the guest
    runs. Written only while the server is in
    ERROR and no other task runs, compared and swapped by nova's ``save``.

    :param before: the state that is true.
    :param seconds: how long to wait for the manager to finish.
    :returns: the thread that does it; None where there is nothing to do.
    """
    if before not in _STATES:
        return None
    thread = threading.Thread(
        target=_put_back,
        args=(instance.uuid, before, seconds),
        name=f"mh-restore-{instance.uuid}",
        daemon=True,
    )
    thread.start()
    return thread


def _put_back(uuid: str, before: str, seconds: float) -> None:
    context = nova_context.get_admin_context()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(_POLL)
        try:
            fresh = objects.Instance.get_by_uuid(context, uuid)
            if fresh.vm_state != vm_states.ERROR:
                continue
            if fresh.task_state not in _TASKS:
                return
            fresh.vm_state = before
            fresh.save(
                expected_vm_state=[vm_states.ERROR],
                expected_task_state=_TASKS,
            )
        except exception.InstanceNotFound:
            return
        except exception.InstanceUpdateConflict as exc:
            # something newer has begun; its word counts
            LOG.info("Not put back: %s", exc, instance_uuid=uuid)
            return
        except MessagingException:
            # the conductor is slow, or its database is
            continue
        LOG.info(
            "Refused: the server is %s again",
            before,
            instance_uuid=uuid,
        )
        return


def queued_image(instance: Any) -> None:
    """Delete the empty image that the API made for a refused shelve.

    Best effort: shelve, unlike snapshot, has no clean-up of its own.
    """
    context = getattr(instance, "_context", None)
    if context is None:
        return
    try:
        found = images.IMAGE_API.get_all(
            context,
            filters={"instance_uuid": instance.uuid, "status": "queued"},
        )
        for image in found:
            owner = (image.get("properties") or {}).get("instance_uuid")
            if image.get("status") == "queued" and owner == instance.uuid:
                images.IMAGE_API.delete(context, image["id"])
    except exception.NovaException as exc:
        LOG.warning(
            "The empty image of a refused shelve stays: %s",
            exc,
            instance=instance,
        )
