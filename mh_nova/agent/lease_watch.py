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
"""What is watched of the guests that have a lease: whether they run, and
their end.

Nothing here waits for libvirt but threads made for it: where it hangs,
renewals go on, and a guest whose time is over is ended by its process.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mh_core.errors import MHError
from mh_nova.agent.journal import Journal
from mh_nova.agent.lease_store import (
    LeaseRecord,
    LeaseStore,
    boot_id,
    boottime,
)

LOG = logging.getLogger(__name__)
EVENT = "agent.lease"
#: Seconds between two looks at what runs.
LOOK = 5.0
#: libvirt's time to stop a guest before its process is killed, seconds.
PATIENCE = 10.0


class Guests(Protocol):
    """:class:`mh_nova.agent.guests.Guests`."""

    def running(self) -> frozenset[str]: ...

    def stop(self, instance: str) -> bool: ...

    def kill(self, instance: str) -> bool: ...


@dataclass
class Watched:
    """A lease, and what is under way about it; times of the clock, s.

    :param ask_at: when to ask for more.
    :param judge_after: a look at what runs counts only if made later.
    :param missed: looks that did not find it.
    :param failing: event of the last renewal that failed; ``cause`` is
        that for people.
    :param stopping: since when it is being stopped.
    """

    record: LeaseRecord
    ask_at: float
    judge_after: float
    missed: int = 0
    asking: bool = False
    wait: float = 0.0
    failing: str = ""
    cause: str = ""
    stopping: float | None = None
    killing: bool = False
    over: bool = False


@dataclass
class Watch:
    """
    :param clock: ``CLOCK_BOOTTIME``, seconds.
    :param boot: id of this boot.
    """

    store: LeaseStore
    guests: Guests
    journal: Journal
    clock: Callable[[], float] = boottime
    boot: str = field(default_factory=boot_id)
    look: float = LOOK
    patience: float = PATIENCE
    _all: dict[str, Watched] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._wake = threading.Condition(self._lock)
        self._stopped = threading.Event()
        self._looking = False
        self._looked = -self.look
        self._load()

    def _load(self) -> None:
        now = self.clock()
        for instance, record in self.store.all():
            if record is None:
                # whatever it said, nobody may rely on it any more
                self.journal.write(EVENT + ".damaged", instance)
                record = LeaseRecord.damaged(instance, self.boot)
            elif record.boot != self.boot:
                # its guest ended with that boot
                record = replace(record, ends=1, renewing=False)
            self._all[instance] = Watched(record, now, now + self.look)

    def _current(self, old: LeaseRecord) -> Watched | None:
        """What is watched, if it is still the same lease with the same
        end as when it was looked at."""
        watched = self._all.get(old.instance)
        if watched is None:
            return None
        now = watched.record
        same = (now.lease, now.asked, now.ends) == (
            *(old.lease, old.asked, old.ends),
        )
        return watched if same else None

    def _change(self, watched: Watched, **changes: Any) -> None:
        watched.record = replace(watched.record, **changes)
        self.store.save(watched.record)

    def _drop(self, instance: str) -> None:
        self._all.pop(instance, None)
        self.store.drop(instance)

    # -- what runs -------------------------------------------------------

    def _begin_look(self, now: float) -> None:
        if self._all and not self._looking:
            if now - self._looked >= self.look:
                self._looking, self._looked = True, now
                self._thread(self._look, now)

    @staticmethod
    def _thread(job: Callable[..., None], *args: Any) -> None:
        # not of the pool: libvirt may hang, and renewals must go on
        threading.Thread(
            target=job, args=args, name="lease-guests", daemon=True
        ).start()

    def _look(self, began: float) -> None:
        try:
            running = self.guests.running()
        except MHError as exc:
            LOG.warning("%s.guests: %s", EVENT, exc)
        else:
            self._seen(running, began)
        finally:
            with self._lock:
                self._looking = False

    def _seen(self, running: frozenset[str], began: float) -> None:
        """A guest that is not there is not asked for; should it be there
        after all, its lease still ends when it ends."""
        with self._lock:
            for instance, watched in self._all.items():
                record = watched.record
                if began < watched.judge_after:
                    continue
                watched.missed = (
                    0 if instance in running else watched.missed + 1
                )
                renewing = watched.missed < 2 and not record.forgotten
                if renewing != record.renewing and not watched.over:
                    self._change(watched, renewing=renewing)

    # -- the end ---------------------------------------------------------

    def _begin_stop(self, watched: Watched, now: float) -> None:
        record = watched.record
        if watched.stopping is None:
            watched.stopping = now
            self._thread(self._stop, record, self.guests.stop)
        elif now - watched.stopping > self.patience and not watched.killing:
            watched.killing = True
            self._thread(self._stop, record, self.guests.kill)

    def _stop(self, record: LeaseRecord, way: Callable[[str], bool]) -> None:
        """Until it is stopped, or nothing runs any more."""
        instance = record.instance
        said = False
        while not self._stopped.is_set():
            with self._lock:
                watched = self._current(record)
                if watched is None or watched.over:
                    # started anew by the gate, or ended the other way
                    return
                why = self._why(watched)
            try:
                ran = way(instance)
            except MHError as exc:
                LOG.error("%s.not-stopped %s: %s", EVENT, instance, exc)
                if not said:
                    said = True
                    self.journal.write(
                        EVENT + ".not-stopped", instance, exc.message
                    )
                self._stopped.wait(1.0)
                continue
            if ran or way == self.guests.stop:
                self._over(record, why if ran else "")
                return
            # no process found; libvirt may come back and know better
            self._stopped.wait(1.0)

    @staticmethod
    def _why(watched: Watched) -> str:
        cause = watched.cause or "it was not asked for again"
        return f"its lease ended: {cause}"[:400]

    def _over(self, record: LeaseRecord, why: str) -> None:
        with self._lock:
            watched = self._current(record)
            if watched is None or watched.over:
                return
            watched.over = True
            self._change(watched, renewing=False, stopped=why)
            if watched.record.forgotten:
                self._drop(record.instance)
        if why:
            self.journal.write(
                EVENT + ".stopped", record.instance, why, lease=record.lease
            )
