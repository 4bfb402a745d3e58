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
"""The audit chain: durable, ordered, tamper-evident."""

import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from mh_attest import audit_check
from mh_attest import conf as conf_module
from mh_attest.db import engine as db_engine
from mh_attest.db import migration, tables
from mh_attest.journal import Journal
from mh_core import jose
from mh_core.errors import Conflict, Unavailable, VerificationError

KEY = jose.generate_key()
PUBLIC = jose.public(KEY)


@pytest.fixture
def engine(tmp_path: pathlib.Path) -> Iterator[sa.Engine]:
    path = tmp_path / "c.conf"
    path.write_text(
        f"[database]\nconnection = sqlite:///{tmp_path}/a.sqlite\n"
    )
    one = db_engine.connect(conf_module.load([str(path)]))
    migration.sync(one)
    yield one
    one.dispose()


def journal(engine: sa.Engine, chain: str = "c1") -> Journal:
    return Journal(engine, chain, KEY, lambda: 1_800_000_000.0)


def check(engine: sa.Engine) -> dict[str, Any]:
    with engine.connect() as connection:
        return audit_check.verify(connection, PUBLIC)


def run(engine: sa.Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(statement))


def test_records_are_numbered_and_chained(engine: sa.Engine) -> None:
    one = journal(engine)
    ids = [one.write({"event": f"e{n}"}) for n in range(3)]
    one.close()
    assert ids == ["c1#1", "c1#2", "c1#3"]
    found = check(engine)
    assert found["records"] == 3
    # it goes on after a stop
    assert one.write({"event": "e"}) == "c1#4"
    one.close()
    other = journal(engine, "c2")
    assert other.write({"event": "e"}) == "c2#1"
    other.close()
    assert [c["seq"] for c in check(engine)["chains"]] == [4, 1]


def test_many_threads_share_commits(engine: sa.Engine) -> None:
    one = journal(engine)
    ids: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: ids.extend(
                [one.write({"event": "e"}) for _ in range(20)]
            )
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one.close()
    assert len(set(ids)) == 160
    assert check(engine)["records"] == 160


def test_change_and_record_are_one(engine: sa.Engine) -> None:
    one = journal(engine)

    def change(connection: sa.Connection) -> None:
        connection.execute(
            sa.insert(tables.spent_nonces).values(nonce="n", expires_at=1)
        )
        raise Conflict("test.no", "no")

    with pytest.raises(Conflict):
        one.write({"event": "e"}, change)
    assert one.write({"event": "f"}) == "c1#1"
    one.close()
    with engine.connect() as connection:
        rows = connection.execute(sa.select(tables.spent_nonces)).all()
    assert rows == []
    assert check(engine)["records"] == 1


def test_a_failing_change_spares_its_neighbours(engine: sa.Engine) -> None:
    one = journal(engine)
    first = threading.Event()

    def slow(_connection: sa.Connection) -> None:
        first.wait(5)

    def fail(_connection: sa.Connection) -> None:
        raise Conflict("test.no", "no")

    results: list[str] = []

    def write(change: Any) -> None:
        try:
            results.append(one.write({"event": "e"}, change))
        except Conflict as exc:
            results.append(exc.event)

    threads = [
        threading.Thread(target=write, args=(change,))
        for change in (slow, fail, None, fail, None)
    ]
    for thread in threads:
        thread.start()
    first.set()
    for thread in threads:
        thread.join()
    one.close()
    assert sorted(results) == [
        "c1#1",
        "c1#2",
        "c1#3",
        "test.no",
        "test.no",
    ]
    check(engine)


def test_no_database_no_answer(engine: sa.Engine) -> None:
    one = journal(engine)
    one.write({"event": "e"})
    run(engine, "ALTER TABLE audit RENAME TO away")
    with pytest.raises(Unavailable, match="database"):
        one.write({"event": "e"})
    run(engine, "ALTER TABLE away RENAME TO audit")
    # The head did not move: the next record follows the last stored one.
    assert one.write({"event": "e"}) == "c1#2"
    one.close()
    assert check(engine)["records"] == 2


@pytest.mark.parametrize(
    ("statement", "event"),
    [
        ("UPDATE audit SET record = x'7b7d' WHERE seq = 2", "core.audit"),
        ("DELETE FROM audit WHERE seq = 2", "attest.audit.sequence"),
        ("DELETE FROM audit WHERE seq = 3", "attest.audit.checkpoint"),
        ("DELETE FROM audit", "attest.audit.checkpoint"),
        ("UPDATE checkpoints SET seq = 1", "attest.audit.checkpoint"),
        ("UPDATE checkpoints SET chain = 'x'", "attest.audit.checkpoint"),
        ("UPDATE checkpoints SET jws = 'x'", "core.jose"),
    ],
)
def test_tampering_shows(
    engine: sa.Engine, statement: str, event: str
) -> None:
    one = journal(engine)
    for _n in range(3):
        one.write({"event": "e"})
    one.close()
    check(engine)
    run(engine, "DELETE FROM checkpoints WHERE seq < 3")
    run(engine, statement)
    with pytest.raises(Exception, match=event) as caught:
        check(engine)
    assert isinstance(caught.value, VerificationError) or "jose" in event


def test_migration_makes_what_the_tables_say(engine: sa.Engine) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, tables.metadata) == []
