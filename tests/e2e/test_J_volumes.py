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
from tests.minicloud.story import Story
from tests.minicloud.volumes.tenant import Volumes
from tests.minicloud.world import PLAIN_FLAVOR, TRUSTED_FLAVOR, World

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def volumes(world: World, story: Story) -> Volumes:
    story.ready()
    return Volumes(world)


class Plain:
    """An image of the tenant's whose guests look for a second disk."""

    def __init__(self, world: World, volumes: Volumes) -> None:
        self.world = world
        self.volumes = volumes
        path, self.token, _marker = world.boot_disk("with-volume", second=True)
        self.image = guest.upload(world.tenant, "with-volume", path)
        self.flavor = world.admin.compute.find_flavor(PLAIN_FLAVOR)

    def boots(self, name: str) -> typing.Any:
        """On host 1, beside the trusted ones."""
        server = guest.boot(
            self.world.operator,
            name,
            self.image,
            self.flavor,
            host=self.world.node1.name,
        )
        self.volumes.said(server, "!")
        return server


@pytest.fixture(scope="module")
def plain(world: World, volumes: Volumes) -> collections.abc.Iterator[Plain]:
    made = Plain(world, volumes)
    yield made
    world.tenant.image.delete_image(made.image.id)


def test_a_plain_server_has_a_volume(
    world: World, volumes: Volumes, plain: Plain
) -> None:
    """Attached while it runs; there after a hard reboot, and written to;
    out again; in another server with what the first one wrote."""
    server = plain.boots("plain-volume")
    volume = volumes.create("plain")
    try:
        found = volumes.attach(server, volume)
        assert [one["server_id"] for one in found.attachments] == [server.id]
        disks = volumes.sources(world.node1, server)
        assert disks["vdb"] == str(volumes.file(volume))
        # the firmware looks for disks at a reset
        world.node1.virsh("reset", server.id)
        volumes.said(server, "=")
        assert volumes.token(volume) == plain.token
        world.tenant.compute.reboot_server(server.id, "HARD")
        world.settle(server, "ACTIVE")
        volumes.said(server, f"={plain.token}")
        assert volumes.sources(world.node1, server) == disks
        volumes.unplug(world.node1, server, volume)
        assert list(volumes.sources(world.node1, server)) == ["vda"]
        volumes.said(server, "!")
    finally:
        world.delete(server)
    other = plain.boots("plain-volume-2")
    try:
        world.tenant.compute.stop_server(other.id)
        world.settle(other, "SHUTOFF")
        volumes.attach(other, volume)
        world.tenant.compute.start_server(other.id)
        world.settle(other, "ACTIVE")
        volumes.said(other, f"={plain.token}")
    finally:
        world.delete(other)
    # deleted with the volume in it: that is free again
    freed = volumes.wait(volume, "available")
    assert freed.attachments == []
    assert volumes.token(volume) == plain.token
    volumes.delete(volume)


def test_a_plain_server_boots_from_a_volume(
    world: World, volumes: Volumes, plain: Plain
) -> None:
    """Nova has Cinder make it of an image, and delete it with the server."""
    server = world.tenant.compute.create_server(
        name="from-volume",
        flavor_id=plain.flavor.id,
        networks="none",
        block_device_mapping=[
            {
                "boot_index": 0,
                "uuid": plain.image.id,
                "source_type": "image",
                "destination_type": "volume",
                "volume_size": 1,
                "delete_on_termination": True,
            }
        ],
    )
    world.servers.append(server)
    server = guest.wait_status(world.tenant, server, "ACTIVE")
    assert server.status == "ACTIVE", guest.fault(server)
    guest.wait_console(world.admin, server, plain.token)
    [attached] = server.attached_volumes
    volume = volumes.storage.get_volume(attached["id"])
    assert volume.status == "in-use"
    world.delete(server)
    volumes.storage.wait_for_delete(volume, interval=0.3, wait=60)
    assert not volumes.file(volume).exists()


# -- trusted -----------------------------------------------------------------


def test_a_trusted_server_does_not_boot_from_a_volume(
    world: World, volumes: Volumes, story: Story
) -> None:
    """A volume that Cinder made of an encrypted image, byte by byte."""
    image = world.create_image(
        "luks-volume", story.key, "--disk-format", "raw"
    )
    volume = volumes.create("trusted", image_id=image.id)
    assert volume.status == "available"
    assert volume.volume_image_metadata["mh_version"] == "1"
    server = world.tenant.compute.create_server(
        name="trusted-from-volume",
        flavor_id=world.admin.compute.find_flavor(TRUSTED_FLAVOR).id,
        networks="none",
        metadata={"mh_ticket": world.ticket(image)},
        block_device_mapping=[
            {
                "boot_index": 0,
                "uuid": volume.id,
                "source_type": "volume",
                "destination_type": "volume",
            }
        ],
    )
    world.servers.append(server)
    before = world.releases(image.key_id)
    try:
        server = guest.wait_status(world.tenant, server, "ACTIVE")
        assert server.status == "ERROR"
        assert "hook.launch.volume" in guest.fault(server)
        assert world.releases(image.key_id) == before
        assert world.leftovers(world.node1, server.id) == []
    finally:
        world.delete(server)
    assert volumes.wait(volume, "available").attachments == []
    volumes.delete(volume)


def test_cinder_makes_no_volume_of_an_encrypted_qcow2(
    world: World, volumes: Volumes, story: Story
) -> None:
    """It would have to open it, and has no key."""
    volume = volumes.create("opened", image_id=story.disk_image.id)
    assert volume.status == "error"
    assert not volume.is_bootable
    volumes.delete(volume)
