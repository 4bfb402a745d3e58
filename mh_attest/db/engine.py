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
"""The database engine.

SQLAlchemy directly: oslo.db opens SQLite anew for every use (NullPool),
which costs more than the statements here.
"""

from typing import Any

import sqlalchemy as sa
from oslo_config import cfg

from mh_core.errors import Unavailable

#: Execution option of a connection whose transactions write.
WRITES = "mh_writes"


def connect(conf: cfg.ConfigOpts) -> sa.Engine:
    """An engine for ``[database] connection``; opens nothing yet."""
    url = sa.make_url(conf.database.connection)
    if not url.drivername.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True, hide_parameters=True)
    engine = sa.create_engine(
        url,
        connect_args={"timeout": conf.database.busy_timeout},
        hide_parameters=True,
    )

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # pysqlite's own BEGIN would come too late for savepoints.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        # An answer follows the commit: it must survive a power cut.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that reads first and writes then fails at once where
        # another process wrote in between; IMMEDIATE waits instead.
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def unavailable(error: sa.exc.SQLAlchemyError) -> Unavailable:
    """What callers see of a database that fails: nothing of it."""
    return Unavailable("attest.database", "the database does not answer")
