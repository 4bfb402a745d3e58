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
"""Images of other formats, and disks that are not qcow2, in the real Nova."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from tests.minicloud import bootimage, guest
from tests.minicloud.story import Story
from tests.minicloud.world import TRUSTED_FLAVOR, World

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]
Disk = tuple[pathlib.Path, str, bytes]


@pytest.fixture(scope="module", autouse=True)
def ready(story: Story) -> None:
    """Also where this module runs alone."""
    if not story.key:
        story.enrol()
        story.flavor()
        story.tenant_key()


def converted(world: World, name: str, *words: str) -> Disk:
    path, token, marker = world.boot_disk(name)
    made = path.with_suffix(".made")
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", *words, str(path), str(made)],
        check=True,
    )
    return made, token, marker


def hybrid_iso(world: World, name: str) -> Disk:
    """An ISO that a BIOS also starts as a disk: the first 32 KiB of an ISO
    are nobody's, and have our boot sector and the token."""
    path, token, marker = world.boot_disk(name)
    folder = path.with_suffix(".tree")
    folder.mkdir()
    (folder / "MARK.TXT").write_bytes(marker)
    (folder / "FILL.BIN").write_bytes(bytes(2 << 20))
    made = path.with_suffix(".iso")
    subprocess.run(
        ["genisoimage", "-quiet", "-o", str(made), str(folder)], check=True
    )
    size = made.stat().st_size
    boot = bytearray(bootimage.build(token.encode())[:1024])
    boot[446:462] = bootimage.partition_entry(1, size // 512 - 1)
    with made.open("r+b") as out:
        out.write(boot)
    return made, token, marker


def in_the_clear(world: World, marker: bytes) -> list[str]:
    """Files of host 1 and of the image service that hold the marker."""
    places = [world.node1.folder / "instances", world.glance_store]
    return [
        str(path)
        for place in places
        for path in place.rglob("*")
        if path.is_file() and marker in path.read_bytes()
    ]


def boots(
    world: World, story: Story, name: str, disk: Disk, *words: str
) -> dict[str, str]:
    """Encrypt, upload, launch on host 1, start again; the image's facts."""
    image = world.create_image(name, story.key, *words, disk=disk)
    server = world.boots(name, image, flavor=TRUSTED_FLAVOR)
    try:
        found = world.admin.compute.get_server(server.id)
        assert found.hypervisor_hostname == world.node1.name
        assert in_the_clear(world, image.marker) == []
        world.tenant.compute.stop_server(server.id)
        guest.wait_status(world.admin, server, "SHUTOFF")
        world.starts(server, image)
        assert in_the_clear(world, image.marker) == []
        # the search finds what is there
        plant = world.node1.folder / "instances" / "planted"
        plant.write_bytes(b"x" + image.marker)
        assert in_the_clear(world, image.marker) == [str(plant)]
        plant.unlink()
    finally:
        world.delete(server)
    assert world.leftovers(world.node1, server.id) == []
    return image.properties


def test_vmdk(world: World, story: Story) -> None:
    words = ("-O", "vmdk", "-o", "subformat=streamOptimized")
    boots(world, story, "vmdk", converted(world, "vmdk", *words))


def test_compressed_qcow2(world: World, story: Story) -> None:
    words = ("-O", "qcow2", "-o", "compression_type=zstd")
    boots(world, story, "zstd", converted(world, "zstd", *words))


def test_iso(world: World, story: Story) -> None:
    boots(world, story, "iso", hybrid_iso(world, "iso"))


def test_raw_luks1(world: World, story: Story) -> None:
    disk = world.boot_disk("luks")
    found = boots(world, story, "luks", disk, "--disk-format", "raw")
    assert (found["disk_format"], found["container_format"]) == ("raw", "bare")


def test_ova(world: World, story: Story) -> None:
    disk = world.boot_disk("ova")
    found = boots(world, story, "ova", disk, "--container-format", "ova")
    assert (found["disk_format"], found["container_format"]) == (
        "qcow2",
        "ova",
    )
