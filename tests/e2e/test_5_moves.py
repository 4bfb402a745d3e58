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
"""An instance that moves from one trusted host to another, cold, or whose
host starts again.

The guest counts its boots on its own disk (``tests.minicloud.bootimage``):
the letter it prints says that what it wrote before is there.
"""

from __future__ import annotations

import collections.abc
import contextlib
import json
import typing

import pytest
from openstack import exceptions

from tests.minicloud import guest
from tests.minicloud.disks import Disks
from tests.minicloud.foul.glance import Glance
from tests.minicloud.node import Node
from tests.minicloud.searches import Searches
from tests.minicloud.story import GRANTED, Story
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import (
    PLAIN_FLAVOR,
    TRUSTED_FLAVOR,
    TrustedImage,
    World,
)

#: Instances move between node1 and node3 here; see conftest.
MOVES = True
pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]

LARGER = "m1.larger.trusted"
GIB = 1 << 30


@pytest.fixture(scope="module")
def image(world: World, story: Story, second_host: Node) -> TrustedImage:
    world.only(world.node1, world.node2, second_host)
    return story.ready()


@contextlib.contextmanager
def only(world: World, node: Node) -> collections.abc.Iterator[None]:
    """Let the scheduler use this host and no other meanwhile."""
    world.only(node)
    try:
        yield
    finally:
        world.only(world.node1, world.node2, world.node3)


class Counting:
    """A server whose guest counts its boots."""

    def __init__(
        self, world: World, image: TrustedImage, server: typing.Any
    ) -> None:
        self.world, self.image, self.id = world, image, server.id
        self.boots = 1

    def show(self) -> typing.Any:
        return self.world.admin.compute.get_server(self.id)

    def settle(self, status: str) -> typing.Any:
        """Wait until no task is left, in the state asked for."""
        return self.world.settle(self, status)

    def booted(self, times: int = 1) -> None:
        """It has booted again, and knows of every time before."""
        self.boots += times
        said = f"{self.image.token} #{chr(ord('@') + self.boots)}"
        guest.wait_console(self.world.admin, self.show(), said)

    def on(self, node: Node) -> None:
        assert self.show().hypervisor_hostname == node.name

    def granted(self, node: Node, purpose: str) -> int:
        """How often this host got its keys for this."""
        return sum(
            record["event"] == GRANTED
            and record["purpose"] == purpose
            and record["host"] == node.name
            and record["claims"]["instance"] == self.id
            for record in self.world.kms_audit(self.image.key_id)
        )

    @contextlib.contextmanager
    def asking(
        self, node: Node, purpose: str
    ) -> collections.abc.Iterator[None]:
        """The key is asked for once meanwhile, there and for this."""
        before = self.granted(node, purpose)
        yield
        assert self.granted(node, purpose) == before + 1

    def migrate(self, node: Node) -> None:
        self.world.admin.compute.migrate_server(self.id, host=node.name)

    def confirm(self, status: str = "ACTIVE") -> None:
        self.world.tenant.compute.confirm_server_resize(self.id)
        self.settle(status)

    def revert(self, status: str = "ACTIVE") -> None:
        self.world.tenant.compute.revert_server_resize(self.id)
        self.settle(status)

    def nothing_of_it_on(self, node: Node) -> None:
        """Neither disk nor record nor secret nor domain."""
        assert self.world.leftovers(node, self.id) == []
        assert not (node.folder / f"instances/{self.id}_resize").exists()
        assert self.id not in node.virsh("list", "--all", "--uuid").stdout

    def reasons(self) -> str:
        """Everything nova tells about the last action."""
        compute = self.world.admin.compute
        last = next(iter(compute.server_actions(self.id)))
        action = compute.get_server_action(last.request_id, self.id)
        found = self.show()
        return f"{action.events} {action.message} {found.fault}"


@pytest.fixture(scope="module")
def server(
    world: World, image: TrustedImage
) -> collections.abc.Iterator[Counting]:
    with only(world, world.node1):
        made = world.boots("moves", image)
    server = Counting(world, image, made)
    server.booted(0)
    server.on(world.node1)
    yield server
    world.delete(made)


