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
"""Disks beside the root disk: swap, ephemeral, config drive, rescue."""

from __future__ import annotations

import base64
import collections.abc
import json
import re
import secrets
import typing

import pytest

from tests.minicloud import guest
from tests.minicloud.disks import Disks
from tests.minicloud.search import Needle, Search, default_roots, plant
from tests.minicloud.story import GRANTED, Story
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import TrustedImage, World

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]

#: Long enough to be looked for.
USER_DATA = b"#cloud-config\n# user-data-" + secrets.token_hex(16).encode()
PASSWORD = "password-" + secrets.token_hex(12)


@pytest.fixture(scope="module")
def image(story: Story) -> TrustedImage:
    """The story's: no config drive, no rescue."""
    return story.ready()


@pytest.fixture(scope="module")
def flavor(world: World, image: TrustedImage) -> collections.abc.Iterator[str]:
    """Trusted, with swap and an ephemeral disk."""
    name = "m1.disks"
    made = world.admin.compute.create_flavor(
        name=name, ram=64, vcpus=1, disk=1, swap=64, ephemeral=1
    )
    world.admin.compute.create_flavor_extra_specs(
        made, {"trust:trusted_host": "trusted"}
    )
    yield name
    world.admin.compute.delete_flavor(name)


@pytest.fixture(scope="module")
def pinned(world: World, story: Story, image: TrustedImage) -> TrustedImage:
    """An image whose servers may have a config drive with our user-data."""
    folder = world.product.workstation
    (folder / "user-data").write_bytes(USER_DATA)
    return world.create_image(
        "pinned",
        story.key,
        *("--config-drive", "pinned"),
        *("--user-data", folder / "user-data"),
    )


@pytest.fixture(scope="module")
def anything(world: World, story: Story, image: TrustedImage) -> TrustedImage:
    """An image whose servers may have any config drive."""
    return world.create_image(
        "anything",
        story.key,
        *("--config-drive", "any"),
        *("--user-data", world.product.workstation / "user-data"),
    )


def releases(world: World, image: TrustedImage, server: typing.Any) -> int:
    """How often the key was released for this instance."""
    return sum(
        GRANTED in str(record) and server.id in str(record)
        for record in world.kms_audit(image.key_id)
    )


def again(
    world: World,
    image: TrustedImage,
    server: typing.Any,
    action: collections.abc.Callable[[], object],
) -> None:
    """Something that starts the guest: the key is asked for again."""
    before = releases(world, image, server)
    action()
    wait_for("a release", lambda: releases(world, image, server) > before)
    world.settle(server, "ACTIVE")
    guest.wait_console(world.admin, server, image.token)


def clear_on_disk(world: World, *needles: Needle) -> str:
    """Search the host, and everything of the cloud's but its database,
    which has the user-data as its owner gave it."""
    node = world.node1
    roots = [node.folder, *default_roots(world.cloud.base)[1:]]
    database = world.cloud.base / "state/mysql"
    folders = [node.folder / "instances", node.path("/var/lib/libvirt/qemu")]
    with plant(folders) as planted:
        search = Search(
            roots,
            # the run folder may itself lie below one of the roots
            [world.product.workstation, database],
            [*needles, *planted.needles],
        )
        hits = search.run()
        missing, others = planted.missing(hits), planted.others(hits)
    assert not missing
    return "; ".join(map(str, others))


# -- swap and ephemeral ------------------------------------------------------


