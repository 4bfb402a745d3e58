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
"""Leases of the guests that run here: kept, renewed, and their end.

A key's release policy may say how long a guest runs before its host asks
again.  The end is this host's own to enforce: it counts from when the
granted question was asked, by a clock that nobody sets, survives a restart
of the agent, and needs neither key server nor nova.  Whatever else happens
to a renewal (refused, unanswered, damaged) leaves the end where it was.

What is decided here, in order:

1. a lease begins with the release, before any secret is in libvirt;
2. it is renewed from half its time on, again and again until it ends;
3. only a signed answer to this very question moves the end;
4. at the end the guest is stopped: through libvirt, else by its process.
"""

import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mh_core.errors import MHError, Unavailable
from mh_core.lease import HANDOVER, LEFT, RENEW, LeaseGrant
from mh_nova.agent.attempt import Opened
from mh_nova.agent.lease_store import LeaseRecord
from mh_nova.agent.lease_watch import Watch, Watched
from mh_nova.agent.store import InstanceRecord

LOG = logging.getLogger(__name__)
EVENT = "agent.lease"
#: Longest sleep of the watch, seconds: a host that wakes up is noticed.
_TICK = 0.5
#: A start that was never said to be over is taken to be so after, seconds.
_STARTING = 120.0
_AT_ONCE = 8


class Asker(Protocol):
    """:class:`mh_nova.agent.lease_client.LeaseClient`."""

    def ask(
        self, record: LeaseRecord, purpose: str, to: str = ""
    ) -> LeaseGrant: ...


