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
"""Glance's operator, who can change its store and its database.

What he changes in both is consistent: Nova and its checks of Glance's own
digests see nothing.  Only what the tenant signed can tell.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pymysql  # type: ignore[import-untyped]
import pymysql.cursors  # type: ignore[import-untyped]

from tests.minicloud.foul import Undo

_BLOCK = 1 << 20


class Glance:
    """
    :param socket: of MariaDB.
    :param store: folder of the file store.
    :param database: its name.
    """

    def __init__(
        self, socket: Path, store: Path, database: str = "glance"
    ) -> None:
        self._socket = socket
        self._store = store
        self._database = database

    def path(self, image: str) -> Path:
        """The file of an image."""
        return self._store / image

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[pymysql.cursors.DictCursor]:
        with pymysql.connect(
            unix_socket=str(self._socket),
            user="root",
            database=self._database,
            cursorclass=pymysql.cursors.DictCursor,
        ) as connection:
            with connection.cursor() as cursor:
                yield cursor
            connection.commit()

    # -- bytes

    def image(self, image: str) -> dict[str, Any]:
        """checksum, os_hash_algo, os_hash_value, size of an image."""
        with self._cursor() as cursor:
            cursor.execute(
                "SELECT checksum, os_hash_algo, os_hash_value, size"
                " FROM images WHERE id = %s",
                (image,),
            )
            row = cursor.fetchone()
        if row is None:
            raise LookupError(f"no image {image}")
        return dict(row)

    def change_bytes(
        self, image: str, offset: int | None = None, data: bytes | None = None
    ) -> Undo:
        """Change bytes of an image, and the digests of it to match.

        :param offset: where; default: the middle, in the ciphertext.
        :param data: what to put there; default: 16 bytes of what is there,
            inverted.
        """
        path = self.path(image)
        before = self.image(image)
        size = path.stat().st_size
        if offset is None:
            offset = size // 2
        with path.open("r+b") as file:
            if data is None:
                old = os.pread(file.fileno(), 16, offset)
                data = bytes(octet ^ 0xFF for octet in old)
            old = os.pread(file.fileno(), len(data), offset)
            os.pwrite(file.fileno(), data, offset)
        self._match(image, before["os_hash_algo"])

        def undo() -> None:
            with path.open("r+b") as file:
                os.pwrite(file.fileno(), old, offset)
                file.truncate(size)
            self._write(image, before)

        return undo

    def _match(self, image: str, algorithm: str | None) -> None:
        checksum = hashlib.md5(usedforsecurity=False)
        digest = hashlib.new(algorithm or "sha512")
        size = 0
        with self.path(image).open("rb") as file:
            while block := file.read(_BLOCK):
                checksum.update(block)
                digest.update(block)
                size += len(block)
        self._write(
            image,
            {
                "checksum": checksum.hexdigest(),
                "os_hash_algo": algorithm or "sha512",
                "os_hash_value": digest.hexdigest(),
                "size": size,
            },
        )

    def _write(self, image: str, row: Mapping[str, Any]) -> None:
        with self._cursor() as cursor:
            cursor.execute(
                "UPDATE images SET checksum = %s, os_hash_algo = %s,"
                " os_hash_value = %s, size = %s WHERE id = %s",
                (
                    *(row["checksum"], row["os_hash_algo"]),
                    *(row["os_hash_value"], row["size"], image),
                ),
            )

    # -- properties

    def properties(self, image: str) -> dict[str, str]:
        """The image's properties as Glance would show them."""
        with self._cursor() as cursor:
            cursor.execute(
                "SELECT name, value FROM image_properties"
                " WHERE image_id = %s AND deleted = 0",
                (image,),
            )
            return {row["name"]: row["value"] for row in cursor.fetchall()}

    def set_properties(
        self, image: str, changes: Mapping[str, str | None]
    ) -> Undo:
        """Set properties; those that are None are deleted as Glance does.

        E.g. another image's ``mh_manifest``, or another ``mh_key_url``.
        """
        with self._cursor() as cursor:
            cursor.execute(
                "SELECT * FROM image_properties WHERE image_id = %s", (image,)
            )
            rows = list(cursor.fetchall())
            known = {row["name"] for row in rows}
            for name, value in changes.items():
                if value is None:
                    cursor.execute(
                        "UPDATE image_properties SET deleted = 1,"
                        " deleted_at = UTC_TIMESTAMP()"
                        " WHERE image_id = %s AND name = %s",
                        (image, name),
                    )
                elif name in known:
                    cursor.execute(
                        "UPDATE image_properties SET value = %s, deleted = 0,"
                        " deleted_at = NULL, updated_at = UTC_TIMESTAMP()"
                        " WHERE image_id = %s AND name = %s",
                        (value, image, name),
                    )
                else:
                    cursor.execute(
                        "INSERT INTO image_properties (image_id, name, value,"
                        " created_at, deleted)"
                        " VALUES (%s, %s, %s, UTC_TIMESTAMP(), 0)",
                        (image, name, value),
                    )

        return lambda: self._restore(image, rows)

    def strip(self, image: str, *prefixes: str) -> Undo:
        """Delete every property whose name begins so; default: ``mh_``."""
        chosen = prefixes or ("mh_",)
        return self.set_properties(
            image,
            {
                name: None
                for name in self.properties(image)
                if name.startswith(chosen)
            },
        )

    def swap_manifest(self, image: str, other: str) -> Undo:
        """Give an image the manifest of another one."""
        manifest = self.properties(other)["mh_manifest"]
        return self.set_properties(image, {"mh_manifest": manifest})

    def redirect_key(self, image: str, url: str) -> Undo:
        """Point the key URL elsewhere."""
        return self.set_properties(image, {"mh_key_url": url})

    def _restore(self, image: str, rows: list[dict[str, Any]]) -> None:
        with self._cursor() as cursor:
            cursor.execute(
                "DELETE FROM image_properties WHERE image_id = %s", (image,)
            )
            for row in rows:
                names = ", ".join(row)
                marks = ", ".join(["%s"] * len(row))
                cursor.execute(
                    f"INSERT INTO image_properties ({names})"  # noqa: S608
                    f" VALUES ({marks})",
                    tuple(row.values()),
                )
