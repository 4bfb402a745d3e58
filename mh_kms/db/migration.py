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

"""Bring a database to this version's schema."""

import os
import sqlite3

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from mh_core.errors import MHError, Unavailable
from mh_kms.db.connection import PREFIX, Database

HEAD = "0005"


def sync(path: str) -> None:
    """Create the file (mode 0600) where needed, and upgrade it.

    :raises Unavailable: ``kms.db.unavailable``.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with sqlite3.connect(path) as connection:
            connection.execute("pragma journal_mode=wal")
        connection.close()
    except (OSError, sqlite3.Error) as exc:
        raise Unavailable(
            "kms.db.unavailable", "the database file cannot be made"
        ) from exc
    engine = sqlalchemy.create_engine(PREFIX + path)
    config = Config()
    config.set_main_option("script_location", "mh_kms:db/migrations")
    config.set_main_option("path_separator", "os")
    with engine.begin() as bound:
        config.attributes["connection"] = bound
        command.upgrade(config, "head")
    engine.dispose()


def version(path: str) -> str:
    """Revision the database is at; empty before the first ``sync``."""
    if not os.path.exists(path):
        return ""
    engine = sqlalchemy.create_engine(PREFIX + path)
    with engine.connect() as bound:
        found = MigrationContext.configure(bound).get_current_revision()
    engine.dispose()
    return found or ""


def require(database: Database) -> None:
    """Refuse to serve from another schema than this version's.

    :raises Unavailable: ``kms.db.version``.
    """
    try:
        row = database.fetch("select version_num from alembic_version")
    except MHError as exc:
        raise Unavailable(
            "kms.db.version", "run mh-kms-manage db sync first"
        ) from exc
    if row != (HEAD,):
        raise Unavailable(
            "kms.db.version", "the database is of another version: db sync"
        )
