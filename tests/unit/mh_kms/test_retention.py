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

"""How much of the audit is kept, and that its chains go on verifying."""

import sqlite3
from dataclasses import replace
from typing import Any

import pytest

from mh_kms.ledger import Ledger
from tests.unit.mh_kms.launch import Launch
from tests.unit.mh_kms.world import World

KEPT = 20


@pytest.fixture
def world(world: World) -> World:
    parts = world.parts
    world.parts = replace(
        parts, ledger=Ledger(parts.database, world.clock, kept=KEPT)
    )
    world.start_client()
    return world


def refuse(launch: Launch, times: int, key: str | None = None) -> None:
    """What anybody can do who can reach the server."""
    world = launch.world
    evidence = world.tpm.release_evidence(bytes(32), launch.request)
    for _ in range(times):
        answer = world.send(
            key or launch.key, bytes(32), launch.request, evidence
        )
        assert answer.status_code in (403, 404)


def events(world: World, key: str) -> list[str]:
    return [record["event"] for record in world.audit(key)]


def sql(world: World, statement: str, *values: Any) -> list[Any]:
    with sqlite3.connect(world.base / "kms.sqlite") as connection:
        found = connection.execute(statement, values).fetchall()
    connection.close()
    return found


def test_refusals_are_bounded(world: World) -> None:
    launch = Launch(world)
    launch.passes()
    refuse(launch, 100)
    launch.passes()
    found = events(world, launch.key)
    assert KEPT <= found.count("kms.release.nonce") <= KEPT * 1.1 + 1
    # what was decided otherwise is all there
    assert found.count("kms.release.granted") == 2
    assert found[0] == "kms.key.created"
    pruned = [
        record
        for record in world.audit(launch.key)
        if record["event"] == "kms.audit.pruned"
    ]
    gone = 100 - found.count("kms.release.nonce")
    # one record says all of it, those before it are among what went
    assert len(pruned) == 1
    assert pruned[0]["count"] >= gone
    assert len(pruned[0]["ranges"]) <= 12
    # the newest are those that are kept
    numbers = [record["audit"] for record in world.audit(launch.key)]
    assert numbers == sorted(numbers, key=lambda n: int(n.split("#")[1]))
    assert world.manage("audit", "verify") == 0
    # places next to each other are one hole; kept records lie between
    assert sql(world, "select count(*) from audit_holes")[0][0] <= 12


def test_of_each_key(world: World) -> None:
    one, two = Launch(world), Launch(world)
    refuse(two, 5)
    refuse(one, 60)
    assert events(world, two.key).count("kms.release.nonce") == 5
    assert world.manage("audit", "verify") == 0


def test_keys_that_never_were_share_one_number(world: World) -> None:
    launch = Launch(world)
    for number in range(60):
        refuse(launch, 1, f"00000000-0000-4000-8000-{number:012d}")
    (count,) = sql(
        world, "select count(*) from audit where bucket = 'unknown'"
    )[0]
    assert count <= KEPT * 1.1 + 1
    assert world.manage("audit", "verify") == 0


@pytest.mark.parametrize(
    "statement",
    [
        # a record that nobody said would go
        "delete from audit where number = 3",
        # a hole made larger, or moved
        "update audit_holes set last = last + 1",
        "update audit_holes set first = first + 1",
        "update audit_holes set hash = zeroblob(32)",
        "delete from audit_holes",
        # the record that says what went
        "delete from audit where cast(record as text) like '%audit.pruned%'",
        "update audit set hash = zeroblob(32) where number ="
        " (select max(number) from audit)",
    ],
)
def test_an_editor_is_noticed(world: World, statement: str) -> None:
    launch = Launch(world)
    launch.passes()
    refuse(launch, 60)
    assert world.manage("audit", "verify") == 0
    sql(world, statement)
    assert world.manage("audit", "verify") == 1


def test_a_granted_release_cannot_be_made_a_hole(world: World) -> None:
    """Not without a record that says so."""
    launch = Launch(world)
    launch.passes()
    chain, seq, digest = sql(
        world,
        "select chain, seq, hash from audit"
        " where cast(record as text) like '%release.granted%'",
    )[0]
    refuse(launch, 60)
    sql(world, "delete from audit where chain = ? and seq = ?", chain, seq)
    sql(
        world,
        "insert into audit_holes (chain, first, last, hash)"
        " values (?, ?, ?, ?)",
        *(chain, seq, seq, digest),
    )
    assert world.manage("audit", "verify") == 1


def test_the_chain_goes_on_in_another_process(world: World) -> None:
    """Pruning reaches over chains."""
    launch = Launch(world)
    refuse(launch, 15)
    world.parts = replace(
        world.parts,
        ledger=Ledger(world.parts.database, world.clock, kept=KEPT),
    )
    world.start_client()
    refuse(launch, 50)
    assert world.manage("audit", "verify") == 0