@pytest.fixture(scope="module")
def untraited(
    world: World, image: TrustedImage
) -> collections.abc.Iterator[Counting]:
    """One that the scheduler puts anywhere: its operator saw to that."""
    glance = Glance(world.cloud.where.mysql_socket, world.glance_store)
    undo = glance.strip(image.id, "trait:")
    try:
        with only(world, world.node1):
            made = world.boots("anywhere", image, flavor=PLAIN_FLAVOR)
    finally:
        undo()
    yield Counting(world, image, made)
    world.delete(made)


@pytest.fixture(scope="module")
def larger(world: World) -> str:
    world.product.openstack(
        "admin",
        *("trusted", "flavor", "create", LARGER),
        *("--ram", "64", "--vcpus", "1", "--disk", "2"),
    )
    return str(world.admin.compute.find_flavor(LARGER).id)


def size(node: Node, server: Counting) -> int:
    """Virtual size of the root disk, bytes, as QEMU sees it."""
    path = node.folder / "instances" / server.id / "disk"
    told = node.command(["qemu-img", "info", "-U", "--output=json", path])
    return int(json.loads(told.stdout)["virtual-size"])


# -- cold migration


def test_migrate_and_confirm(world: World, server: Counting) -> None:
    with server.asking(world.node3, "migrate-in"):
        server.migrate(world.node3)
        server.settle("VERIFY_RESIZE")
        server.on(world.node3)
        server.booted()
    server.confirm()
    server.nothing_of_it_on(world.node1)
    assert world.node3.virsh("secret-list").stdout.strip() == ""


def test_migrate_and_revert(world: World, server: Counting) -> None:
    """What the guest did meanwhile is gone with the revert."""
    with server.asking(world.node1, "migrate-in"):
        server.migrate(world.node1)
        server.settle("VERIFY_RESIZE")
        server.on(world.node1)
        server.booted()
    with server.asking(world.node3, "start"):
        server.revert()
        server.on(world.node3)
        server.booted(0)
    server.nothing_of_it_on(world.node1)


def test_migrate_a_stopped_one(world: World, server: Counting) -> None:
    """Whether it could start is found out when it arrives."""
    world.tenant.compute.stop_server(server.id)
    server.settle("SHUTOFF")
    with server.asking(world.node1, "migrate-in"):
        server.migrate(world.node1)
        server.settle("VERIFY_RESIZE")
    assert world.node1.virsh("secret-list").stdout.strip() == ""
    server.revert("SHUTOFF")
    server.nothing_of_it_on(world.node1)
    server.migrate(world.node1)
    server.settle("VERIFY_RESIZE")
    server.confirm("SHUTOFF")
    server.nothing_of_it_on(world.node3)
    with server.asking(world.node1, "start"):
        world.tenant.compute.start_server(server.id)
        server.settle("ACTIVE")
        server.booted()


# -- resize


def test_resize_and_revert(
    world: World, server: Counting, larger: str
) -> None:
    with (
        only(world, world.node3),
        server.asking(world.node3, "migrate-in"),
    ):
        world.tenant.compute.resize_server(server.id, larger)
        server.settle("VERIFY_RESIZE")
        server.on(world.node3)
        server.booted()
    assert size(world.node3, server) == 2 * GIB
    server.revert()
    server.on(world.node1)
    server.booted(0)
    assert size(world.node1, server) == GIB
    server.nothing_of_it_on(world.node3)


def test_resize_on_the_same_host(
    world: World, server: Counting, larger: str
) -> None:
    """Reverted, then confirmed."""
    for end in (server.revert, server.confirm):
        with (
            only(world, world.node1),
            server.asking(world.node1, "resize"),
        ):
            world.tenant.compute.resize_server(server.id, larger)
            server.settle("VERIFY_RESIZE")
            server.on(world.node1)
            server.booted()
        assert size(world.node1, server) == 2 * GIB
        end()
        if end == server.revert:
            server.booted(0)
            assert size(world.node1, server) == GIB
    assert size(world.node1, server) == 2 * GIB
    with server.asking(world.node1, "start"):
        world.tenant.compute.reboot_server(server.id, "HARD")
        server.settle("ACTIVE")
        server.booted()


def test_resize_to_a_smaller_disk_is_refused(
    world: World, server: Counting
) -> None:
    """By nova, before anything is stopped."""
    flavor = world.admin.compute.find_flavor(TRUSTED_FLAVOR)
    with contextlib.suppress(exceptions.HttpException):
        world.tenant.compute.resize_server(server.id, flavor.id)
    server.settle("ACTIVE")
    server.booted(0)
    assert size(world.node1, server) == 2 * GIB


