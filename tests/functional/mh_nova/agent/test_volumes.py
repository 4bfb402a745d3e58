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
"""Volumes of a trusted guest: blank, encrypted, found again, refused.

The volumes are files, as of a back end that has files; the last tests plug
them into a guest of a real libvirt.  A block device is tried where this
machine has loop devices.
"""

import dataclasses
import errno
import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from mh_core import volume
from mh_core.errors import Denied, MHError
from mh_core.image import luks1
from mh_core.secret import Secret
from mh_nova.agent.domain_volume import ExpectedVolume
from mh_nova.agent.secrets import Libvirt, Secrets
from mh_nova.agent.volumes import HEAD, TAIL, Volumes
from tests.functional.mh_nova.agent import test_secrets
from tests.functional.mh_nova.agent.world import MIB, World

uri = test_secrets.uri
connection = test_secrets.connection
SIZE = 64 * MIB
TOKEN = b"written by the guest to its volume. "


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "volumes").mkdir()
    world = World(tmp_path)
    yield world
    world.stop()


def refused(call: Any, *args: Any) -> str:
    with pytest.raises(MHError) as caught:
        call(*args)
    return caught.value.event


class File:
    """One volume: sparse, and empty until told otherwise."""

    def __init__(self, world: World, size: int = SIZE) -> None:
        self.id = str(uuid.uuid4())
        self.path = world.folder / "volumes" / f"volume-{self.id}"
        with self.path.open("wb") as file:
            file.truncate(size)
        # QEMU is root here
        self.path.chmod(0o666)

    @property
    def secret(self) -> str:
        return volume.secret_uuid(self.id)

    def xml(self, target: str = "vdb", **changes: str) -> str:
        return (
            '<disk type="file" device="disk">'
            '<driver name="qemu" type="raw" cache="none"/>'
            f'<alias name="ua-{self.id}"/>'
            f'<source file="{changes.get("path", self.path)}">'
            '<encryption format="luks" engine="qemu">'
            '<secret type="passphrase" '
            f'uuid="{changes.get("secret", self.secret)}"/>'
            "</encryption></source><backingStore/>"
            f'<target dev="{target}" bus="virtio"/>'
            f"<serial>{changes.get('serial', self.id)}</serial></disk>"
        )

    def key(self, world: World) -> bytes:
        return volume.volume_key(world.tenant.root, uuid.UUID(self.id))

    def put(self, data: bytes, offset: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def tool(self, key: bytes, *words: str) -> str:
        """A tool of QEMU's, with a key; raises where it does not open."""
        fd = os.memfd_create("key")
        os.write(fd, luks1.passphrase(key))
        try:
            return subprocess.run(
                [
                    *words,
                    *("--object", f"secret,id=s,file=/proc/self/fd/{fd}"),
                    "--image-opts",
                    f"driver=luks,key-secret=s,file.filename={self.path}",
                ],
                capture_output=True,
                text=True,
                pass_fds=[fd],
                check=True,
            ).stdout
        finally:
            os.close(fd)

    def size(self, key: bytes) -> int:
        """Bytes that a guest sees."""
        out = self.tool(key, "qemu-img", "info", "--output", "json")
        return int(json.loads(out)["virtual-size"])

    def read(self, key: bytes, what: str = "0 512") -> str:
        return self.tool(key, "qemu-io", "-r", "-c", f"read {what}")


def started(world: World) -> None:
    world.make()
    world.start()
    world.launcher.started(world.instance, True)
    assert not world.secrets.defined


class Domain:
    """libvirt's place, with one domain."""

    def __init__(self, xml: str) -> None:
        self.xml = xml

    def domain_xml(self, _instance: str) -> str | None:
        return self.xml


def test_a_volume_that_the_next_start_would_boot(world: World) -> None:
    """The image's root disk is at vdb, where the cloud put it."""
    started(world)
    world.launcher._p = dataclasses.replace(
        world.launcher._p,
        libvirt=Domain(world.xml().replace('"vda"', '"vdb"')),  # type: ignore[arg-type]
    )
    one = File(world)
    asked = len(world.kms.requests)
    assert (
        refused(world.launcher.attach, world.instance, one.xml("vda"))
        == "agent.admit.boot"
    )
    assert len(world.kms.requests) == asked
    world.launcher.attach(world.instance, one.xml("vdc"))


def with_volumes(world: World, *devices: str) -> str:
    return world.xml().replace("</devices>", "".join(devices) + "</devices>")


# attaching


def test_a_blank_volume_gets_its_header(world: World) -> None:
    started(world)
    one = File(world)
    event, detail = world.launcher.attach(world.instance, one.xml())
    assert event == "agent.attach.granted"
    assert "kms#" in detail
    # one more question, about this volume and nothing else
    assert [request.purpose for request in world.kms.requests] == [
        "launch",
        "attach",
    ]
    assert world.kms.requests[1].disks == (volume.wanted(one.id),)
    # its secret, and no other, until the device is in
    assert world.secrets.defined[world.instance] == {
        one.secret: one.key(world)
    }
    world.launcher.attached(world.instance, True)
    assert not world.secrets.defined
    head = one.path.read_bytes()[: volume.HEADER_BYTES]
    assert str(luks1.parse(head).uuid) == one.id
    luks1.unlock(head, luks1.passphrase(one.key(world)))
    assert one.path.stat().st_size == SIZE
    # QEMU is the judge of it
    assert one.size(one.key(world)) == SIZE - volume.HEADER_BYTES
    with pytest.raises(subprocess.CalledProcessError):
        one.read(File(world).key(world))
    assert world.events()[-3:] == [
        "agent.volume.made",
        "agent.attach.granted",
        "agent.attach.done",
    ]


def test_the_same_volume_at_another_instance(world: World) -> None:
    started(world)
    one = File(world)
    world.launcher.attach(world.instance, one.xml())
    world.launcher.attached(world.instance, True)
    before = one.path.read_bytes()
    first, world.instance = world.instance, world.new_instance()
    started(world)
    world.launcher.attach(world.instance, one.xml())
    assert one.path.read_bytes() == before
    assert world.kms.requests[-1].instance == world.instance != first
    assert world.secrets.defined == {
        world.instance: {one.secret: one.key(world)}
    }
    assert world.events().count("agent.volume.made") == 1


def test_one_that_is_not_blank(world: World) -> None:
    started(world)
    for place in (0, 510, HEAD - 1, SIZE - TAIL, SIZE - 1):
        one = File(world)
        one.put(b"x", place)
        before = one.path.read_bytes()
        asked = len(world.kms.requests)
        assert (
            refused(world.launcher.attach, world.instance, one.xml())
            == "agent.volume.not-blank"
        )
        assert one.path.read_bytes() == before
        # before anybody was asked
        assert len(world.kms.requests) == asked
        assert not world.secrets.defined


class Died(Exception):
    """In a kill's place: nothing is cleared up."""


def _cut_off(
    monkeypatch: pytest.MonkeyPatch,
    offset: int,
    error: Exception,
    for_good: bool,
) -> None:
    """The write at an offset fails, and, for good, every later one."""
    real, failed = os.pwrite, list[int]()

    def pwrite(fd: int, data: Any, at: int) -> int:
        if failed and for_good or not failed and at == offset:
            failed.append(at)
            raise error
        # as a device may: in pieces
        return real(fd, data[: 1 << 16], at)

    monkeypatch.setattr(os, "pwrite", pwrite)


OFFSETS = (0, 512, 512 + (1 << 16))


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_header_that_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    """It is blank again, for another host as well."""
    started(world)
    one = File(world)
    _cut_off(monkeypatch, offset, OSError(errno.EIO, "I/O"), False)
    assert (
        refused(world.launcher.attach, world.instance, one.xml())
        == "agent.volume.write"
    )
    assert not any(one.path.read_bytes())
    assert os.listdir(world.folder / "state/volumes") == []
    world.launcher.attach(world.instance, one.xml())
    assert one.size(one.key(world)) == SIZE - volume.HEADER_BYTES


@pytest.mark.parametrize("error", [Died(), OSError(errno.EIO, "I/O")])
@pytest.mark.parametrize("offset", OFFSETS)
def test_a_header_that_was_cut_off(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    offset: int,
    error: Exception,
) -> None:
    """The agent was killed, or the volume could not be cleared either."""
    started(world)
    one = File(world)
    _cut_off(monkeypatch, offset, error, True)
    with pytest.raises((Died, Denied)):
        world.launcher.attach(world.instance, one.xml())
    monkeypatch.undo()
    assert any(one.path.read_bytes()) is (offset != 512)
    world.halt()
    world.boot()
    # of this volume, and of nothing but a header of it
    for place in (0, 511, volume.HEADER_BYTES, HEAD - 1, SIZE - 1):
        with one.path.open("rb") as file:
            file.seek(place)
            before = file.read(1)
        one.put(b"x", place)
        assert (
            refused(world.launcher.attach, world.instance, one.xml())
            == "agent.volume.not-blank"
        )
        one.put(before, place)
    other = File(world)
    other.put(b"x", 4096)
    assert (
        refused(world.launcher.attach, world.instance, other.xml())
        == "agent.volume.not-blank"
    )
    world.launcher.attach(world.instance, one.xml())
    assert one.size(one.key(world)) == SIZE - volume.HEADER_BYTES
    # from now on what it says is not blank is not
    assert os.listdir(world.folder / "state/volumes") == []
    one.put(bytes(6), 0)
    assert (
        refused(world.launcher.attach, world.instance, one.xml())
        == "agent.volume.not-blank"
    )


def test_a_volume_that_ends_too_early_is_not_blank(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size says so much, and reading it gives less."""
    one, real = File(world), os.pread
    found = ExpectedVolume(one.id, "file", str(one.path))
    volumes = Volumes(world.conf)
    volumes.check(found)
    for end in (0, 512, HEAD - 1, SIZE - TAIL, SIZE - 1):

        def pread(fd: int, size: int, at: int, end: int = end) -> bytes:
            return real(fd, max(0, min(size, end - at)), at)

        monkeypatch.setattr(os, "pread", pread)
        with pytest.raises(Denied) as caught:
            volumes.check(found)
        assert caught.value.event == "agent.volume.not-blank"


def _attached(world: World) -> File:
    one = File(world)
    world.launcher.attach(world.instance, one.xml())
    world.launcher.attached(world.instance, True)
    return one


def test_of_another_tenants_key(world: World) -> None:
    started(world)
    one = _attached(world)
    before = one.path.read_bytes()
    world.tenant.root = os.urandom(32)
    assert (
        refused(world.launcher.attach, world.instance, one.xml())
        == "agent.volume.key"
    )
    assert one.path.read_bytes() == before
    assert not world.secrets.defined


def test_another_volume_in_its_place(world: World) -> None:
    """Swapped by the cloud, or a copy: by its header, and by its key."""
    started(world)
    one, other = _attached(world), File(world)
    other.put(one.path.read_bytes(), 0)
    assert (
        refused(world.launcher.attach, world.instance, other.xml())
        == "agent.volume.other"
    )
    # made to look right
    other.put(other.id.encode(), 168)
    head = other.path.read_bytes()[: volume.HEADER_BYTES]
    assert str(luks1.parse(head).uuid) == other.id
    assert (
        refused(world.launcher.attach, world.instance, other.xml())
        == "agent.volume.key"
    )
    assert not world.secrets.defined


def _bad_headers() -> dict[str, tuple[Callable[[bytes], bytes], str]]:
    def at(offset: int, new: bytes) -> Callable[[bytes], bytes]:
        return lambda area: area[:offset] + new + area[offset + len(new) :]

    key = bytes(range(1, 33))
    name = uuid.UUID(int=1)

    def built(mode: str, rounds: int) -> Callable[[bytes], bytes]:
        def make(area: bytes) -> bytes:
            made, _ = luks1.build(
                luks1.passphrase(key), name, os.urandom, mode, rounds
            )
            return made.ljust(len(area), b"\0")[: len(area)]

        return make

    return {
        "LUKS 2": (at(6, b"\0\2"), "agent.volume.header"),
        "iterations": (built("xts-plain64", 200_000), "agent.volume.header"),
        "cipher": (built("cbc-essiv:sha256", 1000), "agent.volume.header"),
        "payload": (at(104, b"\0\0\x10\0"), "agent.volume.header"),
        "slots": (at(208, b"\xff" * 4), "agent.volume.header"),
        "uuid": (at(168, b"zzzz"), "agent.volume.header"),
        "key material": (at(8192, b"\0" * 4096), "agent.volume.key"),
    }


@pytest.mark.parametrize("name", _bad_headers())
def test_a_hostile_header(world: World, name: str) -> None:
    started(world)
    one = _attached(world)
    change, event = _bad_headers()[name]
    one.put(change(one.path.read_bytes()[: volume.HEADER_BYTES]), 0)
    before = one.path.read_bytes()
    assert refused(world.launcher.attach, world.instance, one.xml()) == event
    assert one.path.read_bytes() == before
    assert not world.secrets.defined


def test_too_small_or_odd(world: World) -> None:
    started(world)
    for size in (0, 512, HEAD + TAIL - 512, SIZE + 1):
        one = File(world, size)
        assert (
            refused(world.launcher.attach, world.instance, one.xml())
            == "agent.volume.size"
        )


def test_paths_that_are_none(world: World, tmp_path: Path) -> None:
    """Only a file of the folder; no link out of it, nothing of nova's."""
    started(world)
    one = File(world)
    outside = tmp_path / "outside"
    outside.write_bytes(bytes(SIZE))
    link = one.path.with_name("link")
    link.symlink_to(outside)
    folder = one.path.with_name("folder")
    folder.mkdir()
    pipe = one.path.with_name("pipe")
    os.mkfifo(pipe)
    inside = world.instances / "inside"
    inside.write_bytes(bytes(SIZE))
    world.conf.set_override(
        "volume_dirs",
        [str(tmp_path / "volumes"), str(world.instances)],
        group="agent",
    )
    for path, event in {
        outside: "path",
        link: "path",
        folder: "path",
        pipe: "path",
        inside: "path",
        world.disk: "path",
        one.path.parent: "path",
        one.path.with_name("none"): "open",
        Path("/dev/zero"): "path",
        Path(f"{one.path.parent}/../outside"): "path",
    }.items():
        found = refused(
            world.launcher.attach, world.instance, one.xml(path=str(path))
        )
        assert found == f"agent.volume.{event}", path
    assert not any(outside.read_bytes())
    assert not any(inside.read_bytes())
    # of a link within the folder, the file
    link.unlink()
    link.symlink_to(one.path)
    world.launcher.attach(world.instance, one.xml(path=str(link)))


def test_devices_that_are_none(world: World) -> None:
    volumes = Volumes(world.conf)
    name = str(uuid.uuid4())
    for path in (
        "/dev/null",
        "/dev",
        "/dev/../etc/passwd",
        "/proc/self/mem",
        str(File(world).path),
        "dev/sda",
    ):
        with pytest.raises(Denied) as caught:
            volumes.check(ExpectedVolume(name, "block", path))
        assert caught.value.event in ("agent.volume.path", "agent.volume.open")


@pytest.mark.parametrize("kind", ["block", "file"])
def test_only_what_is_a_volume_is_opened(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Opening a tape, a watchdog or a pipe does something already."""
    pipe = world.folder / "volumes/pipe"
    os.mkfifo(pipe)
    opened, real = list[str](), os.open

    def watched(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if not flags & os.O_PATH:
            opened.append(str(path))
        return real(path, flags, *more, **others)

    found = ExpectedVolume(
        str(uuid.uuid4()), kind, "/dev/null" if kind == "block" else str(pipe)
    )
    volumes = Volumes(world.conf)
    monkeypatch.setattr(os, "open", watched)
    with pytest.raises(Denied) as caught:
        volumes.check(found)
    assert caught.value.event == "agent.volume.path"
    assert opened == []


def _loop(path: Path) -> str:
    done = subprocess.run(
        ["losetup", "--find", "--show", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def test_a_block_device(world: World) -> None:
    one = File(world)
    device = _loop(one.path)
    if not device:
        pytest.skip("no loop devices here")
    try:
        volumes = Volumes(world.conf)
        found = ExpectedVolume(one.id, "block", device)
        volumes.check(found)
        assert volumes.ready(found, Secret(one.key(world)))
        assert not volumes.ready(found, Secret(one.key(world)))
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.parametrize(
    ("changes", "event"),
    [
        ({"secret": str(uuid.uuid4())}, "agent.admit.volume"),
        ({"serial": "no uuid"}, "agent.volume.path"),
    ],
)
def test_a_device_that_is_not_the_volume(
    world: World, changes: dict[str, str], event: str
) -> None:
    started(world)
    one = File(world)
    found = refused(world.launcher.attach, world.instance, one.xml(**changes))
    assert found == event
    assert not any(one.path.read_bytes())
    assert len(world.kms.requests) == 1


def test_where_the_key_is_refused(world: World) -> None:
    started(world)
    one = File(world)
    world.kms.reply = lambda path: world.kms.error(403, "kms.release.purpose")
    assert refused(
        world.launcher.attach, world.instance, one.xml()
    ).startswith("agent.kms")
    assert not any(one.path.read_bytes())
    assert not world.secrets.defined


def test_a_host_that_is_not_sound(world: World) -> None:
    started(world)
    world.prover.gone = True
    one = File(world)
    found = refused(world.launcher.attach, world.instance, one.xml())
    assert found.startswith(("agent.guard", "agent.tpm"))
    assert not any(one.path.read_bytes())


def test_no_instance_of_ours(world: World) -> None:
    one = File(world)
    found = refused(world.launcher.attach, str(uuid.uuid4()), one.xml())
    assert found == "agent.record.unknown"


def test_not_within_a_start(world: World) -> None:
    world.make()
    world.start()
    found = refused(world.launcher.attach, world.instance, File(world).xml())
    assert found == "agent.attach.busy"
    # and what ends an attachment does not end a start
    world.launcher.attached(world.instance, True)
    assert world.secrets.defined[world.instance]


# at a start


def test_each_start_asks_for_the_volumes_too(world: World) -> None:
    started(world)
    one, other = _attached(world), File(world)
    world.halt()
    # all the agent knows is in its files, and in the domain
    world.boot()
    xml = with_volumes(world, one.xml(), other.xml("vdc"))
    world.start("start", xml)
    purposes = [request.purpose for request in world.kms.requests]
    assert purposes == ["launch", "attach", "start", "attach"]
    assert world.kms.requests[-1].disks == (
        volume.wanted(one.id),
        volume.wanted(other.id),
    )
    assert [disk.name for disk in world.kms.requests[-2].disks] == ["disk"]
    defined = world.secrets.defined[world.instance]
    assert {name: defined[name] for name in (one.secret, other.secret)} == {
        one.secret: one.key(world),
        other.secret: other.key(world),
    }
    assert len(defined) == 4
    # one that was blank is none any more
    assert other.size(other.key(world)) == SIZE - volume.HEADER_BYTES
    world.launcher.started(world.instance, True)
    assert not world.secrets.defined


def test_a_start_is_refused_for_its_volume(world: World) -> None:
    started(world)
    good = _attached(world)

    def start(*devices: str) -> str:
        return refused(world.start, "start", with_volumes(world, *devices))

    full = File(world)
    full.put(TOKEN, 0)
    assert start(full.xml()) == "agent.volume.not-blank"
    assert start(good.xml(), good.xml("vdc")) == "agent.volume.twice"
    clear = re.sub(r"<encryption.*</encryption>", "", good.xml())
    assert start(clear) == "agent.admit.volume"
    copy = File(world)
    copy.put(good.path.read_bytes(), 0)
    assert start(copy.xml()) == "agent.volume.other"
    no_volume = re.sub(r"<serial>.*</serial>", "", good.xml())
    assert start(no_volume) == "agent.admit.foreign-disk"
    assert not world.secrets.defined
    # the owner does not want volumes
    world.kms.reply = lambda path: (
        world.kms.error(403, "kms.release.purpose")
        if path.endswith("/release") and len(world.kms.requests) >= before
        else None
    )
    before = len(world.kms.requests) + 1
    assert start(good.xml()).startswith("agent.kms")
    assert not world.secrets.defined


# with libvirt


class Guest:
    """A guest of a real libvirt, and what it does to its volume."""

    def __init__(self, world: World, connection: Libvirt) -> None:
        self.world = world
        self.secrets = Secrets(connection, 60)
        world.launcher._p.__dict__["secrets"] = self.secrets
        world.make()
        self.domain = connection.connection().defineXML(self.xml())
        self.start("launch")

    def xml(self, *devices: str) -> str:
        text = with_volumes(self.world, *devices)
        return re.sub(r"<interface.*</interface>", "", text, flags=re.DOTALL)

    def start(self, purpose: str, *devices: str) -> None:
        xml = self.xml(*devices)
        self.world.start(purpose, xml)
        self.domain = self.domain.connect().defineXML(xml)
        self.domain.create()
        self.world.launcher.started(self.world.instance, True)

    def attach(self, one: File) -> None:
        self.world.launcher.attach(self.world.instance, one.xml())
        self.domain.attachDeviceFlags(
            one.xml(),
            libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG,
        )
        self.world.launcher.attached(self.world.instance, True)

    def io(self, one: File, command: str) -> None:
        """By QEMU itself, through the device's own back end."""
        said = libvirt_qemu.qemuMonitorCommand(
            self.domain,
            "qemu-io -d /machine/peripheral/ua-"
            f'{one.id}/virtio-backend "{command}"',
            libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP,
        )
        # what went well is on QEMU's own output
        assert not said

    def end(self) -> None:
        if self.domain.isActive():
            self.domain.destroy()
        self.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
        self.secrets.sweep()


@pytest.fixture
def guest(world: World, connection: Libvirt) -> Iterator[Guest]:
    guest = Guest(world, connection)
    yield guest
    guest.end()


@test_secrets.pytestmark
def test_a_guest_writes_to_it(guest: Guest, world: World) -> None:
    one = File(world)
    guest.attach(one)
    names = guest.domain.connect().listSecrets()
    assert not [name for name in names if name == one.secret]
    guest.io(one, "write -P 0xa7 1M 64k")
    # the guest sees the volume less the header
    assert guest.domain.blockInfo("vdb")[0] == SIZE - volume.HEADER_BYTES
    guest.io(one, "flush")
    data = one.path.read_bytes()
    assert b"\xa7" * 64 not in data
    place = volume.HEADER_BYTES + MIB
    assert data[place : place + 65536] != bytes(65536)
    # stopped and started, it is there again
    guest.domain.destroy()
    found = one.read(one.key(world), "-P 0xa7 1M 64k")
    assert "read 65536/65536" in found
    assert "failed" not in found
    asked = len(world.kms.requests)
    guest.start("start", one.xml())
    assert [found.purpose for found in world.kms.requests[asked:]] == [
        "start",
        "attach",
    ]
    guest.io(one, "write -P 0xb8 2M 64k")
    # detached as nova does it; the domain knows it no more
    guest.domain.detachDeviceFlags(one.xml(), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    guest.domain.destroy()
    assert "failed" not in one.read(one.key(world), "-P 0xb8 2M 64k")
    assert one.id not in guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)


@test_secrets.pytestmark
def test_libvirt_does_not_open_it_by_itself(
    guest: Guest, world: World
) -> None:
    """Without the agent there is no secret, and so no device."""
    one = File(world)
    guest.attach(one)
    guest.domain.destroy()
    started_at = time.monotonic()
    with pytest.raises(libvirt.libvirtError) as caught:
        guest.domain.create()
    assert "secret" in str(caught.value).lower()
    assert time.monotonic() - started_at < 30