def test_swap_and_ephemeral(
    world: World, image: TrustedImage, flavor: str
) -> None:
    """Encrypted under keys of their own; what the guest wrote survives
    stop, start and reboot; a rebuild makes them anew, as nova does."""
    server = world.boots("disks", image, flavor=flavor)
    disks = Disks(world, server)
    assert disks.names() == ["disk", "disk.eph0", "disk.swap"]
    # ready to use, as nova's own
    assert disks.read("disk.swap", 4086, 10) == b"SWAPSPACE2"
    needle = b"disks-" + secrets.token_hex(13).encode()
    for name in ("disk.eph0", "disk.swap"):
        disks.write(name, 1 << 20, 0x5A)
        disks.write_text(name, 2 << 20, needle)
        head = (disks.folder / name).read_bytes()
        assert head[:4] == b"QFI\xfb"
        assert bytes([0x5A]) * 512 not in head
        assert b"SWAPSPACE2" not in head
    compute = world.tenant.compute
    compute.stop_server(server.id)
    world.settle(server, "SHUTOFF")
    again(world, image, server, lambda: compute.start_server(server.id))
    again(
        world,
        image,
        server,
        lambda: compute.reboot_server(server.id, "HARD"),
    )
    for name in ("disk.eph0", "disk.swap"):
        assert disks.read(name, 1 << 20, 512) == bytes([0x5A]) * 512
        assert disks.read(name, 2 << 20, len(needle)) == needle
    # while the files that it was written to are there
    assert not clear_on_disk(world, Needle("written", needle))
    again(
        world,
        image,
        server,
        lambda: compute.rebuild_server(server.id, image=image.id, name="d"),
    )
    assert disks.names() == ["disk", "disk.eph0", "disk.swap"]
    assert disks.read("disk.eph0", 1 << 20, 512) == bytes(512)
    records = world.kms_audit(image.key_id)
    [last] = [
        record
        for record in records
        if record["event"] == GRANTED and server.id in str(record)
    ][-1:]
    assert [disk["name"] for disk in last["disks"]] == [
        "disk",
        "disk.eph0",
        "disk.swap",
    ]
    world.delete(server)
    assert world.leftovers(world.node1, server.id) == []


# -- config drive ------------------------------------------------------------


def drive_files(disks: Disks, name: str = "disk.config") -> dict[str, bytes]:
    """What the guest finds on its config drive."""
    image = disks.read(name, 0, disks.size(name))
    assert image[32769:32774] == b"CD001"
    assert image[32808:32816] == b"config-2"
    return {"": image}


def test_config_drive_pinned(world: World, pinned: TrustedImage) -> None:
    """User-data as its owner signed for; nothing in the clear."""
    server = world.boots(
        "pinned",
        pinned,
        config_drive=True,
        user_data=base64.b64encode(USER_DATA).decode(),
        admin_password=PASSWORD,
    )
    disks = Disks(world, server)
    assert disks.names() == ["disk", "disk.config"]
    content = drive_files(disks)[""]
    assert USER_DATA in content
    assert PASSWORD.encode() not in content
    # nova draws one for each version of the metadata
    seeds = set(re.findall(rb'"random_seed":"([A-Za-z0-9+/=]+)"', content))
    assert seeds
    compute = world.tenant.compute
    again(
        world,
        pinned,
        server,
        lambda: compute.reboot_server(server.id, "HARD"),
    )
    assert USER_DATA in drive_files(disks)[""]
    assert not clear_on_disk(
        world,
        Needle("user-data", USER_DATA),
        *(Needle("random seed", seed[:64]) for seed in sorted(seeds)),
        Needle("password", PASSWORD.encode()),
    )
    world.delete(server)
    assert world.leftovers(world.node1, server.id) == []


def test_config_drive_of_any_content(
    world: World, pinned: TrustedImage, anything: TrustedImage
) -> None:
    """Where the tenant says so: the password, too, but encrypted."""
    server = world.boots(
        "anything",
        anything,
        config_drive=True,
        user_data=base64.b64encode(USER_DATA).decode(),
        admin_password=PASSWORD,
    )
    disks = Disks(world, server)
    content = drive_files(disks)[""]
    assert PASSWORD.encode() in content
    assert not clear_on_disk(world, Needle("password", PASSWORD.encode()))
    world.delete(server)


@pytest.mark.parametrize(
    ("what", "event"),
    [
        ("no-policy", "agent.config-drive.policy"),
        ("other-user-data", "agent.admit.user-data"),
        ("other-key", "agent.config-drive.pinned"),
    ],
)
def test_config_drive_refused(
    world: World,
    image: TrustedImage,
    pinned: TrustedImage,
    what: str,
    event: str,
) -> None:
    more: dict[str, typing.Any] = {"config_drive": True}
    picture = image if what == "no-policy" else pinned
    if what == "other-user-data":
        more["user_data"] = base64.b64encode(b"#!/bin/evil").decode()
    if what == "other-key":
        world.tenant.compute.create_keypair(
            name="cloud", public_key=_public_key()
        )
        more["key_name"] = "cloud"
    server = world.launch("refused", picture, **more)
    try:
        assert server.status == "ERROR"
        assert event in guest.fault(server)
        assert world.leftovers(world.node1, server.id) == []
    finally:
        world.delete(server)
        if what == "other-key":
            world.tenant.compute.delete_keypair("cloud")