@pytest.fixture(scope="module")
def flavors(
    world: World,
) -> collections.abc.Iterator[tuple[typing.Any, typing.Any]]:
    """With swap and an ephemeral disk; with less of that, and more of this."""
    made = []
    for name, swap, ephemeral in (("with", 64, 1), ("more", 32, 2)):
        flavor = world.admin.compute.create_flavor(
            name=f"m1.{name}.disks",
            **{"ram": 64, "vcpus": 1, "disk": 1},
            **{"swap": swap, "ephemeral": ephemeral},
        )
        world.admin.compute.create_flavor_extra_specs(
            flavor, {"trust:trusted_host": "trusted"}
        )
        made.append(flavor)
    yield made[0], made[1]
    for flavor in made:
        world.admin.compute.delete_flavor(flavor)


def sizes(node: Node, server: Counting) -> dict[str, int]:
    """MiB of every disk, all of them encrypted."""
    found = {}
    for path in (node.folder / "instances" / server.id).glob("disk*"):
        if path.name == "disk.info":
            continue
        told = node.command(
            ["qemu-img", "info", "-U", "--output=json", path]
        ).stdout
        assert json.loads(told)["encrypted"], path
        found[path.name] = json.loads(told)["virtual-size"] >> 20
    return found


def test_resize_to_other_disks(
    world: World,
    image: TrustedImage,
    flavors: tuple[typing.Any, typing.Any],
) -> None:
    """Swap is made anew, in the size of the flavor; an ephemeral disk is
    added, and grows.  Reverted, everything is as it was."""
    disks, more = flavors
    none = {"disk": 1024}
    some = {"disk": 1024, "disk.local": 1024, "disk.swap": 64}
    most = {"disk": 1024, "disk.local": 2048, "disk.swap": 32}
    with only(world, world.node1):
        server = Counting(world, image, world.boots("disks", image))
    server.booted(0)

    def resize(flavor: typing.Any, node: Node) -> None:
        with only(world, node):
            world.tenant.compute.resize_server(server.id, flavor.id)
            server.settle("VERIFY_RESIZE")
        server.on(node)
        server.booted()
        assert swap(node) == b"SWAPSPACE2"

    def swap(node: Node) -> bytes:
        found = Disks(world, server, node)
        return found.read("disk.swap", 4086, 10)

    def kept(node: Node) -> bool:
        found = Disks(world, server, node)
        return found.read("disk.local", 1 << 20, 512) == bytes([0x5A]) * 512

    for node in (world.node3, world.node1):
        resize(disks, node)
        assert sizes(node, server) == some
        server.revert()
        server.on(world.node1)
        server.booted(0)
        assert sizes(world.node1, server) == none
    server.nothing_of_it_on(world.node3)
    resize(disks, world.node1)
    server.confirm()
    Disks(world, server, world.node1).write("disk.local", 1 << 20, 0x5A)
    for node in (world.node1, world.node3):
        resize(more, node)
        assert sizes(node, server) == most
        assert kept(node)
        server.revert()
        server.booted(0)
        assert sizes(world.node1, server) == some
        assert kept(world.node1)
    resize(more, world.node3)
    server.confirm()
    server.nothing_of_it_on(world.node1)
    assert kept(world.node3)
    with server.asking(world.node3, "start"):
        world.tenant.compute.reboot_server(server.id, "HARD")
        server.settle("ACTIVE")
        server.booted()
    assert sizes(world.node3, server) == most
    world.delete(server.show())
    server.nothing_of_it_on(world.node3)


# -- with the image gone


def test_moves_with_the_image_deleted(
    world: World, image: TrustedImage, larger: str
) -> None:
    """The base comes from the host before, and is verified as ever."""
    gone = world.create_image("gone", {"id": image.key_id})
    with only(world, world.node1):
        made = world.boots("gone", gone)
    server = Counting(world, gone, made)
    world.tenant.image.delete_image(gone.id)
    with server.asking(world.node3, "migrate-in"):
        server.migrate(world.node3)
        server.settle("VERIFY_RESIZE")
        server.on(world.node3)
        server.booted()
    server.confirm()
    with server.asking(world.node3, "start"):
        world.tenant.compute.reboot_server(server.id, "HARD")
        server.settle("ACTIVE")
        server.booted()
    # neither image nor base, where it goes to now
    world.forget_base(gone.id)
    with (
        only(world, world.node1),
        server.asking(world.node1, "migrate-in"),
    ):
        world.tenant.compute.resize_server(server.id, larger)
        server.settle("VERIFY_RESIZE")
        server.on(world.node1)
        server.booted()
    assert size(world.node1, server) == 2 * GIB
    with server.asking(world.node3, "start"):
        server.revert()
        server.on(world.node3)
        # what the guest did meanwhile is gone
        server.booted(0)
    server.nothing_of_it_on(world.node1)
    world.delete(made)
    server.nothing_of_it_on(world.node3)


