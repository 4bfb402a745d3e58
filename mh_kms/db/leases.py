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

"""Leases: which host runs an instance, and until when it may.

A row that has ended stays for a while, so that its host is told why.
"""

import sqlite3
from dataclasses import asdict, dataclass, fields

#: Longest live migration that a holder may name, seconds.
HANDOVER = 3600
#: Ended leases of one instance that are kept.
KEPT = 8

# why a lease ended
REPLACED = "replaced"
MOVED = "moved"
LEFT = "left"
CANCELLED = "cancelled"
REVOKED = "revoked"


@dataclass(frozen=True)
class Lease:
    """One row; times in seconds since the epoch.

    :param id: number of the audit record of its release.
    :param ak_name: TPM Name of the holder's AK, hex.
    :param seconds: what the holder was last given; 0 for no end.
    :param why: of an ended one.
    :param parent: id of the lease of the host that it migrates from.
    """

    id: str
    key_id: str
    instance: str
    host: str
    ak_name: str
    project: str
    manifest: str
    image: str
    purpose: str
    seconds: int
    granted_at: int
    renewed_at: int
    renewals: int = 0
    ended_at: int | None = None
    why: str = ""
    handover_to: str = ""
    handover_until: int = 0
    parent: str = ""
    erased_at: int | None = None

    @property
    def held(self) -> bool:
        return self.ended_at is None

    def expires_at(self) -> int | None:
        """None: never."""
        return self.renewed_at + self.seconds if self.seconds else None


_NAMES = tuple(one.name for one in fields(Lease))
_COLUMNS = ", ".join(_NAMES)
_MARKS = ", ".join("?" * len(_NAMES))


def find(
    connection: sqlite3.Connection, key_id: str, instance: str, name: str
) -> Lease | None:
    row = connection.execute(
        f"select {_COLUMNS} from leases"  # noqa: S608
        " where id = ? and key_id = ? and instance = ?",
        (name, key_id, instance),
    ).fetchone()
    return None if row is None else Lease(*row)


def of_instance(
    connection: sqlite3.Connection, key_id: str, instance: str
) -> list[Lease]:
    """All that are kept, oldest first."""
    rows = connection.execute(
        f"select {_COLUMNS} from leases"  # noqa: S608
        " where key_id = ? and instance = ? order by granted_at, rowid",
        (key_id, instance),
    ).fetchall()
    return [Lease(*row) for row in rows]


def begin(
    connection: sqlite3.Connection, made: Lease, now: int
) -> list[Lease]:
    """Store a lease; returns those of *other* hosts that end by it."""
    parent, moved = "", []
    for other in of_instance(connection, made.key_id, made.instance):
        if not other.held:
            continue
        if other.ak_name == made.ak_name:
            end(connection, other, REPLACED, now)
        elif (
            made.purpose == "migrate-in"
            and other.handover_to == made.host
            and other.handover_until > now
        ):
            parent = other.id
        else:
            end(connection, other, MOVED, now)
            moved.append(other)
    values = {**asdict(made), "parent": parent}
    connection.execute(
        f"insert into leases ({_COLUMNS}) values ({_MARKS})",  # noqa: S608
        [values[name] for name in _NAMES],
    )
    _prune(connection, made)
    return moved


def _prune(connection: sqlite3.Connection, made: Lease) -> None:
    connection.execute(
        "delete from leases where key_id = ?1 and instance = ?2"
        " and ended_at is not null and rowid not in (select rowid from leases"
        " where key_id = ?1 and instance = ?2 and ended_at is not null"
        " order by ended_at desc, rowid desc limit ?3)",
        (made.key_id, made.instance, KEPT),
    )


def end(
    connection: sqlite3.Connection, lease: Lease, why: str, now: int
) -> None:
    connection.execute(
        "update leases set ended_at = ?, why = ?"
        " where id = ? and ended_at is null",
        (now, why, lease.id),
    )


def renew(
    connection: sqlite3.Connection, lease: Lease, seconds: int, now: int
) -> None:
    connection.execute(
        "update leases set renewed_at = ?, seconds = ?,"
        " renewals = renewals + 1 where id = ?",
        (now, seconds, lease.id),
    )


def name_handover(
    connection: sqlite3.Connection, lease: Lease, to: str, until: int
) -> None:
    connection.execute(
        "update leases set handover_to = ?, handover_until = ? where id = ?",
        (to, until, lease.id),
    )


def erased(connection: sqlite3.Connection, lease: Lease, now: int) -> None:
    connection.execute(
        "update leases set erased_at = ? where id = ?", (now, lease.id)
    )


def settle(
    connection: sqlite3.Connection, key_id: str, instance: str, now: int
) -> list[Lease]:
    """End what is left of a migration whose time is over.

    The destination stays if it has asked for a renewal, which it does only
    while the guest runs there; else the source does.

    :returns: the leases that ended.
    """
    held = {
        one.id: one
        for one in of_instance(connection, key_id, instance)
        if one.held
    }
    out = []
    for one in held.values():
        source = held.get(one.parent)
        if source is None or source.handover_until > now:
            continue
        loser, why = (source, MOVED) if one.renewals else (one, CANCELLED)
        end(connection, loser, why, now)
        out.append(loser)
    return out


# -- revocation ----------------------------------------------------------


def revoked(
    connection: sqlite3.Connection, key_id: str, instance: str
) -> bool:
    row = connection.execute(
        "select 1 from revocations where key_id = ? and instance = ?",
        (key_id, instance),
    ).fetchone()
    return row is not None


def revoke(
    connection: sqlite3.Connection, key_id: str, instance: str, now: int
) -> list[Lease]:
    """Let no host start the instance; returns the leases that ended."""
    connection.execute(
        "insert or ignore into revocations (key_id, instance, created_at)"
        " values (?, ?, ?)",
        (key_id, instance, now),
    )
    held = [
        one for one in of_instance(connection, key_id, instance) if one.held
    ]
    for one in held:
        end(connection, one, REVOKED, now)
    return held


def restore(
    connection: sqlite3.Connection, key_id: str, instance: str
) -> None:
    connection.execute(
        "delete from revocations where key_id = ? and instance = ?",
        (key_id, instance),
    )