@dataclass
class Leases(Watch):
    """Of all guests of this host."""

    asker: Asker = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pool = ThreadPoolExecutor(
            _AT_ONCE, thread_name_prefix="lease-ask"
        )

    def start(self) -> None:
        threading.Thread(
            target=self._watch, name="lease-watch", daemon=True
        ).start()

    def stop(self) -> None:
        """Guests go on, and so do their leases: see the next start."""
        self._stopped.set()
        with self._wake:
            self._wake.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- what the verbs say ----------------------------------------------

    def begin(
        self, instance: InstanceRecord, origin: str, opened: Opened
    ) -> None:
        """A release was opened for a guest that is about to start.

        Any other release gives the key server's holder no lease, so that
        what runs goes on by the one it has.  The record is in its file when
        this returns.
        """
        payload = opened.payload
        if not opened.request.holds or not payload.signing_jwk:
            # without a signer there is no lease, :mod:`.release` saw to that
            return
        record = LeaseRecord(
            instance=instance.instance,
            boot=self.boot,
            lease=payload.audit,
            key_id=instance.key_id,
            origin=origin,
            compat=instance.compat,
            host=instance.host,
            jwk=payload.signing_jwk,
            seconds=0,
            asked=0,
            ends=0,
        ).renewed(payload.lease, opened.asked)
        with self._wake:
            known = self._all.get(record.instance)
            if known is not None and (
                (known.record.boot, known.record.lease)
                == (record.boot, record.lease)
                and known.record.asked > record.asked
            ):
                # of the same release, and renewed since
                record = replace(known.record, renewing=True, forgotten=False)
            self.store.save(record)
            self._all[record.instance] = Watched(
                record, self._next(record), self.clock() + _STARTING
            )
            self._wake.notify_all()

    def started(self, instance: str) -> None:
        """The start is over, well or not: what runs shows which."""
        with self._lock:
            watched = self._all.get(instance)
            if watched is not None:
                watched.judge_after = self.clock()

    def of(self, instance: str) -> LeaseRecord | None:
        """The instance's lease, for the receipt; None: it has none, or was
        forgotten."""
        with self._lock:
            watched = self._all.get(instance)
            if watched is None or watched.record.forgotten:
                return None
            return watched.record

    def forget(self, instance: str) -> None:
        """The instance is gone from here.

        Should a guest run all the same, the lease still ends it.
        """
        with self._lock:
            watched = self._all.get(instance)
            if watched is None or watched.record.forgotten:
                return
            if watched.record.ends and not watched.over:
                self._change(watched, renewing=False, forgotten=True)
            else:
                self._drop(instance)

    def handover(self, instance: str, to: str) -> None:
        """Before a live migration: name its destination at the key server;
        empty takes it back.

        :raises MHError: of the key server; ``agent.lease.unknown``.
        """
        self.asker.ask(self._record(instance), HANDOVER, to)

    def left(self, instance: str) -> None:
        """After a live migration: the guest runs elsewhere.

        :raises MHError: as :meth:`handover`; it is no longer renewed then
            either.
        """
        record = self._record(instance)
        with self._lock:
            watched = self._current(record)
            if watched is not None:
                self._change(watched, renewing=False)
        self.asker.ask(record, LEFT)

    def _record(self, instance: str) -> LeaseRecord:
        with self._lock:
            watched = self._all.get(instance)
        if watched is None:
            raise Unavailable(EVENT + ".unknown", "there is no lease")
        return watched.record

    def facts(self, instance: str) -> dict[str, Any]:
        """For people: ``{"lease", "ends_in", "stopped"}``.

        ``ends_in``: seconds, -1 for no end; 0 where it is over.
        """
        with self._lock:
            watched = self._all.get(instance)
            if watched is None:
                return {"lease": "", "ends_in": 0, "stopped": ""}
            record = watched.record
            left = max(0, record.ends // 1000 - int(self.clock()))
            return {
                "lease": record.lease,
                "ends_in": left if record.ends else -1,
                "stopped": record.stopped,
            }

    # -- the watch -------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                self.step()
            except (MHError, OSError) as exc:
                # no one lease's trouble is another's
                LOG.error("%s.watch: %s", EVENT, exc)
            with self._wake:
                self._wake.wait(_TICK)

    def step(self) -> None:
        """Begin whatever is due; nothing in here waits for anybody."""
        now = self.clock()
        with self._lock:
            for watched in self._all.values():
                record = watched.record
                if record.ends and now * 1000 >= record.ends:
                    if not watched.over:
                        self._begin_stop(watched, now)
                elif record.renewing and record.seconds:
                    if not watched.asking and now >= watched.ask_at:
                        watched.asking = True
                        self._submit(self._renew, record)
            self._begin_look(now)

    def _submit(self, job: Callable[..., None], *args: Any) -> None:
        try:
            self._pool.submit(job, *args)
        except RuntimeError:
            # the agent is ending
            self._stopped.set()

    def _next(self, record: LeaseRecord) -> float:
        """From half of the time on, not all guests at once."""
        share = 0.5 - 0.1 * random.random()  # noqa: S311
        return record.asked / 1000 + record.seconds * share

    # -- renewal ---------------------------------------------------------

    def _renew(self, record: LeaseRecord) -> None:
        asked = self.clock()
        try:
            grant = self.asker.ask(record, RENEW)
            self._renewed(record, grant, asked)
        except MHError as exc:
            self._not_renewed(record, exc)
        finally:
            with self._lock:
                watched = self._all.get(record.instance)
                if watched is not None:
                    watched.asking = False

    def _renewed(
        self, record: LeaseRecord, grant: LeaseGrant, asked: float
    ) -> None:
        new = record.renewed(grant.seconds, asked)
        with self._lock:
            watched = self._current(record)
            if watched is None or watched.stopping is not None:
                return
            self._change(
                watched, seconds=new.seconds, asked=new.asked, ends=new.ends
            )
            watched.ask_at, watched.wait = self._next(new), 0.0
            failing, watched.failing = watched.failing, ""
            watched.cause = ""
        LOG.info("%s.renewed instance=%s", EVENT, record.instance)
        if failing:
            self.journal.write(
                EVENT + ".renewed",
                record.instance,
                f"again, after {failing}",
                durable=False,
                lease=record.lease,
                kms_audit=grant.audit,
            )

    def _not_renewed(self, record: LeaseRecord, error: MHError) -> None:
        """Ask again, later and later; the end stays where it is."""
        with self._lock:
            watched = self._current(record)
            if watched is None:
                return
            first = max(0.5, record.seconds / 60)
            most = max(1.0, record.seconds / 10)
            watched.wait = min(most, watched.wait * 2 or first)
            watched.ask_at = self.clock() + watched.wait
            known, watched.failing = watched.failing, error.event
            watched.cause = f"{error.message} ({error.event})"
            left = record.ends / 1000 - self.clock()
        text = f"{error.message} ({error.event}); ends in {left:.0f} s"
        LOG.warning("%s.failing instance=%s %s", EVENT, record.instance, text)
        if known != error.event:
            self.journal.write(
                EVENT + ".failing",
                record.instance,
                text,
                durable=False,
                lease=record.lease,
            )
