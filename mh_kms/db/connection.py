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

"""SQLite connections, one per thread, and transactions on them."""

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mh_core.errors import Unavailable

PREFIX = "sqlite:///"
Row = tuple[Any, ...]


def path_of(url: str) -> str:
    """Path in a ``sqlite:////…`` URL.

    :raises Unavailable: ``kms.db.url``.
    """
    path = url.removeprefix(PREFIX)
    if path == url or not path.startswith("/"):
        raise Unavailable("kms.db.url", "only sqlite:////path is supported")
    return path


def _unavailable() -> Unavailable:
    return Unavailable("kms.db.unavailable", "the database does not answer")


class Database:
    """One SQLite file (WAL); one writer at a time within a process.

    :param path: of a file that ``mh-kms-manage db sync`` has made.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._local = threading.local()
        self._writer = threading.Lock()

    def _connection(self) -> sqlite3.Connection:
        held = getattr(self._local, "connection", None)
        # A connection does not survive a fork.
        if held is not None and self._local.pid == os.getpid():
            return held  # type: ignore[no-any-return]
        try:
            made = sqlite3.connect(
                f"file:{self.path}?mode=rw",
                uri=True,
                isolation_level=None,
                timeout=5.0,
            )
            made.execute("pragma synchronous=full")
            made.execute("pragma secure_delete=on")
        except sqlite3.Error as exc:
            raise _unavailable() from exc
        self._local.connection, self._local.pid = made, os.getpid()
        return made

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> Row | None:
        """:raises Unavailable: ``kms.db.unavailable``."""
        try:
            row = self._connection().execute(sql, values).fetchone()
        except sqlite3.Error as exc:
            raise _unavailable() from exc
        return None if row is None else tuple(row)

    def fetch_all(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """:raises Unavailable: ``kms.db.unavailable``."""
        try:
            return self._connection().execute(sql, values).fetchall()
        except sqlite3.Error as exc:
            raise _unavailable() from exc

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """For the statements of a repository that only reads.

        :raises Unavailable: ``kms.db.unavailable``.
        """
        try:
            yield self._connection()
        except sqlite3.Error as exc:
            raise _unavailable() from exc

    @contextmanager
    def transaction(
        self, durable: bool = True
    ) -> Iterator[sqlite3.Connection]:
        """All or nothing; on return it is on the disk.

        :param durable: false where losing the write in a power failure is
            harmless (nonces): no fsync then.
        :raises Unavailable: ``kms.db.unavailable``.
        """
        connection = self._connection()
        with self._writer:
            try:
                if not durable:
                    connection.execute("pragma synchronous=normal")
                try:
                    connection.execute("begin immediate")
                    yield connection
                    connection.execute("commit")
                finally:
                    # Both, whatever failed: the next record must be on the
                    # disk when it is answered with.
                    try:
                        if connection.in_transaction:
                            connection.execute("rollback")
                    finally:
                        if not durable:
                            connection.execute("pragma synchronous=full")
            except sqlite3.Error as exc:
                raise _unavailable() from exc

    def close(self) -> None:
        """Close this thread's connection; the last one folds the log in."""
        held = getattr(self._local, "connection", None)
        self._local.connection = None
        if held is not None:
            held.close()

    def truncate_log(self) -> None:
        """Overwrite what the write-ahead log still holds."""
        try:
            with self._writer:
                self._connection().execute(
                    "pragma wal_checkpoint(truncate)"
                ).fetchall()
        except sqlite3.Error as exc:
            raise _unavailable() from exc
