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

"""Nonces: for one key, for one use, for 60 seconds."""

import sqlite3

from mh_kms.db.connection import Database

#: Life of a nonce, seconds.
LIFE = 60


def add(database: Database, nonce: bytes, key_id: str, now: int) -> None:
    """Losing it in a power failure costs the host one more question."""
    with database.transaction(durable=False) as connection:
        connection.execute("delete from nonces where expires_at <= ?", (now,))
        connection.execute(
            "insert into nonces (nonce, key_id, expires_at) values (?, ?, ?)",
            (nonce, key_id, now + LIFE),
        )


def known(database: Database, nonce: bytes, key_id: str, now: int) -> bool:
    """Whether it was given for this key, and is neither spent nor late."""
    row = database.fetch(
        "select 1 from nonces"
        " where nonce = ? and key_id = ? and expires_at > ?",
        (nonce, key_id, now),
    )
    return row is not None


def spend(
    connection: sqlite3.Connection, nonce: bytes, key_id: str, now: int
) -> bool:
    """Use it up; false if another request was faster, or it is late."""
    done = connection.execute(
        "delete from nonces where nonce = ? and key_id = ? and expires_at > ?",
        (nonce, key_id, now),
    )
    return done.rowcount == 1
