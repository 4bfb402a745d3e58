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

"""How much of the audit is kept.

Refusals and renewals are what a host, or whoever speaks like one, can cause
as often as it likes.  Of each key the newest are kept.  A record that goes
leaves its place in its chain and its hash, joined with the places next to
it; the chain then still verifies, and a record in the chain says which went.
"""

import sqlite3
from dataclasses import dataclass, field
from typing import Any

from mh_core.encoding import parse_json
from mh_core.errors import InputError

#: Routine records of each key.
KEPT = 1000
PRUNED = "kms.audit.pruned"
#: Of records about keys that never were; they share one number.
_UNKNOWN = "unknown"
#: Longest list that a record of what went takes over from the one before.
_JOINED = 1000
#: (chain, first, last).
Range = tuple[str, int, int]


def bucket(connection: sqlite3.Connection, key_id: str) -> str:
    row = connection.execute(
        "select 1 from keys where id = ?", (key_id,)
    ).fetchone()
    return key_id if row else _UNKNOWN


def pruned_bucket(name: str) -> str:
    """Of the records that say what went."""
    return f"{PRUNED}/{name}"


def prune(connection: sqlite3.Connection, name: str, kept: int) -> list[Range]:
    """Let go of the oldest, some at a time; what went, joined."""
    (count,) = connection.execute(
        "select count(*) from audit where bucket = ?", (name,)
    ).fetchone()
    if count <= kept + max(1, kept // 10):
        return []
    columns = "select number, chain, seq, hash, record from audit"
    rows = connection.execute(
        columns + " where bucket = ? order by number limit ?",
        (name, count - kept),
    ).fetchall()
    ranges = Ranges()
    # what was said of it before is said once more, so that it can go as well
    for row in connection.execute(
        columns + " where bucket = ?", (pruned_bucket(name),)
    ).fetchall():
        said = Ranges()
        said.read(row[4])
        if len(said.all()) <= _JOINED:
            ranges.read(row[4])
            rows.append(row)
    for number, chain, seq, digest, _ in rows:
        connection.execute("delete from audit where number = ?", (number,))
        _hole(connection, chain, seq, digest)
        ranges.add(chain, seq, seq)
    return ranges.all()


def _hole(
    connection: sqlite3.Connection, chain: str, seq: int, digest: bytes
) -> None:
    first, last = seq, seq
    before = connection.execute(
        "select first from audit_holes where chain = ? and last = ?",
        (chain, seq - 1),
    ).fetchone()
    after = connection.execute(
        "select last, hash from audit_holes where chain = ? and first = ?",
        (chain, seq + 1),
    ).fetchone()
    if before is not None:
        first = before[0]
    if after is not None:
        last, digest = after
    connection.execute(
        "delete from audit_holes where chain = ? and first in (?, ?)",
        (chain, first, seq + 1),
    )
    connection.execute(
        "insert into audit_holes (chain, first, last, hash)"
        " values (?, ?, ?, ?)",
        (chain, first, last, digest),
    )


@dataclass
class Ranges:
    """Places in chains."""

    _of: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def add(self, chain: str, first: int, last: int) -> None:
        self._of.setdefault(chain, []).append((first, last))

    def all(self) -> list[Range]:
        """Sorted; those next to each other, or overlapping, as one."""
        out: list[Range] = []
        for chain, known in sorted(self._of.items()):
            for first, last in sorted(known):
                if out and out[-1][0] == chain and out[-1][2] + 1 >= first:
                    out[-1] = (chain, out[-1][1], max(out[-1][2], last))
                else:
                    out.append((chain, first, last))
        return out

    def read(self, record: bytes) -> None:
        """Add what a record says went, if it is one that says so."""
        if PRUNED.encode() not in record:
            return
        try:
            document: Any = parse_json(record)
            if document["event"] == PRUNED:
                for chain, first, last in document["ranges"]:
                    self.add(str(chain), int(first), int(last))
        except (InputError, KeyError, TypeError, ValueError):
            return

    def within(self, others: "Ranges") -> bool:
        """Whether every place of these is one of the others'."""
        told = others.all()
        return all(
            any(
                chain == name and start <= first and last <= end
                for name, start, end in told
            )
            for chain, first, last in self.all()
        )
