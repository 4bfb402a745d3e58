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

"""Bearer tokens: 32 random bytes; their SHA-256 is stored."""

import hashlib
import sqlite3
import uuid
from dataclasses import dataclass

from mh_core.encoding import b64u
from mh_core.errors import Conflict, NotFound
from mh_core.secret import Secret
from mh_kms.db.connection import Database

ROLES = ("owner", "auditor", "admin")
PREFIX = "mhk_"


@dataclass(frozen=True)
class Caller:
    """Who a token stands for."""

    id: str
    name: str
    project: str
    roles: tuple[str, ...]


def make(random: bytes) -> Secret:
    """The text of a token, from 32 random bytes."""
    return Secret((PREFIX + b64u(random)).encode())


def digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def find(database: Database, token: bytes) -> Caller | None:
    """Who this token stands for, unless unknown or revoked."""
    row = database.fetch(
        "select id, name, project, roles from tokens"
        " where hash = ? and revoked_at is null",
        (digest(token),),
    )
    if row is None:
        return None
    return Caller(row[0], row[1], row[2], tuple(row[3].split(",")))


def add(
    connection: sqlite3.Connection,
    token: Secret,
    name: str,
    project: str,
    roles: tuple[str, ...],
    now: int,
) -> Caller:
    """:raises Conflict: ``kms.token.name``."""
    taken = connection.execute(
        "select 1 from tokens where name = ? and revoked_at is null", (name,)
    ).fetchone()
    if taken is not None:
        raise Conflict("kms.token.name", "there is a token of that name")
    caller = Caller(str(uuid.uuid4()), name, project, roles)
    connection.execute(
        "insert into tokens (id, name, project, roles, hash, created_at)"
        " values (?, ?, ?, ?, ?, ?)",
        (
            caller.id,
            name,
            project,
            ",".join(roles),
            digest(token.reveal()),
            now,
        ),
    )
    return caller


def listed(database: Database) -> list[dict[str, object]]:
    rows = database.fetch_all(
        "select id, name, project, roles, created_at, revoked_at from tokens"
        " order by created_at, name"
    )
    return [
        {
            "id": row[0],
            "name": row[1],
            "project": row[2],
            "roles": row[3].split(","),
            "created_at": row[4],
            "revoked_at": row[5],
        }
        for row in rows
    ]


def revoke(connection: sqlite3.Connection, name_or_id: str, now: int) -> str:
    """:returns: the token's id.
    :raises NotFound: ``kms.token.unknown``."""
    row = connection.execute(
        "select id from tokens"
        " where (id = ?1 or name = ?1) and revoked_at is null",
        (name_or_id,),
    ).fetchone()
    if row is None:
        raise NotFound("kms.token.unknown", "there is no such token")
    connection.execute(
        "update tokens set revoked_at = ? where id = ?", (now, row[0])
    )
    return str(row[0])
