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
"""Volumes of a real Cinder: plain servers have them as ever; a trusted one
does not boot from them.
"""

from __future__ import annotations

import collections.abc
import typing

import pytest

from tests.minicloud import guest
from tests.minicloud.disks import Plugged
from tests.minicloud.story import Story
from tests.minicloud.volumes.tenant import Volumes
from tests.minicloud.world import PLAIN_FLAVOR, TRUSTED_FLAVOR, World

VOLUMES = True
pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def volumes(world: World, story: Story) -> Volumes:
    story.ready()
    return Volumes(world)


@pytest.fixture(scope="module")
def plain(
    world: World, volumes: Volumes
) -> collections.abc.Iterator[tuple[typing.Any, str]]:
    """An image, and what its guests say."""
    image, token = world.plain_disk()
    yield image, token
    world.tenant.image.delete_image(image.id)


def boots(
    world: World, name: str, plain: tuple[typing.Any, str]
) -> typing.Any:
    """A plain server on host 1, beside the trusted ones."""
    image, token = plain
    flavor = world.admin.compute.find_flavor(PLAIN_FLAVOR)
    node = world.node1.name
    server = guest.boot(world.operator, name, image, flavor, host=node)
    guest.wait_console(world.admin, server, token)
    return server


def test_a_plain_server_has_a_volume(
    world: World, volumes: Volumes, plain: tuple[typing.Any, str]
) -> None:
    """Attached while it runs; there after a hard reboot; out while it runs;
    in another server with what the first one wrote; free after that."""
    node, written = world.node1, b"\xa5" * 4096
    server = boots(world, "plain-volume", plain)
    volume = volumes.create("plain")
    try:
        found = volumes.attach(server, volume)
        assert [one["server_id"] for one in found.attachments] == [server.id]
        disks = volumes.sources(node, server)
        assert disks["vdb"] == str(volumes.file(volume))
        assert Plugged(world, server).read(volume.id, 0, 4096) == bytes(4096)
        Plugged(world, server).write(volume.id, 0, 0xA5)
        world.tenant.compute.reboot_server(server.id, "HARD")
        world.settle(server, "ACTIVE")
        guest.wait_console(world.admin, server, plain[1])
        assert volumes.sources(node, server) == disks
        assert Plugged(world, server).read(volume.id, 0, 4096) == written
        volumes.unplug(node, server, volume)
        assert list(volumes.sources(node, server)) == ["vda"]
    finally:
        world.delete(server)
    # in the clear: that is what a volume of a plain server is
    assert volumes.content(volume, 4096) == written
    other = boots(world, "plain-volume-2", plain)
    try:
        world.tenant.compute.stop_server(other.id)
        world.settle(other, "SHUTOFF")
        volumes.attach(other, volume)
        volumes.detach(other, volume)
        volumes.attach(other, volume)
        world.tenant.compute.start_server(other.id)
        world.settle(other, "ACTIVE")
        assert Plugged(world, other).read(volume.id, 0, 4096) == written
    finally:
        world.delete(other)
    assert volumes.wait(volume, "available").attachments == []
    volumes.storage.extend_volume(volume, 2)
    assert volumes.wait(volume, "available").size == 2
    assert volumes.file(volume).stat().st_size == 2 << 30
    volumes.delete(volume)


def test_a_plain_server_boots_from_a_volume(
    world: World, volumes: Volumes, plain: tuple[typing.Any, str]
) -> None:
    """Nova has Cinder make it of an image, and delete it with the server."""
    image, token = plain
    server = boots_from(
        world,
        PLAIN_FLAVOR,
        uuid=image.id,
        source_type="image",
        volume_size=1,
        delete_on_termination=True,
    )
    assert server.status == "ACTIVE", guest.fault(server)
    guest.wait_console(world.admin, server, token)
    [attached] = server.attached_volumes
    volume = volumes.storage.get_volume(attached["id"])
    assert volume.status == "in-use"
    world.delete(server)
    volumes.storage.wait_for_delete(volume, interval=0.3, wait=60)
    assert not volumes.file(volume).exists()


def boots_from(
    world: World, flavor: str, metadata: typing.Any = None, **mapping: object
) -> typing.Any:
    """A server whose first disk is a volume, ACTIVE or in ERROR."""
    server = world.tenant.compute.create_server(
        name="from-volume",
        flavor_id=world.admin.compute.find_flavor(flavor).id,
        networks="none",
        metadata=metadata or {},
        block_device_mapping=[
            {"boot_index": 0, "destination_type": "volume", **mapping}
        ],
    )
    world.servers.append(server)
    return guest.wait_status(world.tenant, server, "ACTIVE")


# -- trusted -----------------------------------------------------------------


def test_a_trusted_server_does_not_boot_from_a_volume(
    world: World, volumes: Volumes, story: Story
) -> None:
    """A volume with the properties of an encrypted image: what nova takes
    for those of the image."""
    image = story.ready()
    volume = volumes.create("trusted")
    volumes.storage.set_volume_image_metadata(
        volume,
        **{
            name: str(value)
            for name, value in image.properties.items()
            if name.startswith(("mh_", "os_encrypt", "os_decrypt"))
            and len(str(value)) < 256
        },
    )
    volumes.storage.set_volume_bootable_status(volume, True)
    before = world.releases(image.key_id)
    server = boots_from(
        world,
        TRUSTED_FLAVOR,
        {"mh_ticket": world.ticket(image)},
        uuid=volume.id,
        source_type="volume",
    )
    try:
        assert server.status == "ERROR"
        assert "hook.launch.volume" in guest.fault(server)
        assert world.releases(image.key_id) == before
        assert world.leftovers(world.node1, server.id) == []
    finally:
        world.delete(server)
    assert volumes.wait(volume, "available").attachments == []
    volumes.delete(volume)


def test_cinder_makes_no_volume_of_an_encrypted_image(
    world: World, volumes: Volumes, story: Story
) -> None:
    """It would have to open it, and has no key."""
    image = story.ready()
    volume = volumes.create("opened", image_id=image.id)
    assert volume.status == "error"
    assert not volume.is_bootable
    assert image.marker not in volumes.content(volume, 8 << 20)
    volumes.delete(volume)
