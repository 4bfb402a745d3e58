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
"""Every change and its audit record, in one durable transaction.

One thread per process writes; whatever is queued meanwhile shares the next
commit.  The chain's head moves only after a commit, so a record that was
not stored was never answered with.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from mh_attest.db import tables
from mh_attest.db.engine import WRITES, unavailable
from mh_core import audit, jose
from mh_core.encoding import canonical_json
from mh_core.errors import MHError, Unavailable

#: ``typ`` of a signed head of a chain.
CHECKPOINT_TYP = "mh-audit-checkpoint+jwt"
#: Seconds between signed heads, while records are written.
CHECKPOINT_EVERY = 1.0
_BATCH = 256
_PATIENCE = 30.0

_INSERT = sa.insert(tables.audit)
Change = Callable[[sa.Connection], None]


@dataclass
class _Job:
    record: Mapping[str, Any] | None
    change: Change | None
    done: threading.Event = field(default_factory=threading.Event)
    id: str = ""
    error: Exception | None = None


class Journal:
    """The one writer of the database.

    :param chain: id of this process's chain, a UUID.
    :param key: private JWK that signs the chain's heads.
    :param clock: seconds since the epoch.
    """

    def __init__(
        self,
        engine: sa.Engine,
        chain: str,
        key: Mapping[str, Any],
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine.execution_options(**{WRITES: True})
        self._chain = chain
        self._key = key
        self._clock = clock
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._seq = 0
        self._head = audit.GENESIS
        self._signed = 0
        self._signed_at = 0.0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def write(
        self, record: Mapping[str, Any] | None, change: Change | None = None
    ) -> str:
        """Store a change and its record; returns ``<chain>#<seq>``.

        :param record: no secret in it; ``at`` is added.  None: a change
            that needs no record (nothing was decided).
        :raises MHError: what the change raised; nothing is stored then.
        :raises Unavailable: ``attest.database``: nothing is stored.
        """
        job = _Job(record, change)
        self._start()
        self._queue.put(job)
        if not job.done.wait(_PATIENCE):
            raise Unavailable("attest.database", "the database is too slow")
        if job.error is not None:
            raise job.error
        return job.id

    def close(self) -> None:
        """Write what is queued and a last signed head; stop."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(_PATIENCE)

    def _start(self) -> None:
        # Not in __init__: a server may fork after the application is made.
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="mh-attest-journal", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while True:
            batch: list[_Job] = []
            last = False
            job = self._queue.get()
            while True:
                if job is None:
                    last = True
                    break
                batch.append(job)
                if len(batch) >= _BATCH:
                    break
                try:
                    job = self._queue.get_nowait()
                except queue.Empty:
                    break
            self._commit(batch, last)
            if last:
                return

    def _commit(self, batch: list[_Job], last: bool) -> None:
        seq, head, signed = self._seq, self._head, self._signed
        signed_at = self._signed_at
        try:
            with self._engine.begin() as connection:
                for job in batch:
                    stored = self._store(connection, job, seq, head)
                    if stored is not None:
                        seq, head = seq + 1, stored
                now = time.monotonic()
                due = last or now - signed_at >= CHECKPOINT_EVERY
                if due and seq > signed:
                    self._sign(connection, seq, head)
                    signed, signed_at = seq, now
            self._seq, self._head, self._signed = seq, head, signed
            self._signed_at = signed_at
        except sa.exc.SQLAlchemyError as exc:
            error = unavailable(exc)
            for job in batch:
                job.error = job.error or error
        except Exception as exc:
            # The writer must outlive whatever a change does; nobody in
            # this batch gets an answer.
            for job in batch:
                job.error = job.error or exc
        for job in batch:
            job.done.set()

    def _store(
        self, connection: sa.Connection, job: _Job, seq: int, head: bytes
    ) -> bytes | None:
        """The chain's new head, or None where no record was added."""
        try:
            if job.change is not None:
                # What fails takes its own change back, not the others'.
                with connection.begin_nested():
                    job.change(connection)
        except MHError as exc:
            job.error = exc
            return None
        if job.record is None:
            return None
        record = audit.encode({"at": int(self._clock()), **job.record})
        link = audit.link(head, record)
        connection.execute(
            _INSERT,
            {
                "chain": self._chain,
                "seq": seq + 1,
                "record": record,
                "hash": link,
            },
        )
        job.id = f"{self._chain}#{seq + 1}"
        return link

    def _sign(self, connection: sa.Connection, seq: int, head: bytes) -> None:
        payload = {"chain": self._chain, "seq": seq, "head": head.hex()}
        jws = jose.sign(canonical_json(payload), self._key, CHECKPOINT_TYP)
        connection.execute(
            sa.insert(tables.checkpoints).values(
                chain=self._chain, seq=seq, jws=jws
            )
        )
