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

"""The audit chain, transactions, and the schema under them."""

import pathlib
import sqlite3
import threading

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from mh_core.errors import MHError, Unavailable, VerificationError
from mh_kms import ledger as ledger_module
from mh_kms.db import migration, tickets
from mh_kms.db.connection import Database, path_of
from mh_kms.db.schema import METADATA
from mh_kms.ledger import Ledger


@pytest.fixture
def database(tmp_path: pathlib.Path) -> Database:
    path = str(tmp_path / "x.sqlite")
    migration.sync(path)
    return Database(path)


def fill(ledger: Ledger, count: int) -> None:
    for number in range(count):
        with ledger.transaction() as entry:
            entry.record("kms.test", "key", number=number)


def test_records_are_chained(database: Database) -> None:
    first, second = (Ledger(database, lambda: 1000.0) for _ in range(2))
    fill(first, 3)
    fill(second, 2)
    fill(first, 1)
    assert ledger_module.verify(database) == (2, 6)
    found = ledger_module.records(database, "key", 0, 10)
    assert [one["number"] for one in found] == [0, 1, 2, 0, 1, 0]
    assert [one["seq"] for one in found] == [1, 2, 3, 4, 5, 6]
    assert found[-1]["audit"].endswith("#4")
    assert found[0]["time"] == 1000
    assert ledger_module.records(database, "key", 2, 2) == found[2:4]


@pytest.mark.parametrize(
    "tampering",
    [
        "update audit set record = replace(record, '1', '2') where seq = 2",
        "delete from audit where seq = 2",
        "delete from audit where seq = 1",
        "update audit set hash = zeroblob(32) where seq = 3",
        "update audit set seq = seq + 10 where seq > 1",
    ],
)
def test_tampering_shows(database: Database, tampering: str) -> None:
    fill(Ledger(database, lambda: 1.0), 3)
    assert ledger_module.verify(database) == (1, 3)
    with database.transaction() as connection:
        connection.execute(tampering)
    with pytest.raises(VerificationError) as caught:
        ledger_module.verify(database)
    assert caught.value.event == "core.audit.chain"


def test_all_or_nothing(database: Database) -> None:
    ledger = Ledger(database, lambda: 1.0)
    fill(ledger, 1)

    def breaks() -> None:
        with ledger.transaction() as entry:
            entry.connection.execute(
                "insert into nonces values (x'00', 'k', 1)"
            )
            entry.record("kms.test", "key")
            raise MHError("kms.test", "no")

    with pytest.raises(MHError):
        breaks()
    assert database.fetch_all("select * from nonces") == []
    fill(ledger, 1)
    assert ledger_module.verify(database) == (1, 2)


def test_threads_share_a_chain(database: Database) -> None:
    ledger = Ledger(database, lambda: 1.0)
    threads = [
        threading.Thread(target=fill, args=(ledger, 10)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger_module.verify(database) == (1, 40)


def test_a_fork_begins_a_chain_of_its_own(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(database, lambda: 1.0)
    fill(ledger, 2)
    monkeypatch.setattr("mh_kms.ledger.os.getpid", lambda: -1)
    fill(ledger, 2)
    assert ledger_module.verify(database) == (2, 4)


def test_durability(database: Database) -> None:
    """Full by default; nonces do without; then full again."""

    def level() -> int:
        return int(database.fetch("pragma synchronous")[0])  # type: ignore[index]

    assert database.fetch("pragma journal_mode") == ("wal",)
    assert level() == 2
    with database.transaction(durable=False) as connection:
        row = connection.execute("pragma synchronous").fetchone()
        assert row == (1,)
    assert level() == 2
    with (
        pytest.raises(Unavailable),
        database.transaction(durable=False) as connection,
    ):
        connection.execute("insert into nothing values (1)")
    assert level() == 2


def test_a_database_that_is_away(tmp_path: pathlib.Path) -> None:
    database = Database(str(tmp_path / "none" / "x.sqlite"))
    with pytest.raises(Unavailable) as caught:
        database.fetch("select 1")
    assert caught.value.event == "kms.db.unavailable"
    with pytest.raises(Unavailable), database.transaction():
        pass


def test_migrations_make_the_schema(database: Database) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{database.path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, METADATA) == []
    engine.dispose()


def test_another_version_is_refused(database: Database) -> None:
    migration.require(database)
    with database.transaction() as connection:
        connection.execute("update alembic_version set version_num = '9'")
    with pytest.raises(Unavailable) as caught:
        migration.require(database)
    assert caught.value.event == "kms.db.version"


def test_before_the_first_sync(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.sqlite"
    assert migration.version(str(path)) == ""
    assert not path.exists()
    sqlite3.connect(path).close()
    with pytest.raises(Unavailable) as caught:
        migration.require(Database(str(path)))
    assert caught.value.event == "kms.db.version"


@pytest.mark.parametrize(
    "url", ["sqlite:///x", "mysql://x/y", "sqlite://", "/x"]
)
def test_other_urls(url: str) -> None:
    with pytest.raises(Unavailable):
        path_of(url)


def test_a_nonce_that_fails_leaves_records_durable(
    database: Database,
) -> None:
    connection = database._connection()
    connection.execute("pragma busy_timeout=10")
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("begin immediate")
    with (
        pytest.raises(Unavailable),
        database.transaction(durable=False),
    ):
        pass
    other.execute("rollback")
    other.close()
    full = 2
    assert database.fetch("pragma synchronous") == (full,)


def test_records_of_instances_survive_the_upgrade(
    tmp_path: pathlib.Path,
) -> None:
    path = str(tmp_path / "x.sqlite")
    migration.sync(path)
    database = Database(path)
    with database.transaction() as connection:
        for name in ("project", "host", "ak_name"):
            connection.execute(f"alter table instances drop column {name}")
        for name in (
            "leases",
            "revocations",
            "snapshot_grants",
            "snapshots",
            "audit_holes",
        ):
            connection.execute(f"drop table {name}")
        connection.execute("drop index ix_audit_bucket")
        connection.execute("alter table audit drop column bucket")
        connection.execute(
            "insert into instances values ('k', 'i', '[\"m\"]', x'00', 1)"
        )
        connection.execute("update alembic_version set version_num = '0001'")
    with pytest.raises(Unavailable):
        migration.require(database)
    database.close()
    migration.sync(path)
    migration.require(database)
    with database.transaction() as connection:
        found = tickets.instance(connection, "k", "i")
    assert found == tickets.Instance(("m",), "", "", "")