# -- to a host that is not trusted


SHELVED = ("launch", "start", "snapshot", "flatten", "migrate-in")


def test_migrate_an_unshelved_one(
    world: World, story: Story, second_host: Node
) -> None:
    """Its disk has no base: there and back, with what the guest wrote."""
    story.ready()
    words = [word for name in SHELVED for word in ("--purpose", name)]
    key = world.create_key("shelved", *words)
    image = world.create_image("shelved", key, "--allow-snapshots")
    with only(world, world.node1):
        server = Counting(world, image, world.boots("shelved", image))
        world.tenant.compute.shelve_server(server.id)
        server.settle("SHELVED_OFFLOADED")
        world.tenant.compute.unshelve_server(server.id)
        server.settle("ACTIVE")
    server.booted()
    server.migrate(second_host)
    server.settle("VERIFY_RESIZE")
    server.on(second_host)
    server.booted()
    server.revert()
    server.on(world.node1)
    server.booted(0)
    server.nothing_of_it_on(second_host)
    server.migrate(second_host)
    server.settle("VERIFY_RESIZE")
    server.confirm()
    server.booted()
    server.nothing_of_it_on(world.node1)
    world.delete(server.show())


def test_forced_to_an_untrusted_host(
    world: World, untraited: Counting
) -> None:
    """Refused before the guest is stopped."""
    untraited.migrate(world.node2)
    untraited.settle("ACTIVE")
    wait_for(
        "the reason",
        lambda: "hook.migrate.destination" in untraited.reasons(),
        20,
    )
    untraited.on(world.node1)
    assert untraited.id in world.running_guests()
    assert not (world.node2.folder / "instances" / untraited.id).exists()
    with untraited.asking(world.node1, "start"):
        world.tenant.compute.reboot_server(untraited.id, "HARD")
        untraited.settle("ACTIVE")
        untraited.booted()


def test_forced_to_a_host_whose_boot_changed(
    world: World, untraited: Counting
) -> None:
    """It offers itself, and the tenant's key server says no: the guest is
    off, and goes on at home."""
    world.node3.tpm.extend(4, b"something else was started")
    try:
        untraited.migrate(world.node3)
        untraited.settle("VERIFY_RESIZE")
        assert untraited.id not in world.node3.virsh("list", "--uuid").stdout
        shown = world.product.answer(
            "tenant", "trusted", "server", "show", untraited.id
        )
        assert "agent.kms.refused" in shown["reason"], shown
        assert untraited.granted(world.node3, "migrate-in") == 0
    finally:
        world.node3.tpm.reset()
    with untraited.asking(world.node1, "start"):
        untraited.revert()
        untraited.on(world.node1)
        untraited.booted()
    untraited.nothing_of_it_on(world.node3)
    world.agent_ready(world.node3)


# -- the host starts again


@pytest.mark.parametrize("resume", [True, False])
def test_host_reboot(world: World, server: Counting, resume: bool) -> None:
    """Nobody's token is there; the host speaks for itself, by its TPM."""
    node = world.node1
    node.options.extra = (
        f"[DEFAULT]\nresume_guests_state_on_host_boot = {resume}\n"
    )
    asked = server.granted(node, "start")
    node.reboot()
    world.product.start_agent(node)
    node.start_compute()
    world.cloud.wait_computes()
    if resume:
        server.booted()
        assert server.settle("ACTIVE")
    else:
        wait_for("off", lambda: server.show().status == "SHUTOFF", 90)
        assert server.granted(node, "start") == asked
        world.agent_ready(node)
        world.tenant.compute.start_server(server.id)
        server.settle("ACTIVE")
        server.booted()
    assert server.granted(node, "start") == asked + 1
    world.agent_ready(node)


