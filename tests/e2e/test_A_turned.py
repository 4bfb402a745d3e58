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
"""Metadata turned against a running instance, as the cloud's operator could:
rows of nova's database, and the image's properties in Glance.

On node1, with another trusted host to move to. Everything but stop and delete
is refused, and the guest goes on.
"""

from __future__ import annotations

import collections.abc
import contextlib
import typing
import uuid

import pymysql
import pytest
from openstack import exceptions

from tests.minicloud.node import Node
from tests.minicloud.story import Story
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import TrustedImage, World

#: A move finds a host that would take it; see conftest.
MOVES = True
pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]

EVIL = "https://127.0.0.1:15547/v1/keys/" + str(uuid.uuid4())
_META = "instance_system_metadata"
_INSERT = (
    "insert into instance_system_metadata (created_at, instance_uuid, "
    "`key`, value, deleted) values (now(), %s, %s, %s, 0)"
)
_JSON_PATCH = "application/openstack-images-v2.1-json-patch"
#: What is written over an instance's rows: (table, column, key) to value;
#: None: the row is taken away.
TURNED: dict[str, dict[str, str | None]] = {
    "unmarked": {
        "image_mh_version": None,
        "image_mh_key_url": None,
        "image_os_encrypt_key_id": None,
        "image_os_encrypt_format": None,
    },
    "another-key": {"image_os_encrypt_key_id": str(uuid.uuid4())},
    "another-key-server": {"image_mh_key_url": EVIL},
    "another-image": {"image_ref": str(uuid.uuid4())},
}
#: What each is refused by: the host's own facts say what it was.
EVENTS = {kind: "hook.ours.turned" for kind in TURNED} | {
    "unmarked": "hook.ours.disagree"
}


class Database:
    """Nova's, as whoever runs the cloud may edit it."""

    def __init__(self, world: World, server: typing.Any) -> None:
        self._link = pymysql.connect(
            unix_socket=str(world.cloud.where.mysql_socket),
            user="root",
            database="nova_cell1",
            autocommit=True,
        )
        self._server = server.id

    def run(self, text: str, *values: object) -> list[typing.Any]:
        with self._link.cursor() as cursor:
            cursor.execute(text, values)
            return list(cursor.fetchall())

    def turn(self, rows: dict[str, str | None]) -> dict[str, str | None]:
        """Write these over; what was there before."""
        before: dict[str, str | None] = {}
        for name, value in rows.items():
            if name == "image_ref":
                found = self.run(
                    "select image_ref from instances where uuid=%s",
                    self._server,
                )
                self.run(
                    "update instances set image_ref=%s where uuid=%s",
                    value,
                    self._server,
                )
            else:
                where = f"from {_META} where instance_uuid=%s and `key`=%s"
                found = self.run(f"select value {where}", self._server, name)
                self.run(f"delete {where}", self._server, name)
                if value is not None:
                    self.run(_INSERT, self._server, name, value)
            before[name] = found[0][0] if found else None
        return before

    def close(self) -> None:
        self._link.close()


@pytest.fixture(scope="module")
def image(world: World, story: Story, second_host: Node) -> TrustedImage:
    image = story.ready()
    world.agent_ready(second_host)
    return image


@pytest.fixture(scope="module")
def server(
    world: World, image: TrustedImage
) -> collections.abc.Iterator[typing.Any]:
    world.only(world.node1)
    try:
        server = world.boots("turned", image)
    finally:
        world.only(*world.cloud.machines)
    yield server
    world.delete(server)


@pytest.fixture(scope="module")
def database(
    world: World, server: typing.Any
) -> collections.abc.Iterator[Database]:
    database = Database(world, server)
    yield database
    database.close()


@contextlib.contextmanager
def turned(database: Database, kind: str) -> collections.abc.Iterator[None]:
    before = database.turn(TURNED[kind])
    try:
        yield
    finally:
        database.turn(before)


def reasons(world: World, server: typing.Any) -> str:
    """Everything nova tells of the last action."""
    compute = world.admin.compute
    last = next(iter(compute.server_actions(server.id)))
    action = compute.get_server_action(last.request_id, server.id)
    found = compute.get_server(server.id)
    return f"{last.action} {action.events} {action.message} {found.fault}"


def ask(world: World, operation: str, server: typing.Any) -> object:
    compute, admin = world.tenant.compute, world.admin.compute
    calls: dict[str, collections.abc.Callable[[], object]] = {
        "suspend": lambda: compute.suspend_server(server.id),
        "createImage": lambda: compute.create_server_image(
            server.id, "turned-leak"
        ),
        "shelve": lambda: compute.shelve_server(server.id),
        "rescue": lambda: compute.rescue_server(server.id),
        "live-migration": lambda: admin.live_migrate_server(
            server.id, host="node3", block_migration="auto"
        ),
        "migrate": lambda: admin.migrate_server(server.id, host="node3"),
        "reboot": lambda: compute.reboot_server(server.id, "HARD"),
    }
    return calls[operation]()


def running(world: World) -> list[str]:
    return sorted(world.node1.virsh("list", "--uuid").stdout.split())


def releases(world: World, image: TrustedImage, server: typing.Any) -> int:
    return sum(
        server.id in str(record) for record in world.kms_audit(image.key_id)
    )


