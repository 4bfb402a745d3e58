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

"""Manifests, tickets and the audit of a key."""

import sqlite3
from typing import Any

import pytest

from mh_core import jose
from mh_core import manifest as core_manifest
from tests.unit.mh_kms.world import World


def error(answer: Any, status: int, event: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json["error"]["event"] == event


def add(world: World, key_id: str, token: str) -> Any:
    return world.call(
        "POST", f"/v1/keys/{key_id}/manifests", {"manifest": token}
    )


def test_register_twice_and_withdraw(world: World) -> None:
    key_id = world.create_key()["id"]
    token = world.manifest(key_id)
    digest = core_manifest.digest(token)
    for _ in range(2):
        answer = add(world, key_id, token)
        assert answer.json == {"digest": digest}
    path = f"/v1/keys/{key_id}"
    assert world.call("GET", path).json["manifests"] == [digest]
    gone = world.call("DELETE", f"{path}/manifests/{digest}")
    assert gone.status_code == 204
    assert world.call("GET", path).json["manifests"] == []
    error(
        world.call("DELETE", f"{path}/manifests/{digest}"),
        404,
        "kms.manifest.unknown",
    )
    error(
        world.call("DELETE", f"{path}/manifests/x"),
        404,
        "kms.manifest.unknown",
    )


def test_manifest_of_another_signer(world: World) -> None:
    key_id = world.create_key()["id"]
    world.signer = jose.generate_key()
    answer = add(world, key_id, world.manifest(key_id))
    error(answer, 403, "core.jose.signature")


def test_manifest_of_another_key(world: World) -> None:
    key_id, other = world.create_key()["id"], world.create_key()["id"]
    error(add(world, key_id, world.manifest(other)), 400, "kms.api.body")


@pytest.mark.parametrize("token", ["x", "a.b.c", "é.é.é", "." * 2, "A" * 300])
def test_not_a_manifest(world: World, token: str) -> None:
    key_id = world.create_key()["id"]
    answer = add(world, key_id, token)
    assert answer.status_code == 400
    assert world.call("GET", f"/v1/keys/{key_id}").json["manifests"] == []


def test_ticket(world: World) -> None:
    key_id = world.create_key()["id"]
    digest = world.register(key_id)
    path = f"/v1/keys/{key_id}/tickets"
    answer = world.call("POST", path, {"manifest_digests": [digest]})
    assert answer.status_code == 200
    assert len(answer.json["ticket"]) == 43
    record = world.audit(key_id)[-1]
    assert record["event"] == "kms.ticket.created"
    assert answer.json["ticket"] not in str(record)
    assert answer.json["expires_at"] == record["time"] + 600
    stored = (
        sqlite3.connect(world.base / "kms.sqlite")
        .execute("select * from tickets")
        .fetchall()
    )
    assert answer.json["ticket"] not in str(stored)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"manifest_digests": []}, 400),
        ({"manifest_digests": ["ab" * 32]}, 404),
        ({"manifest_digests": "x"}, 400),
        ({"count": 0}, 400),
        ({"count": True}, 400),
        ({"count": 1001}, 400),
        ({"ttl": 0}, 400),
        ({"ttl": 1 << 60}, 400),
        ({"more": 1}, 400),
    ],
)
def test_bad_tickets(world: World, body: dict[str, Any], status: int) -> None:
    key_id = world.create_key()["id"]
    document = {"manifest_digests": [world.register(key_id)]} | body
    answer = world.call("POST", f"/v1/keys/{key_id}/tickets", document)
    assert answer.status_code == status
    assert world.audit(key_id)[-1]["event"] == "kms.manifest.added"


def test_audit_pages(world: World) -> None:
    key_id = world.create_key()["id"]
    world.register(key_id)
    world.create_key()
    first, second = world.audit(key_id)
    path = f"/v1/keys/{key_id}/audit"
    answer = world.call("GET", f"{path}?after={first['seq']}")
    assert answer.json == {"records": [second]}
    answer = world.call("GET", f"{path}?after={second['seq']}")
    assert answer.json == {"records": []}
    for query in (
        "after=x",
        "after=-1",
        "after=",
        "before=1",
        "after=" + "9" * 40,
    ):
        answer = world.call("GET", f"{path}?{query}")
        if query != "after=":
            error(answer, 400, "kms.api.query")
