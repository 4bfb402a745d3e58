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
"""A guest that is leaving this host: who it may go to, and how it ends.

nova 34 raises again what libvirt's call of the migration raised, after it
has rolled the migration back: a server whose guest runs on would be left in
ERROR.  And a guest that is off has moved, for nova, which does not wait for
the call's end: one that died on the way would lose its disk.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
from nova import exception
from nova.compute import power_state
from nova.virt import event as virt_event
from oslo_log import log as logging

from mh_core.errors import Denied, MHError
from mh_nova.hook import faults
from mh_nova.hook.agent_migration import Leave

LOG = logging.getLogger(__name__)
ACTION = "mh_live_migration"
BROKEN = "The live migration broke off"
#: How long libvirt may take to end what it says has failed, seconds.
PATIENCE = 60.0


class Departure:
    """One live migration of a protected guest, on its source.

    :param driver: nova's.
    :param leave: the agent's; taken once.
    :param post: nova's, for a guest that has moved.
    :param recover: nova's, for one that has not.
    """

    def __init__(
        self,
        driver: Any,
        instance: Any,
        leave: Leave,
        post: Callable[..., None],
        recover: Callable[..., None],
    ) -> None:
        self._driver = driver
        self._instance = instance
        self._leave: Leave | None = leave
        self._post = post
        self._recover = recover
        self._error = "libvirt says no more"
        self._went = False
        self._over = threading.Event()

    def take(self) -> Leave | None:
        """A second try asks the agent again."""
        leave, self._leave = self._leave, None
        return leave

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Around libvirt's call; that it failed is left to nova to find out,
        which looks what became of the guest."""
        try:
            yield
            self._went = True
        except (libvirt.libvirtError, exception.NovaException) as error:
            LOG.warning("It broke off: %s", error, instance=self._instance)
            self._error = str(error)
        finally:
            self._over.set()

    def post(
        self,
        context: Any,
        instance: Any,
        dest: str,
        block_migration: Any = False,
        migrate_data: Any = None,
    ) -> None:
        """nova holds that the guest has moved, since it is off here.

        1. the call is over: before, nobody knows;
        2. where it failed, the guest has moved only if libvirt knows it no
           more: one whose QEMU died is off, and its disk is here alone.
        """
        # 1
        self._over.wait()
        # 2
        if not self._went and self._defined():
            self.recover(context, instance, dest, migrate_data)
            return
        self._post(context, instance, dest, block_migration, migrate_data)

    def recover(
        self,
        context: Any,
        instance: Any,
        dest: str,
        migrate_data: Any,
        **words: Any,
    ) -> None:
        """nova's roll-back, once libvirt has rolled back; then what broke
        is said, and a guest that is off is noticed, which nova does not
        while it migrates."""
        self._over.wait(PATIENCE)
        self._recover(context, instance, dest, migrate_data, **words)
        if words.get("migration_status") != "cancelled":
            error = Denied("hook.migration.broken-off", self._error)
            faults.record(
                context, instance, ACTION, faults.refusal(error, BROKEN)
            )
        if not self._runs():
            self._driver.emit_event(
                virt_event.LifecycleEvent(
                    instance.uuid, virt_event.EVENT_LIFECYCLE_STOPPED
                )
            )

    def _defined(self) -> bool:
        try:
            self._driver._host.get_guest(self._instance)
        except exception.InstanceNotFound:
            return False
        except exception.NovaException as exc:
            # kept until somebody knows better
            LOG.error("libvirt was asked: %s", exc, instance=self._instance)
        return True

    def _runs(self) -> bool:
        """In doubt it does: nova looks for itself, by and by."""
        try:
            found = self._driver.get_info(self._instance)
        except (exception.NovaException, MHError):
            return True
        return found.state not in (power_state.SHUTDOWN, power_state.CRASHED)
