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
"""Statements on the audit chains."""

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from mh_attest.db.tables import audit, checkpoints

#: Records in one answer.
PAGE = 1000


def page(connection: sa.Connection, after: int) -> list[dict[str, Any]]:
    rows = connection.execute(
        sa.select(audit)
        .where(audit.c.id > after)
        .order_by(audit.c.id)
        .limit(PAGE)
    )
    return [
        {
            "seq": row.id,
            "audit": f"{row.chain}#{row.seq}",
            "record": json.loads(row.record),
            "hash": bytes(row.hash).hex(),
        }
        for row in rows
    ]


def chains(connection: sa.Connection) -> list[str]:
    rows = connection.execute(
        sa.select(audit.c.chain)
        .union(sa.select(checkpoints.c.chain))
        .order_by("chain")
    )
    return [str(row[0]) for row in rows]


def rows(
    connection: sa.Connection, chain: str
) -> Iterator[tuple[int, bytes, bytes]]:
    """(seq, record, hash) of a chain, in order."""
    found = connection.execute(
        sa.select(audit.c.seq, audit.c.record, audit.c.hash)
        .where(audit.c.chain == chain)
        .order_by(audit.c.seq)
    )
    for row in found:
        yield int(row[0]), bytes(row[1]), bytes(row[2])


def heads(connection: sa.Connection, chain: str) -> list[tuple[int, str]]:
    found = connection.execute(
        sa.select(checkpoints.c.seq, checkpoints.c.jws)
        .where(checkpoints.c.chain == chain)
        .order_by(checkpoints.c.seq)
    )
    return [(int(row[0]), str(row[1])) for row in found]
