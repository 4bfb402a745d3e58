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
"""Keys of volumes: by the owner's leave, and of no instance."""

import sqlite3
import uuid
from dataclasses import replace

import pytest

from mh_core import volume
from mh_core.request import Disk
from tests.unit.mh_kms.launch import Launch
from tests.unit.mh_kms.world import World

VOLUMES = tuple(str(uuid.UUID(int=number)) for number in (1, 2))
PURPOSES = ["launch", "start", "attach"]


def keys(launch: Launch, **changes: object) -> dict[str, bytes]:
    request = replace(
        launch.request,
        purpose="attach",
        disks=tuple(volume.wanted(one) for one in VOLUMES),
        **changes,
    )
    answer = launch.world.release(launch.key, request)
    assert answer.status_code == 200, answer.text
    payload = launch.world.open(answer.json["jwe"], request)
    assert payload.purpose == "attach"
    return {name: key.reveal() for name, key in payload.overlay_keys.items()}


def root(launch: Launch) -> bytes:
    found = sqlite3.connect(launch.world.base / "kms.sqlite").execute(
        "select overlay_root from keys where id = ?", (launch.key,)
    )
    sealed = found.fetchone()[0]
    return launch.world.parts.key_store.open(
        launch.key, "overlay-root", sealed
    ).reveal()


def test_each_volume_has_its_own(world: World) -> None:
    launch = Launch(world, purposes=PURPOSES)
    found = keys(launch)
    assert found == {
        "volume-" + one: volume.volume_key(root(launch), uuid.UUID(one))
        for one in VOLUMES
    }
    assert len(set(found.values())) == 2
    record = world.audit(launch.key)[-1]
    assert record["event"] == "kms.release.granted"
    assert record["purpose"] == "attach"
    assert record["disks"] == [volume.wanted(one).to_dict() for one in VOLUMES]


def test_the_same_for_another_instance_of_the_key(world: World) -> None:
    launch = Launch(world, purposes=PURPOSES)
    assert keys(launch) == keys(launch, instance=str(uuid.uuid4()))


def test_another_for_another_key(world: World) -> None:
    one, other = (Launch(world, purposes=PURPOSES) for _ in range(2))
    assert not set(keys(one).values()) & set(keys(other).values())


def test_no_lease_begins(world: World) -> None:
    launch = Launch(world, purposes=PURPOSES, lease=3600)
    keys(launch)
    with sqlite3.connect(world.base / "kms.sqlite") as connection:
        (count,) = connection.execute("select count(*) from leases").fetchone()
    connection.close()
    assert count == 0


@pytest.mark.parametrize("purpose", ["launch", "start"])
def test_a_policy_that_does_not_list_attach(
    world: World, purpose: str
) -> None:
    launch = Launch(world)
    request = replace(
        launch.request,
        purpose="attach",
        disks=(volume.wanted(VOLUMES[0]),),
    )
    answer = world.release(launch.key, request)
    assert answer.status_code == 403
    assert answer.json["error"]["event"] == "kms.release.purpose"
    record = world.audit(launch.key)[-1]
    assert record["event"] == "kms.release.purpose"
    assert record["disks"] == [volume.wanted(VOLUMES[0]).to_dict()]
    # nor by another name
    answer = world.release(launch.key, replace(request, purpose=purpose))
    assert answer.status_code == 400
    assert answer.json["error"]["event"] == "core.request"


def test_an_instance_that_nobody_launched(world: World) -> None:
    launch = Launch(world, purposes=PURPOSES, tickets="required")
    request = replace(
        launch.request,
        purpose="attach",
        disks=(volume.wanted(VOLUMES[0]),),
    )
    answer = world.release(launch.key, request)
    assert answer.status_code == 403
    assert answer.json["error"]["event"] == "kms.release.ticket"
    # launched with a ticket, it may
    ticket = world.ticket(launch.key, launch.manifest)
    launch.passes(ticket=ticket, disks=(Disk("disk", VOLUMES[1]),))
    assert world.release(launch.key, request).status_code == 200