@pytest.mark.parametrize("kind", sorted(TURNED))
@pytest.mark.parametrize(
    "operation",
    [
        "suspend",
        "createImage",
        "shelve",
        "rescue",
        "live-migration",
        "migrate",
        "reboot",
    ],
)
def test_refused_and_the_guest_goes_on(
    world: World,
    image: TrustedImage,
    server: typing.Any,
    database: Database,
    kind: str,
    operation: str,
) -> None:
    guests, process = running(world), world.pid(world.node1, server)
    asked = releases(world, image, server)
    log = world.node1.log("nova-compute")
    mark = log.stat().st_size

    def said() -> str:
        if operation == "reboot":
            # of a guest that runs on nova records a success; the reason is
            # where the user looks
            found = world.tenant.compute.get_server(server.id)
            return str(found.metadata.get("mh_refused", ""))
        if operation == "live-migration":
            # nova looks for another host, and tells that it found none
            return world.log_since(log, mark)
        return reasons(world, server)

    with turned(database, kind):
        if operation == "reboot":
            world.tenant.compute.set_server_metadata(server.id, mh_refused="-")
        try:
            ask(world, operation, server)
        except exceptions.BadRequestException:
            # of no other host that would do
            assert operation == "live-migration"
        wait_for(EVENTS[kind], lambda: EVENTS[kind] in said(), 60)
        world.settle(server, "ACTIVE")
    assert running(world) == guests
    assert world.pid(world.node1, server) == process
    assert server.id not in world.node3.virsh("list", "--uuid").stdout
    # no key was asked for on the word of what was turned
    assert releases(world, image, server) == asked
    leaks = [
        one
        for one in world.tenant.image.images()
        if one.name.startswith(("turned-leak", "turned-shelved"))
    ]
    assert not [one for one in leaks if one.status == "active"]
    for one in leaks:
        world.tenant.image.delete_image(one.id)


@pytest.mark.parametrize("kind", sorted(TURNED))
def test_no_console(
    world: World, server: typing.Any, database: Database, kind: str
) -> None:
    compute = world.tenant.compute
    # control
    assert compute.get_server_console_output(server.id)["output"]
    with turned(database, kind):
        with pytest.raises(exceptions.HttpException):
            compute.get_server_console_output(server.id)
        with pytest.raises(exceptions.HttpException):
            compute.create_console(server.id, console_type="novnc")


@contextlib.contextmanager
def edited(
    world: World, image: TrustedImage, change: dict[str, str | None]
) -> collections.abc.Iterator[None]:
    """The image's properties, edited in Glance."""
    before = world.admin.image.get(f"/images/{image.id}").json()

    def patch(values: dict[str, str | None]) -> None:
        steps = []
        for name, value in values.items():
            there = world.admin.image.get(f"/images/{image.id}").json()
            if value is None:
                steps.append({"op": "remove", "path": f"/{name}"})
            else:
                op = "replace" if name in there else "add"
                steps.append({"op": op, "path": f"/{name}", "value": value})
        answer = world.admin.image.patch(
            f"/images/{image.id}",
            json=steps,
            headers={"Content-Type": _JSON_PATCH},
        )
        assert answer.status_code == 200, answer.text

    patch(change)
    try:
        yield
    finally:
        patch({name: before[name] for name in change})


@pytest.mark.parametrize(
    "change",
    [
        {"mh_version": None},
        {"mh_key_url": EVIL},
        {"os_encrypt_key_id": str(uuid.uuid4())},
    ],
    ids=["unmarked", "another-key-server", "another-key"],
)
def test_rebuild_to_an_image_that_was_edited(
    world: World,
    image: TrustedImage,
    server: typing.Any,
    database: Database,
    change: dict[str, str | None],
) -> None:
    """Refused before nova destroys the disk. The API has written the
    edited properties into the instance's rows by then: they are put back."""
    guests = running(world)
    names = [f"image_{name}" for name in change]
    kept = database.turn(dict.fromkeys(names))
    database.turn(kept)
    disk = world.node1.folder / "instances" / server.id / "disk"
    inode = disk.stat().st_ino
    try:
        with edited(world, image, change):
            world.tenant.compute.rebuild_server(
                server.id, image=image.id, name="turned"
            )
            wait_for(
                "the reason",
                lambda: "hook.ours.turned" in reasons(world, server),
                60,
            )
            world.settle(server, "ACTIVE")
        # what the host knows is in the rows again
        assert database.turn(kept) == kept
    finally:
        database.turn(kept)
    assert running(world) == guests
    assert disk.stat().st_ino == inode


def test_put_right_it_goes_on(
    world: World, image: TrustedImage, server: typing.Any
) -> None:
    asked = releases(world, image, server)
    world.tenant.compute.reboot_server(server.id, "HARD")
    wait_for(
        "a new release",
        lambda: releases(world, image, server) > asked,
        60,
    )
    world.settle(server, "ACTIVE")


@pytest.mark.parametrize("kind", sorted(TURNED))
def test_stop_and_delete_go_on(
    world: World, image: TrustedImage, kind: str
) -> None:
    world.only(world.node1)
    try:
        server = world.boots(f"end-{kind}", image)
    finally:
        world.only(*world.cloud.machines)
    database = Database(world, server)
    try:
        database.turn(TURNED[kind])
        world.tenant.compute.stop_server(server.id)
        world.settle(server, "SHUTOFF")
        # but it does not start again
        asked = releases(world, image, server)
        world.tenant.compute.start_server(server.id)
        world.pause(1)
        world.settle(server, "SHUTOFF")
        assert "hook.ours." in reasons(world, server)
        assert releases(world, image, server) == asked
        world.delete(server)
        assert world.leftovers(world.node1, server.id) == []
    finally:
        database.close()
