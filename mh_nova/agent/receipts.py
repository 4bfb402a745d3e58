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
"""Receipts: the tenant's key server hears that an instance is gone.

What was deleted is deleted without it; a key server that is away hears of
it later, from what the agent has written down.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from mh_core.errors import Denied, InputError, MHError, NotFound
from mh_core.lease import ERASED
from mh_core.request import Disk
from mh_nova.agent.journal import Journal
from mh_nova.agent.lease import Asker
from mh_nova.agent.lease_store import LeaseRecord, LeaseStore, ReceiptRecord
from mh_nova.agent.paths import Root
from mh_nova.agent.store import Store

LOG = logging.getLogger(__name__)
EVENT = "agent.receipt"
#: Seconds before a next try: the first, and the longest.
FIRST, LONGEST = 2.0, 3600.0
#: A receipt that nobody took is let go of after, seconds.
LIFE = 30 * 24 * 3600


def disks_there(root: Root, store: Store) -> Callable[..., bool]:
    """Are disks of an instance's earlier life still in its directory?

    A disk of the same name but another LUKS uuid on record took its place.
    """

    def there(instance: str, disks: Collection[Disk]) -> bool:
        names = set(root.names(instance))
        left = {disk for disk in disks if disk.name in names}
        if not left:
            return False
        try:
            record = store.instance(instance)
        except (NotFound, InputError):
            return True
        now = {Disk(disk.name, disk.luks_uuid) for disk in record.disks}
        return not record.made or bool(left & now)

    return there


@dataclass
class Receipts:
    """
    :param there: whether any of an instance's disks is still there.
    :param clock: seconds since the epoch.
    """

    store: LeaseStore
    asker: Asker
    journal: Journal
    there: Callable[[str, Collection[Disk]], bool]
    clock: Callable[[], float] = time.time
    first: float = FIRST
    _waits: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="receipts", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._wake.set()

    def owe(self, lease: LeaseRecord, disks: Collection[Disk]) -> None:
        """Written down when this returns; told soon."""
        self.store.owe(ReceiptRecord(lease, tuple(disks), int(self.clock())))
        self._wake.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                self.step()
            except (MHError, OSError) as exc:
                LOG.error("%s: %s", EVENT, exc)
            self._wake.wait(self.first)

    def step(self) -> None:
        """Try every receipt that is due."""
        owed = {record.name: record for record in self.store.receipts()}
        for name in set(self._waits) - set(owed):
            del self._waits[name]
        for name, record in owed.items():
            wait, due = self._waits.get(name, (0.0, 0.0))
            if self._stopped.is_set():
                return
            if time.monotonic() < due:
                continue
            if self._told(record):
                self.store.settle(record)
                self._waits.pop(name, None)
                continue
            wait = min(LONGEST, wait * 2 or self.first)
            self._waits[name] = (wait, time.monotonic() + wait)

    def _told(self, record: ReceiptRecord) -> bool:
        """Whether there is nothing more to do."""
        instance = record.lease.instance
        if self.clock() - record.since > LIFE:
            self._write("given-up", record, "nobody took it")
            return True
        if self.there(instance, record.disks):
            LOG.info("%s: %s: disks are still there", EVENT, instance)
            return False
        try:
            grant = self.asker.ask(record.lease, ERASED)
        except Denied as exc:
            # e.g. the key was destroyed: nobody is left to tell
            self._write("refused", record, f"{exc.message} ({exc.event})")
            return True
        except MHError as exc:
            LOG.info("%s.waiting %s: %s", EVENT, instance, exc)
            return False
        self._write("accepted", record, grant.audit)
        return True

    def _write(self, what: str, record: ReceiptRecord, detail: str) -> None:
        self.journal.write(
            f"{EVENT}.{what}",
            record.lease.instance,
            detail,
            durable=False,
            lease=record.lease.lease,
        )
