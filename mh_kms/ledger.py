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
from mh_kms.db.connection import Database


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
    ) -> None:
        self.connection = connection
        self.now = now
        self.chain, self.seq, self.head = chain, seq, head

    def record(self, event: str, key_id: str, **facts: Any) -> str:
        """Add a record; no secret may be in it.

        :returns: ``<chain>#<seq>``.
        """
        record = audit.encode(
            {"event": event, "time": self.now, "key_id": key_id, **facts}
        )
        self.seq += 1
        self.head = audit.link(self.head, record)
        self.connection.execute(
            "insert into audit (chain, seq, key_id, record, hash)"
            " values (?, ?, ?, ?, ?)",
            (self.chain, self.seq, key_id, record, self.head),
        )
        return f"{self.chain}#{self.seq}"


class Ledger:
    """One chain per process, begun at its first record.

    :param clock: seconds since the epoch.
    :param name: makes the name of a chain.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        name: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self.database = database
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
    """Walk every chain.

    That records are missing from the *end* of a chain does not show.

    :returns: chains, records.
    :raises VerificationError: ``core.audit.chain``.
    """
    total = 0
    chains = database.fetch_all("select distinct chain from audit")
    for (chain,) in chains:
        rows = database.fetch_all(
            "select seq, record, hash from audit where chain = ? order by seq",
            (chain,),
        )
        whole = [row[0] for row in rows] == list(range(1, len(rows) + 1))
        # Only an editor's hand makes text of them.
        if not whole or not all(
            isinstance(value, bytes) for row in rows for value in row[1:]
        ):
            raise VerificationError(
                "core.audit.chain", "a record was changed or is missing"
            )
        audit.verify_chain((row[1], row[2]) for row in rows)
        total += len(rows)
    return len(chains), total
