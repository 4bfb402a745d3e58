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

"""Keys that hosts bring: one for each snapshot, after a release for it."""

import sqlite3
from dataclasses import dataclass
from typing import Any

from mh_core.encoding import canonical_json, parse_json
from mh_core.errors import NotFound
from mh_core.request import KeyRequest
from mh_kms.db.connection import Database

#: Seconds between the release and the new key: a large disk takes hours.
LIFE = 24 * 3600


@dataclass(frozen=True)
class Grant:
    """A release for ``snapshot``.

    :param image, manifest: of the disk that was opened; hex.
    :param ak_name: TPM Name (hex) of the AK it was given to.
    :param used_by: digest (hex) of the claims that used it, or empty.
    """

    release: str
    key_id: str
    instance: str
    project: str
    image: str
    manifest: str
    ak_name: str
    used_by: str


def grant(
    connection: sqlite3.Connection,
    release: str,
    request: KeyRequest,
    ak_name: str,
    now: int,
) -> None:
    """Note a release that one new key may follow.

    :param release: its audit id.
    """
    connection.execute(
        "delete from snapshot_grants where expires_at <= ?", (now,)
    )
    connection.execute(
        "insert into snapshot_grants (release, key_id, instance, project,"
        " image, manifest, ak_name, expires_at)"
        " values (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            release,
            request.key_id,
            request.instance,
            request.project,
            request.image,
            request.manifest_digest,
            ak_name,
            now + LIFE,
        ),
    )


def granted(
    connection: sqlite3.Connection, release: str, now: int
) -> Grant | None:
    """A release of that id which has not expired, used or not."""
    row = connection.execute(
        "select release, key_id, instance, project, image, manifest,"
        " ak_name, used_by from snapshot_grants"
        " where release = ? and expires_at > ?",
        (release, now),
    ).fetchone()
    return None if row is None else Grant(*row)


def use(connection: sqlite3.Connection, release: str, claims: str) -> bool:
    """Use a grant up; false if another snapshot has."""
    done = connection.execute(
        "update snapshot_grants set used_by = ?"
        " where release = ? and used_by = ''",
        (claims, release),
    )
    return done.rowcount == 1


def add(
    connection: sqlite3.Connection,
    key_id: str,
    source_key_id: str,
    document: dict[str, Any],
    now: int,
) -> None:
    """Keep what a key comes from."""
    connection.execute(
        "insert into snapshots (key_id, source_key_id, document, created_at)"
        " values (?, ?, ?, ?)",
        (key_id, source_key_id, canonical_json(document).decode(), now),
    )


def find(database: Database, key_id: str) -> dict[str, Any] | None:
    """What a key comes from; None for one that its owner made."""
    row = database.fetch(
        "select document from snapshots where key_id = ?", (key_id,)
    )
    if row is None:
        return None
    document: dict[str, Any] = parse_json(row[0].encode())
    return document


def document(database: Database, key_id: str) -> dict[str, Any]:
    """:raises NotFound: ``kms.snapshot.unknown``."""
    found = find(database, key_id)
    if found is None:
        raise NotFound(
            "kms.snapshot.unknown", "the key is not that of a snapshot"
        )
    return found
