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
"""A qcow2 header edited on the node, each edit with its event id."""

import os
import struct
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from mh_core.errors import MHError
from mh_core.image import overlay, qcow2
from mh_core.image.qcow2_header import EXT_CRYPT_HEADER, EXTENSION
from tests.functional.mh_nova.agent.world import MIB, World


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def luks_at(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return qcow2.read_header(fd).luks_offset
    finally:
        os.close(fd)


def data_file(path: Path) -> None:
    patch(path, 72, struct.pack(">Q", 1 << 2))


def compression(path: Path) -> None:
    patch(path, 72, struct.pack(">Q", 1 << 3))
    patch(path, 104, b"\1")


def snapshot(path: Path) -> None:
    patch(path, 60, struct.pack(">I", 1))


def other_backing(path: Path) -> None:
    data = path.read_bytes()
    at, length = struct.unpack_from(">QI", data, 8)
    patch(path, at + length - 1, b"7")


def plain(path: Path) -> None:
    """As if stock nova had made it: no encryption at all."""
    path.unlink(missing_ok=True)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", path, str(16 * MIB)],
        check=True,
    )


def method_none(path: Path) -> None:
    patch(path, 32, struct.pack(">I", 0))


def many_iterations(path: Path) -> None:
    # mk-digest-iter, LUKS1 figure 1
    patch(path, luks_at(path) + 164, struct.pack(">I", 2_000_000_000))


def slot_iterations(path: Path) -> None:
    patch(path, luks_at(path) + 208 + 4, struct.pack(">I", 2_000_000_000))


def other_uuid(path: Path) -> None:
    patch(path, luks_at(path) + 168, str(uuid.uuid4()).encode())


def shrunk(path: Path) -> None:
    patch(path, 24, struct.pack(">Q", 8 * MIB))


def huge(path: Path) -> None:
    patch(path, 24, struct.pack(">Q", 1 << 60))


def unknown_extension(path: Path) -> None:
    data = path.read_bytes()
    at = data.index(struct.pack(">I", EXT_CRYPT_HEADER))
    patch(path, at - 8 - 8, EXTENSION.pack(0x12345678, 5))


def truncated(path: Path) -> None:
    os.truncate(path, 100)


def other_disk(path: Path) -> None:
    """A good overlay with a key of somebody else's choice."""
    fd = os.open(path, os.O_RDONLY)
    backing = qcow2.read_header(fd).backing_file
    os.close(fd)
    assert backing is not None
    path.unlink()
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    overlay.write(
        fd,
        16 * MIB,
        os.urandom(32),
        uuid.uuid4(),
        os.urandom,
        (backing, "qcow2"),
    )
    os.close(fd)


def link(path: Path) -> None:
    moved = path.with_name("moved")
    path.rename(moved)
    path.symlink_to(moved)


def missing(path: Path) -> None:
    path.unlink()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("edit", "event"),
    [
        (data_file, "agent.header.data-file"),
        (compression, "agent.header.compression"),
        (snapshot, "agent.header.snapshots"),
        (other_backing, "agent.header.backing"),
        (plain, "agent.header.crypt-method"),
        (method_none, "agent.header.extensions"),
        (many_iterations, "agent.header.iterations"),
        (slot_iterations, "agent.header.iterations"),
        (other_uuid, "agent.header.uuid"),
        (shrunk, "agent.header.virtual-size"),
        (huge, "agent.header.size"),
        (unknown_extension, "agent.header.extensions"),
        (truncated, "agent.header.truncated"),
        (other_disk, "agent.header.uuid"),
        (link, "agent.path.link"),
        (fifo, "agent.path.link"),
        (missing, "agent.overlay.missing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_start_after(
    world: World, edit: Callable[[Path], None], event: str
) -> None:
    world.make()
    world.start()
    world.launcher.started(world.instance, True)
    defined = world.secrets.ever
    good = world.disk.read_bytes()
    edit(world.disk)
    with pytest.raises(MHError) as caught:
        world.start("start")
    assert caught.value.event == event
    assert world.secrets.ever == defined
    assert world.events()[-1] == event
    # no key was even asked for
    assert len(world.kms.requests) == 1
    world.disk.unlink(missing_ok=True)
    world.disk.write_bytes(good)
    world.start("start")


def test_a_plain_disk_waits_for_a_launch(world: World) -> None:
    """Put there before the launch: not written over, not used."""
    plain(world.disk)
    with pytest.raises(MHError) as caught:
        world.prepare()
    assert caught.value.event == "agent.header.crypt-method"


def test_an_overlay_of_another_waits_for_a_launch(world: World) -> None:
    """Its uuid is asked for, and the key for that uuid does not open it."""
    world.make()
    other_disk(world.disk)
    world.launcher.forget(world.instance)
    with pytest.raises(MHError) as caught:
        world.make()
    assert caught.value.event == "agent.header.passphrase"
