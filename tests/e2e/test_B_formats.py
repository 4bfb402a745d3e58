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

import collections.abc
import json
import pathlib
import subprocess
import uuid

import pytest

from tests.minicloud import bootimage, guest
from tests.minicloud.story import Story
from tests.minicloud.world import TRUSTED_FLAVOR, TrustedImage, World

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


@pytest.mark.parametrize(
    ("form", "words", "said"),
    [
        ("vmdk", ("vmdk", "-o", "subformat=streamOptimized"), ()),
        ("vdi", ("vdi",), ()),
        ("vhd", ("vpc", "-o", "force_size=on"), ()),
        # what it is stands at its end only
        ("fixed-vhd", ("vpc", "-o", "subformat=fixed"), ()),
        ("vhdx", ("vhdx",), ()),
        ("ami", ("raw",), ("--file-format", "ami")),
        ("zstd", ("qcow2", "-c", "-o", "compression_type=zstd"), ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_format(
    world: World,
    story: Story,
    form: str,
    words: tuple[str, ...],
    said: tuple[str, ...],
) -> None:
    """As qemu-img makes it."""
    boots(world, story, form, converted(world, form, "-O", *words), *said)


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


def piped(
    world: World, image: TrustedImage, data: bytes
) -> subprocess.CompletedProcess[bytes]:
    """``mh-agent stream`` on host 1, as a hypervisor's script runs it."""
    request = world.product.workstation / "stream.json"
    request.write_text(
        json.dumps(
            {
                "instance": str(uuid.uuid4()),
                "image": image.id,
                "project": world.tenant.current_project_id,
                "user": "root",
                "key_url": image.key_url,
                "key_id": image.key_id,
                "manifest": image.properties["mh_manifest"],
                "ticket": world.ticket(image),
            }
        )
    )
    socket = world.node1.folder / "run/mystery-hill/stream.sock"
    return subprocess.run(
        [world.cloud.where.bin / "mh-agent", "stream"]
        + ["--request", request, "--socket", socket],
        input=data,
        capture_output=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def streaming(world: World) -> collections.abc.Iterator[None]:
    """The operator turns the stream form on."""
    conf = world.node1.folder / "etc/mystery-hill/mh-agent.conf"
    before = conf.read_text()
    conf.write_text(before + "[stream]\nenabled = true\n")
    world.product.stop_agent(world.node1)
    world.product.start_agent(world.node1)
    world.agent_ready(world.node1)
    yield
    conf.write_text(before)
    world.product.stop_agent(world.node1)
    world.product.start_agent(world.node1)
    world.agent_ready(world.node1)


def test_stream(world: World, story: Story, streaming: None) -> None:
    words = [
        word
        for purpose in ("launch", "start", "stream")
        for word in ("--purpose", purpose)
    ]
    key = world.create_key("stream", *words)
    disk = world.boot_disk("stream")
    image = world.create_image("stream", key, disk=disk)
    data = world.tenant.image.download_image(image.id).content
    assert image.marker not in data
    done = piped(world, image, data)
    assert done.returncode == 0, done.stderr
    assert done.stdout == disk[0].read_bytes()
    granted = world.releases(key["id"])[-1]
    assert (granted["event"], granted["purpose"]) == (
        "kms.release.granted",
        "stream",
    )
    # cut, and changed: not one byte
    for bad in (data[:-1], data[:-9] + b"x" + data[-8:]):
        done = piped(world, image, bad)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"agent.measure." in done.stderr
    assert in_the_clear(world, image.marker) == []
    # a key whose owner lists no such purpose
    other = world.create_image("no-stream", story.key, disk=disk)
    data = world.tenant.image.download_image(other.id).content
    done = piped(world, other, data)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"kms.release.purpose" in done.stderr