def _public_key() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()


# -- what stays refused ------------------------------------------------------


@pytest.mark.parametrize("name", ["kernel_id", "os_command_line"])
def test_kernel_images_are_refused(
    world: World, image: TrustedImage, name: str
) -> None:
    """Never ignored without a word."""
    world.tenant.image.update_image(image.id, **{name: image.id})
    try:
        server = world.launch("kernel", image)
        assert server.status == "ERROR"
        assert "hook.launch.kernel" in guest.fault(server)
        world.delete(server)
    finally:
        world.admin.image.patch(
            f"/images/{image.id}",
            json=[{"op": "remove", "path": f"/{name}"}],
            headers={
                "Content-Type": "application/openstack-images-v2.1-json-patch"
            },
        )


def test_file_injection_without_a_config_drive(
    world: World, image: TrustedImage
) -> None:
    """The API takes files up to its version 2.56; nova would leave them
    out without a word."""
    flavor = world.admin.compute.find_flavor("m1.tiny.trusted")
    answer = world.tenant.compute.post(
        "/servers",
        json={
            "server": {
                "name": "inject",
                "imageRef": image.id,
                "flavorRef": flavor.id,
                "networks": "none",
                "metadata": {"mh_ticket": world.ticket(image)},
                "personality": [
                    {
                        "path": "/etc/motd",
                        "contents": base64.b64encode(b"x").decode(),
                    }
                ],
            }
        },
        microversion="2.56",
    )
    assert answer.status_code == 202, answer.text
    server = world.tenant.compute.get_server(
        json.loads(answer.text)["server"]["id"]
    )
    world.servers.append(server)
    server = guest.wait_status(world.tenant, server, "ACTIVE")
    assert server.status == "ERROR"
    assert "hook.launch.files" in guest.fault(server)
    world.delete(server)


# -- rescue ------------------------------------------------------------------


class Rescue:
    """A running server whose key may be released for a rescue."""

    def __init__(self, world: World, story: Story) -> None:
        self.world = world
        self.key = world.create_key(
            "rescuable",
            *("--purpose", "launch", "--purpose", "start"),
            *("--purpose", "rescue"),
        )
        self.image = world.create_image("rescuable", self.key)
        self.server = world.boots("rescuable", self.image)
        self.disks = Disks(world, self.server)
        self.disks.write("disk", 512 << 10, 0xA5)

    def purposes(self) -> list[str]:
        """Of every key that this server's host was given."""
        return [
            record["purpose"]
            for record in self.world.kms_audit(self.key["id"])
            if record["event"] == GRANTED and self.server.id in str(record)
        ]

    def guest(self) -> str:
        """What tells one run of the guest from another."""
        return self.world.node1.virsh("list", "--uuid").stdout + (
            self.world.node1.virsh("domid", self.server.id).stdout
        )


@pytest.fixture(scope="module")
def rescue(
    world: World, story: Story, image: TrustedImage
) -> collections.abc.Iterator[Rescue]:
    made = Rescue(world, story)
    yield made
    world.delete(made.server)
    assert world.leftovers(world.node1, made.server.id) == []


def rescue_and_back(
    world: World, rescue: Rescue, token: str, *command: str
) -> None:
    """Rescued with the image of that token; its own disk is readable;
    unrescued, it is as it was.

    :param command: words behind ``openstack``; none: nova's own call.
    """
    compute, server = world.tenant.compute, rescue.server
    before = rescue.purposes()
    if command:
        answer = world.product.answer("tenant", *command)
        assert answer["status"] == "RESCUE"
    else:
        compute.rescue_server(server.id)
        world.settle(server, "RESCUE")
    guest.wait_console(world.admin, server, token)
    assert rescue.disks.names() == ["disk", "disk.rescue"]
    assert rescue.disks.read("disk", 512 << 10, 16) == bytes([0xA5]) * 16
    assert "rescue" in rescue.purposes()[len(before) :]
    assert world.node1.virsh("secret-list").stdout.strip() == ""
    compute.unrescue_server(server.id)
    world.settle(server, "ACTIVE")
    guest.wait_console(world.admin, server, rescue.image.token)
    assert rescue.disks.names() == ["disk"]
    assert rescue.disks.read("disk", 512 << 10, 16) == bytes([0xA5]) * 16
    assert rescue.purposes()[-1] == "start"


