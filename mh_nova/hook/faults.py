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

"""From our one error family to what nova shows its users.

nova keeps 255 characters of a fault, shows them to the tenant, and puts only
the class name where the exception is not nova's own. What state a refused
instance ends in depends on the operation; see each function.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import nova.conf
from nova import exception, objects
from oslo_log import log as logging
from oslo_messaging import (  # type: ignore[import-untyped]
    MessagingException,
)

from mh_core.errors import MHError
from mh_core.secret import redact

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
#: nova's column for a fault's message, characters.
LIMIT = 255
LAUNCH = "Trusted launch refused"
START = "Trusted start refused"
OPERATION = "Refused for a trusted instance"
#: Metadata of a server whose last start was refused: the reason.
REFUSED = "mh_refused"


def text(error: MHError, prefix: str = LAUNCH, limit: int = LIMIT) -> str:
    """One ASCII line: prefix, cause, event id; the id is never cut.

    :param limit: longest result, characters.
    """
    tail = f" [{error.event}]"[:limit]
    head = redact(f"{prefix}: {error.message}")
    head = " ".join(str(head).encode("ascii", "replace").decode().split())
    room = limit - len(tail)
    if len(head) > room:
        head = head[: max(0, room - 3)] + "..."[: max(0, room)]
    return head + tail


def abort(error: MHError) -> exception.BuildAbortException:
    """For ``spawn``: ends the build with this message, not on another host.

    A positional message replaces nova's own sentence, which would eat a
    quarter of the room.
    """
    return exception.BuildAbortException(text(error))


def refusal(
    error: MHError, prefix: str = OPERATION
) -> exception.NovaException:
    """For operations whose manager method leaves the vm_state alone
    (snapshot, shelve's power-off, start, reboot of a running guest)."""
    return exception.NovaException(text(error, prefix))


def rollback(error: MHError) -> exception.InstanceFaultRollback:
    """For operations under the manager's ``_error_out_instance_on_exception``
    (suspend, resize, cold migration): the instance keeps its state."""
    return exception.InstanceFaultRollback(inner_exception=refusal(error))


class Untouched(exception.InstanceNotFound):
    """See :func:`untouched`."""


def untouched(error: MHError) -> exception.InstanceNotFound:
    """For a rebuild that was refused before it began.

    After any other error ``ComputeManager.rebuild_instance`` gives up what
    placement holds for the instance, also where its guest runs on.
    """
    return Untouched(text(error, OPERATION))


def precheck(error: MHError) -> exception.MigrationPreCheckError:
    """For the checks before a live migration; travels over RPC, so it must
    be a class of nova's. The instance stays active."""
    return exception.MigrationPreCheckError(
        reason=text(error, OPERATION, LIMIT - 40)
    )


def record(
    context: Any, instance: Any, name: str, error: exception.NovaException
) -> None:
    """An action event of our own, for the tenant to read.

    Where nova runs the driver after it has recorded the event as a success
    (snapshot), the instance's state says nothing and nobody shows a fault.

    :param name: of the event, e.g. ``mh_snapshot``.
    """
    try:
        objects.InstanceActionEvent.event_start(
            context, instance.uuid, name, want_result=False, host=CONF.host
        )
        objects.InstanceActionEvent.event_finish_with_failure(
            context,
            instance.uuid,
            name,
            exc_val=error,
            # without one nova writes "Success"
            exc_tb=str(error),
            want_result=False,
        )
    except exception.InstanceActionNotFound:
        LOG.warning("%s", error, instance=instance)


@contextlib.contextmanager
def at_spawn() -> Iterator[None]:
    """Turn our errors into :func:`abort`; leave nova's alone."""
    try:
        yield
    except MHError as error:
        raise abort(error) from error


def tell(instance: Any, reason: str) -> None:
    """Where the tenant looks: the server's metadata.

    nova shows a fault only for servers in ERROR, and who refused a start in
    the action log only to administrators.

    :param reason: empty to take an earlier one away.
    """
    metadata = dict(instance.metadata or {})
    if metadata.get(REFUSED, "") == reason:
        return
    metadata.pop(REFUSED, None)
    if reason:
        metadata[REFUSED] = reason
    instance.metadata = metadata
    try:
        instance.save()
    except (exception.NovaException, MessagingException) as exc:
        # neither a refusal nor a guest that runs depends on it
        LOG.warning(
            "The server's metadata does not say %r: %s",
            reason,
            exc,
            instance=instance,
        )


@contextlib.contextmanager
def at_start(instance: Any) -> Iterator[None]:
    """Turn our errors into :func:`refusal` of a later start, and say so."""
    try:
        yield
    except MHError as error:
        tell(instance, text(error, START))
        raise refusal(error, START) from error
