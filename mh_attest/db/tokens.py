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
"""Statements on callers' tokens."""

import hashlib
from dataclasses import dataclass

import sqlalchemy as sa

from mh_attest.db.tables import tokens
from mh_core.encoding import unb64u
from mh_core.errors import Conflict, InputError
from mh_core.secret import Secret

ROLES = ("operator", "reader", "relying")


_BY_DIGEST = sa.select(tokens).where(tokens.c.digest == sa.bindparam("value"))


@dataclass(frozen=True)
class Caller:
    """Who a bearer token belongs to."""

    name: str
    roles: tuple[str, ...]


def digest(token: Secret) -> str:
    """SHA-256 of a token's 32 random bytes, hex.

    :raises InputError: ``attest.auth.token``.
    """
    text = token.reveal().decode("ascii", "replace")
    data = unb64u(text, "attest.auth.token")
    if len(data) != 32:
        raise InputError("attest.auth.token", "not a token of this server")
    return hashlib.sha256(data).hexdigest()


def find(connection: sa.Connection, token_digest: str) -> Caller | None:
    row = connection.execute(_BY_DIGEST, {"value": token_digest}).first()
    if row is None:
        return None
    return Caller(str(row.name), tuple(str(row.roles).split(",")))


def create(
    connection: sa.Connection,
    name: str,
    roles: tuple[str, ...],
    token_digest: str,
    now: int,
) -> None:
    """:raises Conflict: ``attest.token.name``: the name is taken."""
    if connection.execute(
        sa.select(tokens.c.name).where(tokens.c.name == name)
    ).first():
        raise Conflict("attest.token.name", "there is a token of that name")
    connection.execute(
        sa.insert(tokens).values(
            name=name,
            digest=token_digest,
            roles=",".join(roles),
            created_at=now,
        )
    )


def every(connection: sa.Connection) -> list[tuple[str, str, int]]:
    rows = connection.execute(sa.select(tokens).order_by(tokens.c.name))
    return [(r.name, r.roles, r.created_at) for r in rows]


def revoke(connection: sa.Connection, name: str) -> bool:
    done = connection.execute(sa.delete(tokens).where(tokens.c.name == name))
    return done.rowcount == 1