# -- operations that start nothing


def test_pause_and_unpause(world: World, server: Counting) -> None:
    asked = len(world.releases(server.image.key_id))
    world.tenant.compute.pause_server(server.id)
    server.settle("PAUSED")
    world.tenant.compute.unpause_server(server.id)
    server.settle("ACTIVE")
    assert len(world.releases(server.image.key_id)) == asked
    server.booted(0)


def test_lock(world: World, server: Counting) -> None:
    """A locked one cannot be stopped, and goes on."""
    world.tenant.compute.lock_server(server.id)
    with pytest.raises(exceptions.ConflictException):
        world.tenant.compute.stop_server(server.id)
    world.tenant.compute.unlock_server(server.id)
    server.settle("ACTIVE")
    assert server.id in world.running_guests()


def without_a_ticket(
    world: World, server: Counting, other: TrustedImage
) -> None:
    """The key server refuses it while guest and disk are there: the guest
    goes on, and starts again as what it was."""
    process = world.pid(world.node1, server)
    world.tenant.compute.rebuild_server(server.id, image=other.id, name="x")
    wait_for(
        "the reason",
        lambda: "kms.release.ticket" in str(server.show().metadata),
        60,
    )
    found = server.settle("ACTIVE")
    assert "mh_rebuild" in server.reasons()
    assert world.pid(world.node1, server) == process
    assert found.image["id"] == server.image.id
    with server.asking(world.node1, "start"):
        world.tenant.compute.reboot_server(server.id, "HARD")
        server.settle("ACTIVE")
        server.booted()


def test_rebuild_to_another_encrypted_image(
    world: World, server: Counting
) -> None:
    """The old disk is gone; the new one has a key of its own."""
    other = world.create_image("other", {"id": server.image.key_id})
    record = (
        world.node1.folder
        / f"var/lib/mystery-hill/agent/instances/{server.id}.json"
    )
    before = json.loads(record.read_text())["disks"][0]["luks_uuid"]
    without_a_ticket(world, server, other)
    assert json.loads(record.read_text())["disks"][0]["luks_uuid"] == before
    asked = server.granted(world.node1, "launch")
    shown = world.product.answer(
        "tenant",
        *("trusted", "server", "rebuild", server.id, "--image", other.id),
    )
    assert shown["verdict"] == "trusted: verified by this client"
    server.settle("ACTIVE")
    server.image, server.boots = other, 1
    server.booted(0)
    assert json.loads(record.read_text())["disks"][0]["luks_uuid"] != before
    # asked for before the disk went, and once; the ticket was spent by it
    assert server.granted(world.node1, "launch") == asked + 1
    with server.asking(world.node1, "start"):
        world.tenant.compute.reboot_server(server.id, "HARD")
        server.settle("ACTIVE")
        server.booted()


# -- beside it


def test_plain_moves_as_ever(world: World, image: TrustedImage) -> None:
    """An ordinary instance: migrated cold, back, resized, and live."""
    compute = world.admin.compute
    picture, token = world.plain_disk()
    flavor = guest.flavor(world.admin, "m1.plain.larger", disk=2)
    made = guest.boot(
        world.admin,
        "plain",
        picture,
        compute.find_flavor(PLAIN_FLAVOR),
        host="node1",
    )
    plain = Counting(world, image, made)
    guest.wait_console(world.admin, made, token)
    plain.migrate(world.node3)
    plain.settle("VERIFY_RESIZE")
    plain.on(world.node3)
    guest.wait_console(world.admin, made, token)
    compute.revert_server_resize(made.id)
    plain.settle("ACTIVE")
    plain.on(world.node1)
    with only(world, world.node3):
        compute.resize_server(made.id, flavor.id)
        plain.settle("VERIFY_RESIZE")
    compute.confirm_server_resize(made.id)
    plain.settle("ACTIVE")
    plain.on(world.node3)
    assert size(world.node3, plain) == 2 * GIB
    guest.wait_console(world.admin, made, token)
    compute.live_migrate_server(made.id, host="node1", block_migration="auto")
    plain.settle("ACTIVE")
    plain.on(world.node1)
    guest.delete(world.admin, made)
    world.admin.image.delete_image(picture.id)


def test_nothing_in_the_clear(story: Story, server: Counting) -> None:
    story.image, story.server = server.image, server.show()
    Searches(story).running()