def test_rescue_with_the_own_image(world: World, rescue: Rescue) -> None:
    rescue_and_back(world, rescue, rescue.image.token)


def test_rescue_with_another_encrypted_image(
    world: World, rescue: Rescue
) -> None:
    """Of another key, with a ticket that the tenant's client gets for it."""
    key = world.create_key(
        "rescuer", *("--purpose", "launch", "--purpose", "rescue")
    )
    other = world.create_image("rescuer", key)
    # without a ticket: refused, untouched
    refused_and_unharmed(
        world,
        rescue,
        "kms.release.ticket",
        rescue_image_ref=other.id,
    )
    words = ("trusted", "server", "rescue", rescue.server.id)
    rescue_and_back(world, rescue, other.token, *words, "--image", other.id)
    records = world.kms_audit(key["id"])
    assert any(
        record["event"] == GRANTED
        and record["purpose"] == "rescue"
        and rescue.server.id in str(record)
        for record in records
    )
    marker = Needle("rescue image", other.marker)
    assert not clear_on_disk(world, marker)


def said(world: World, server: typing.Any) -> str:
    """Everything nova tells of the last action."""
    actions = world.admin.compute.server_actions(server.id)
    request = next(iter(actions)).request_id
    action = world.admin.compute.get_server_action(request, server.id)
    found = world.admin.compute.get_server(server.id)
    return f"{action.events} {action.message} {found.fault}"


def refused_and_unharmed(
    world: World, rescue: Rescue, event: str, **how: str
) -> None:
    """The guest runs on, the server is ACTIVE, and the reason is told."""
    server, running = rescue.server, rescue.guest()
    world.tenant.compute.post(
        f"/servers/{server.id}/action", json={"rescue": how}
    )
    world.settle(server, "ACTIVE")
    # nova writes that last
    wait_for("the reason", lambda: event in said(world, server), 30)
    assert rescue.guest() == running
    assert rescue.disks.names() == ["disk"]
    assert not (rescue.disks.folder / "unrescue.xml").exists()


def test_rescue_with_a_plain_image_is_refused(
    world: World, rescue: Rescue
) -> None:
    picture, _token = world.plain_disk()
    refused_and_unharmed(
        world, rescue, "kms.release.purpose", rescue_image_ref=picture.id
    )
    world.tenant.image.delete_image(picture.id)


def test_rescue_with_a_plain_image_where_the_policy_allows_it(
    world: World, rescue: Rescue
) -> None:
    world.product.openstack(
        "tenant",
        *("trusted", "key", "set", rescue.key["id"]),
        *("--purpose", "launch", "--purpose", "start"),
        *("--purpose", "rescue", "--purpose", "rescue-plain"),
    )
    picture, token = world.plain_disk()
    compute, server = world.tenant.compute, rescue.server
    compute.rescue_server(server.id, image_ref=picture.id)
    world.settle(server, "RESCUE")
    guest.wait_console(world.admin, server, token)
    assert rescue.disks.read("disk", 512 << 10, 16) == bytes([0xA5]) * 16
    assert rescue.purposes()[-1] == "rescue-plain"
    compute.unrescue_server(server.id)
    world.settle(server, "ACTIVE")
    guest.wait_console(world.admin, server, rescue.image.token)
    world.tenant.image.delete_image(picture.id)


def test_rescue_is_refused_where_the_project_may_not(
    world: World, rescue: Rescue
) -> None:
    """An encrypted image whose key is another project's."""
    key = world.create_key(
        "foreign",
        *("--purpose", "rescue", "--project", "0" * 32, "--no-ticket"),
    )
    other = world.create_image("foreign", key)
    refused_and_unharmed(
        world, rescue, "kms.release.project", rescue_image_ref=other.id
    )


def test_rescue_of_an_image_that_allows_none(
    world: World, image: TrustedImage
) -> None:
    """By default a release policy has no such purpose."""
    server = world.boots("no-rescue", image)
    running = world.node1.virsh("domid", server.id).stdout
    world.tenant.compute.rescue_server(server.id)
    world.settle(server, "ACTIVE")
    assert world.node1.virsh("domid", server.id).stdout == running
    world.delete(server)
