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

"""Keys and their manifests."""

import sqlite3
from dataclasses import dataclass, field
from typing import Any

from mh_core.encoding import canonical_json, parse_json
from mh_core.errors import Conflict, NotFound
from mh_core.launch_policy import LaunchPolicy
from mh_kms import release_policy
from mh_kms.db.connection import Database
from mh_kms.release_policy import ReleasePolicy

_COLUMNS = (
    "id, name, project, created_at, deleted_at, revision, policy,"
    " dek, overlay_root"
)


@dataclass(frozen=True)
class Key:
    """
    :param revision: counts every change of the key, policy or manifests.
    :param policy_text: release policy as the owner wrote it, canonical JSON.
    :param dek: sealed by the key store; None after deletion.
    :param overlay_root: likewise.
    """

    id: str
    name: str
    project: str
    created_at: int
    deleted_at: int | None
    revision: int
    policy_text: str
    dek: bytes | None = field(repr=False)
    overlay_root: bytes | None = field(repr=False)

    @property
    def policy(self) -> ReleasePolicy:
        return release_policy.load(self.policy_text)

    def sealed_dek(self) -> bytes:
        """:raises NotFound: ``kms.key.unknown``: it was destroyed."""
        if self.dek is None:
            raise unknown()
        return self.dek

    def sealed_root(self) -> bytes:
        """The overlay root, likewise."""
        if self.overlay_root is None:
            raise unknown()
        return self.overlay_root


def unknown(event: str = "kms.key.unknown") -> NotFound:
    return NotFound(event, "there is no such key")


def find(database: Database, key_id: str) -> Key:
    """A key, deleted or not.

    :raises NotFound: ``kms.key.unknown``.
    """
    row = database.fetch(
        f"select {_COLUMNS} from keys where id = ?",  # noqa: S608
        (key_id,),
    )
    if row is None:
        raise unknown()
    return Key(*row)


def get(database: Database, key_id: str) -> Key:
    """A key that is there.

    :raises NotFound: ``kms.key.unknown``.
    """
    key = find(database, key_id)
    if key.deleted_at is not None:
        raise unknown()
    return key


def of_project(database: Database, project: str | None) -> list[Key]:
    """Keys of a project, or of all, oldest first."""
    rows = database.fetch_all(
        f"select {_COLUMNS} from keys"  # noqa: S608
        " where deleted_at is null and (?1 is null or project = ?1)"
        " order by created_at, id",
        (project,),
    )
    return [Key(*row) for row in rows]


def insert(connection: sqlite3.Connection, key: Key) -> None:
    connection.execute(
        f"insert into keys ({_COLUMNS})"  # noqa: S608
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key.id,
            key.name,
            key.project,
            key.created_at,
            key.deleted_at,
            key.revision,
            key.policy_text,
            key.dek,
            key.overlay_root,
        ),
    )


def free(connection: sqlite3.Connection, key_id: str) -> bool:
    """Whether no key has, or had, this id."""
    row = connection.execute(
        "select 1 from keys where id = ?", (key_id,)
    ).fetchone()
    return row is None


def touch(connection: sqlite3.Connection, key: Key) -> None:
    """Void every decision made on the key as it was.

    :raises NotFound: ``kms.key.unknown``: deleted meanwhile.
    """
    done = connection.execute(
        "update keys set revision = revision + 1"
        " where id = ? and deleted_at is null",
        (key.id,),
    )
    if done.rowcount != 1:
        raise unknown()


def unchanged(connection: sqlite3.Connection, key: Key) -> bool:
    """Whether the key is still as it was read."""
    row = connection.execute(
        "select 1 from keys"
        " where id = ? and revision = ? and deleted_at is null",
        (key.id, key.revision),
    ).fetchone()
    return row is not None


def set_policy(
    connection: sqlite3.Connection, key: Key, policy_text: str
) -> None:
    touch(connection, key)
    connection.execute(
        "update keys set policy = ? where id = ?", (policy_text, key.id)
    )


def delete(connection: sqlite3.Connection, key: Key, now: int) -> None:
    """Destroy the key material; what is left is the row's name."""
    touch(connection, key)
    connection.execute(
        "update keys set deleted_at = ?, dek = null, overlay_root = null"
        " where id = ?",
        (now, key.id),
    )
    for statement in (
        "delete from manifests where key_id = ?",
        "delete from nonces where key_id = ?",
        "delete from tickets where key_id = ?",
        "delete from instances where key_id = ?",
        "delete from leases where key_id = ?",
        "delete from revocations where key_id = ?",
        "delete from snapshot_grants where key_id = ?",
        "delete from snapshots where key_id = ?",
    ):
        connection.execute(statement, (key.id,))


# -- manifests -----------------------------------------------------------

#: As many as fit one release.
MAX_MANIFESTS = 1024


def manifests(database: Database, key_id: str) -> dict[str, LaunchPolicy]:
    """Digest (hex) of each of a key's manifests to its launch policy."""
    rows = database.fetch_all(
        "select digest, launch_policy from manifests where key_id = ?"
        " order by created_at, digest",
        (key_id,),
    )
    return {
        digest: LaunchPolicy.parse(parse_json(text.encode()))
        for digest, text in rows
    }


def add_manifest(
    connection: sqlite3.Connection,
    key: Key,
    digest: str,
    jws: str,
    policy: LaunchPolicy,
    now: int,
) -> None:
    """Registering a manifest once more changes nothing.

    :raises Conflict: ``kms.manifest.number``.
    """
    count: Any = connection.execute(
        "select count(*) from manifests where key_id = ? and digest <> ?",
        (key.id, digest),
    ).fetchone()[0]
    if count >= MAX_MANIFESTS:
        raise Conflict(
            "kms.manifest.number", f"a key has at most {MAX_MANIFESTS}"
        )
    touch(connection, key)
    connection.execute(
        "insert or ignore into manifests"
        " (key_id, digest, jws, launch_policy, created_at)"
        " values (?, ?, ?, ?, ?)",
        (
            key.id,
            digest,
            jws,
            canonical_json(policy.to_dict()).decode(),
            now,
        ),
    )


def drop_manifest(
    connection: sqlite3.Connection, key: Key, digest: str
) -> None:
    """:raises NotFound: ``kms.manifest.unknown``."""
    touch(connection, key)
    done = connection.execute(
        "delete from manifests where key_id = ? and digest = ?",
        (key.id, digest),
    )
    if done.rowcount != 1:
        raise NotFound("kms.manifest.unknown", "there is no such manifest")
