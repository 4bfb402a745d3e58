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

"""The audit chain, and the transactions that add to it.

Whatever changes state, or lets a key out, does so inside
:meth:`Ledger.transaction`, so that the change and its record are on the disk
together or not at all.
"""

import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mh_core import audit
from mh_core.encoding import parse_json
from mh_core.errors import VerificationError
from mh_kms.db import retention
from mh_kms.db.connection import Database, Row


class Transaction:
    """One database transaction that ends in audit records.

    :param connection: for the statements of the repositories in
        ``mh_kms.db``.
    :param now: seconds since the epoch when the transaction began.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        chain: str,
        seq: int,
        head: bytes,
        now: int,
        kept: int,
    ) -> None:
        self.connection = connection
        self.now = now
        self._kept = kept
        self.chain, self.seq, self.head = chain, seq, head

    def routine(self, event: str, key_id: str, **facts: Any) -> str:
        """Add a record of what a host may repeat as often as it likes; the
        oldest of a key's go when there are too many (``retention``)."""
        bucket = retention.bucket(self.connection, key_id)
        number = self.record(event, key_id, bucket=bucket, **facts)
        gone = retention.prune(self.connection, bucket, self._kept)
        if gone:
            self.record(
                retention.PRUNED,
                key_id,
                bucket=retention.pruned_bucket(bucket),
                count=sum(last - first + 1 for _, first, last in gone),
                ranges=[list(one) for one in gone],
            )
        return number

    def record(
        self, event: str, key_id: str, bucket: str = "", **facts: Any
    ) -> str:
        """Add a record; no secret may be in it.

        :returns: ``<chain>#<seq>``.
        """
        record = audit.encode(
            {"event": event, "time": self.now, "key_id": key_id, **facts}
        )
        self.seq += 1
        self.head = audit.link(self.head, record)
        self.connection.execute(
            "insert into audit (chain, seq, key_id, record, hash, bucket)"
            " values (?, ?, ?, ?, ?, ?)",
            (self.chain, self.seq, key_id, record, self.head, bucket),
        )
        return f"{self.chain}#{self.seq}"


class Ledger:
    """One chain per process, begun at its first record.

    :param clock: seconds since the epoch.
    :param name: makes the name of a chain.
    :param kept: routine records of each key that are kept.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        name: Callable[[], str] = lambda: str(uuid.uuid4()),
        kept: int = retention.KEPT,
    ) -> None:
        self.database = database
        self._kept = kept
        self._clock = clock
        self._name = name
        self._lock = threading.Lock()
        self._pid = 0
        self._chain, self._seq, self._head = "", 0, audit.GENESIS

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """:raises Unavailable: ``kms.db.unavailable``: nothing happened."""
        with self._lock:
            if self._pid != os.getpid():
                # Two processes on one chain would fork it.
                self._pid = os.getpid()
                self._chain = self._name()
                self._seq, self._head = 0, audit.GENESIS
            with self.database.transaction() as connection:
                one = Transaction(
                    connection,
                    self._chain,
                    self._seq,
                    self._head,
                    int(self._clock()),
                    self._kept,
                )
                yield one
            # Committed: only now does the chain go on from here.
            self._seq, self._head = one.seq, one.head


def records(
    database: Database, key_id: str, after: int, limit: int
) -> list[dict[str, Any]]:
    """Records about one key, oldest first.

    ``seq`` orders records over all chains (``audit`` is the place in the
    record's own chain).
    """
    rows = database.fetch_all(
        "select number, chain, seq, record, hash from audit"
        " where key_id = ? and number > ? order by number limit ?",
        (key_id, after, limit),
    )
    return [
        {
            **parse_json(record),
            "seq": number,
            "audit": f"{chain}#{seq}",
            "hash": digest.hex(),
        }
        for number, chain, seq, record, digest in rows
    ]


def verify(database: Database) -> tuple[int, int]:
    """Walk every chain; where records were let go of, a record must say so.

    That records are missing from the *end* of a chain does not show.

    :returns: chains, records that are there.
    :raises VerificationError: ``core.audit.chain``.
    """
    total = 0
    chains = database.fetch_all(
        "select chain from audit union select chain from audit_holes"
    )
    told = retention.Ranges()
    holes = retention.Ranges()
    for (chain,) in chains:
        rows = database.fetch_all(
            "select seq, record, hash from audit where chain = ? order by seq",
            (chain,),
        )
        gaps = database.fetch_all(
            "select first, last, hash from audit_holes where chain = ?"
            " order by first",
            (chain,),
        )
        # Only an editor's hand makes text of them.
        blobs = [row[1] for row in rows] + [row[2] for row in rows + gaps]
        if not all(isinstance(blob, bytes) for blob in blobs):
            raise _broken()
        _walk(rows, gaps)
        for first, last, _ in gaps:
            holes.add(chain, first, last)
        for _, record, _ in rows:
            told.read(record)
        total += len(rows)
    if not holes.within(told):
        raise _broken()
    return len(chains), total


def _walk(rows: list[Row], gaps: list[Row]) -> None:
    """Rows and gaps of one chain, from 1 on without anything missing."""
    head, seq = audit.GENESIS, 1
    left = {first: (last, digest) for first, last, digest in gaps}
    for number, record, digest in rows:
        while seq in left:
            last, head = left.pop(seq)
            if last < seq:
                raise _broken()
            seq = last + 1
        if number != seq:
            raise _broken()
        head = audit.verify_chain([(record, digest)], head)
        seq += 1
    while seq in left:
        last, head = left.pop(seq)
        if last < seq:
            raise _broken()
        seq = last + 1
    if left:
        raise _broken()


def _broken() -> VerificationError:
    return VerificationError(
        "core.audit.chain", "a record was changed or is missing"
    )
