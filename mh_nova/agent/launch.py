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
"""The launch side: prepare → make → start → started → forget; for a disk
that moves, resize between make and start, and arrived at the end.

Each verb of the socket ends here.  What decides stands elsewhere:
:mod:`.release` (is this the answer to our question), :mod:`.measure` (may
this image run), :mod:`.admit` (may this domain start); this module orders
them, and writes every decision to the audit log before it acts on it.
"""

import threading
from typing import Any

from mh_core.errors import InputError, NotFound
from mh_core.request import Disk
from mh_nova.agent.ask import Asking
from mh_nova.agent.flatten import Flattening
from mh_nova.agent.migrate import Migrating
from mh_nova.agent.move import Moving
from mh_nova.agent.parts import Parts
from mh_nova.agent.precache import Caching
from mh_nova.agent.recover import Recovering
from mh_nova.agent.rescue import Rescuing
from mh_nova.agent.snapshot import Snapshotting
from mh_nova.agent.suspend import Suspending
from mh_nova.agent.work import EVENT

_SWEEP = 5.0


class Launcher(
    Asking,
    Recovering,
    Migrating,
    Rescuing,
    Snapshotting,
    Flattening,
    Suspending,
    Caching,
    Moving,
):
    """All launches of this host."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._stopped = threading.Event()
        self._sweeper = threading.Thread(
            target=self._sweep, name="sweep", daemon=True
        )

    def start_threads(self) -> None:
        self.recover()
        self._sweeper.start()

    def stop(self) -> None:
        self._stopped.set()
        self._jobs.stop()
        self._keys.stop()
        self._side.stop()
        self._p.bases.close()

    def _sweep(self) -> None:
        while not self._stopped.wait(_SWEEP):
            self._attempts.expire()
            self._ahead.expire()
            self._side.expire()
            self._p.bases.prune()

    def lease(self, instance: str) -> dict[str, Any]:
        """For people; see :meth:`mh_nova.agent.lease.Leases.facts`."""
        return self._p.leases.facts(instance)

    def forget(self, instance: str) -> None:
        """The instance is gone: secrets, record, what is under way."""
        # without the instance's turn, which the copy's end may wait for
        self._jobs.end(instance)
        with self._attempts.own(instance):
            self._give_up(instance)
            self._owe_receipt(instance)
            self._p.store.drop_instance(instance)
            self._side.forget(instance)
            self._p.journal.write(
                EVENT + ".forgotten", instance, durable=False
            )

    def _owe_receipt(self, instance: str) -> None:
        """Written down before the lease goes: whoever ends in between owes
        it twice, not never."""
        lease = self._p.leases.of(instance)
        if lease is None:
            return
        try:
            record = self._p.store.instance(instance)
        except (NotFound, InputError):
            disks: tuple[Disk, ...] = ()
        else:
            disks = tuple(
                Disk(disk.name, disk.luks_uuid) for disk in record.disks
            )
        self._p.receipts.owe(lease, disks)
        self._p.leases.forget(instance)
