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

"""Launch tickets, and the instances they were spent on."""

import hashlib
import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass

from mh_core.encoding import unb64u
from mh_core.errors import InputError


def digest(ticket: str) -> bytes:
    """What is stored of a ticket: SHA-256 (32 bytes) of its 32.

    :raises InputError: ``kms.ticket.form``.
    """
    data = unb64u(ticket, "kms.ticket.form")
    if len(data) != 32:
        raise InputError("kms.ticket.form", "not a launch ticket")
    return hashlib.sha256(data).digest()


def add(
    connection: sqlite3.Connection,
    key_id: str,
    hashed: bytes,
    manifests: Collection[str],
    count: int,
    expires_at: int,
    now: int,
) -> None:
    connection.execute("delete from tickets where expires_at <= ?", (now,))
    connection.execute(
        "insert into tickets (hash, key_id, manifests, remaining, expires_at)"
        " values (?, ?, ?, ?, ?)",
        (hashed, key_id, json.dumps(sorted(manifests)), count, expires_at),
    )


@dataclass(frozen=True)
class Instance:
    """An instance that a ticket was spent on.

    :param manifests: that the ticket named, hex.
    :param project: the cloud's claim then; empty in an old record.
    :param host: of the last release; ``ak_name``: its AK's TPM Name, hex.
    """

    manifests: tuple[str, ...]
    project: str
    host: str
    ak_name: str

    def entitles(self, manifest: str, project: str) -> bool:
        """Whether no other ticket is needed."""
        return manifest in self.manifests and self.project in ("", project)


def instance(
    connection: sqlite3.Connection, key_id: str, name: str
) -> Instance | None:
    row = connection.execute(
        "select manifests, project, host, ak_name from instances"
        " where key_id = ? and instance = ?",
        (key_id, name),
    ).fetchone()
    if row is None:
        return None
    return Instance(tuple(json.loads(row[0])), *row[1:])


def released(
    connection: sqlite3.Connection,
    key_id: str,
    name: str,
    project: str,
    host: str,
    ak_name: str,
) -> None:
    """Note who has the instance's keys now."""
    connection.execute(
        "update instances set project = ?, host = ?, ak_name = ?"
        " where key_id = ? and instance = ?",
        (project, host, ak_name, key_id, name),
    )


def carry(
    connection: sqlite3.Connection,
    key_id: str,
    instance: str,
    manifest: str,
    now: int,
) -> None:
    """Entitle the instance that a snapshot was taken of to its new key."""
    connection.execute(
        "insert or replace into instances"
        " (key_id, instance, manifests, ticket, created_at)"
        " values (?, ?, ?, ?, ?)",
        (key_id, instance, json.dumps([manifest]), b"snapshot", now),
    )


def spend(
    connection: sqlite3.Connection,
    key_id: str,
    hashed: bytes,
    instance: str,
    manifest: str,
    now: int,
    also: Collection[str] = (),
) -> bool:
    """Use a ticket once, and remember on which instance.

    :param also: manifests that the instance needs no ticket for either.

    False: unknown, of another key, used up, late, or for other manifests.
    """
    row = connection.execute(
        "select manifests from tickets where hash = ? and key_id = ?"
        " and remaining > 0 and expires_at > ?",
        (hashed, key_id, now),
    ).fetchone()
    if row is None or manifest not in json.loads(row[0]):
        return False
    connection.execute(
        "update tickets set remaining = remaining - 1 where hash = ?",
        (hashed,),
    )
    connection.execute(
        "insert or replace into instances"
        " (key_id, instance, manifests, ticket, created_at)"
        " values (?, ?, ?, ?, ?)",
        (
            *(key_id, instance),
            json.dumps(sorted({*json.loads(row[0]), *also})),
            *(hashed, now),
        ),
    )
    return True
