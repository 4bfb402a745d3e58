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
"""Moves as nova drives them: real files, TLS and qemu tools."""

import os
import re
import struct
import subprocess
import uuid

import pytest

from mh_core.image import luks1
from mh_core.secret import Secret
from mh_nova.agent.overlay import secret_uuid
from mh_nova.agent.store import DiskRecord
from mh_nova.agent.verbs import Context, dispatch
from tests.functional.mh_nova.agent.test_launch import memfd, qemu_io, refused
from tests.functional.mh_nova.agent.world import MIB, World

LARGER = 1 << 30


@pytest.fixture
def moved(world: World) -> World:
    """An instance that ran, and whose disk is on a host that never heard
    of it: the agent's state is new, the files are there."""
    world.make()
    world.start()
    keys = world.secrets.defined[world.instance]
    qemu_io(world, *both(world, keys), "write -P 0x5a 1M 64k")
    world.launcher.started(world.instance, True)
    world.launcher.forget(world.instance)
    world.keys = keys
    return world


def both(world: World, keys: dict[str, bytes]) -> tuple[bytes, bytes]:
    return (
        keys[secret_uuid(world.instance, "disk", "overlay")],
        keys[secret_uuid(world.instance, "disk", "base")],
    )


def arrive(world: World, purpose: str = "migrate-in") -> None:
    world.launcher.prepare(world.record(), purpose, "")
    there = world.base.exists()
    if not there:
        world.download()
    world.launcher.make(world.instance, not there)


def test_a_disk_that_arrived_starts(moved: World) -> None:
    """One release; the uuid is the one in the file."""
    asked = len(moved.kms.requests)
    arrive(moved)
    moved.start("migrate-in")
    keys = moved.secrets.defined[moved.instance]
    out = qemu_io(moved, *both(moved, keys), "read -P 0x5a 1M 64k")
    assert "Pattern verification failed" not in out
    moved.launcher.started(moved.instance, True)
    moved.launcher.arrived(moved.instance)
    requests = moved.kms.requests[asked:]
    assert [r.purpose for r in requests] == ["migrate-in"]
    assert requests[0].disks == moved.kms.requests[0].disks
    assert "agent.move.arrived" not in moved.events()


def test_a_disk_that_arrived_stays_off(moved: World) -> None:
    asked = len(moved.kms.requests)
    arrive(moved)
    moved.launcher.arrived(moved.instance)
    assert moved.events()[-1] == "agent.move.arrived"
    assert not moved.secrets.defined
    # what was released for the move is no leave to start
    assert refused(moved.launcher.resize, moved.instance, "disk", LARGER) == (
        "agent.resize.not-made"
    )
    moved.start("start")
    assert [r.purpose for r in moved.kms.requests[asked:]] == [
        "migrate-in",
        "start",
    ]


def test_another_base_than_the_tenants(moved: World) -> None:
    """Copied from a host that lies."""
    moved.base.unlink()
    moved.launcher.prepare(moved.record(), "migrate-in", "")
    data = bytearray(moved.tenant.data)
    data[-1] ^= 1
    moved.download(bytes(data))
    event = refused(moved.launcher.make, moved.instance, True)
    assert event.startswith("agent.measure.")
    assert not moved.base.exists()
    assert not moved.part.exists()


def test_another_disk_under_the_name(moved: World) -> None:
    """Its key is another: it does not open, and nothing starts."""
    other = moved.disk
    moved.instance = moved.new_instance()
    other.rename(moved.disk)
    moved.launcher.prepare(moved.record(), "migrate-in", "")
    event = refused(moved.launcher.make, moved.instance, False)
    assert event == "agent.header.passphrase"


def test_the_key_refused_where_it_arrives(moved: World) -> None:
    moved.kms.reply = lambda path: moved.kms.error(403, "kms.release.level")
    moved.launcher.prepare(moved.record(), "migrate-in", "")
    event = refused(moved.launcher.make, moved.instance, False)
    assert event == "agent.kms.refused"
    moved.launcher.arrived(moved.instance)
    assert not moved.secrets.defined


def test_the_lease_of_a_resize(moved: World) -> None:
    """The guest that starts after it can ask for more."""
    moved.kms.lease = 600
    arrive(moved, "resize")
    moved.start("resize")
    lease = moved.leases.of(moved.instance)
    assert lease is not None
    assert lease.lease == moved.kms.held[moved.instance]


def test_growing(moved: World) -> None:
    arrive(moved, "resize")
    moved.launcher.resize(moved.instance, "disk", LARGER)
    assert moved.launcher.describe(moved.instance)["disks"] == [
        {"name": "disk", "size": LARGER, "base": True}
    ]
    moved.start("resize")
    keys = both(moved, moved.secrets.defined[moved.instance])
    out = qemu_io(
        moved,
        *keys,
        "read -P 0x5a 1M 64k",
        f"read -P 0 {16 * MIB} 64M",
        f"write -P 0x77 {LARGER - MIB} 1M",
        f"read -P 0x77 {LARGER - MIB} 1M",
    )
    assert "Pattern verification failed" not in out
    fd = memfd(luks1.passphrase(keys[0]))
    checked = subprocess.run(
        [
            *("qemu-img", "check"),
            *("--object", f"secret,id=s0,file=/dev/fd/{fd}"),
            "--image-opts",
            "driver=qcow2,encrypt.format=luks,encrypt.key-secret=s0,"
            f"file.driver=file,file.filename={moved.disk},backing=",
        ],
        pass_fds=[fd],
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(fd)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    moved.launcher.started(moved.instance, True)
    moved.start("start")


def test_growing_asks_for_no_more(moved: World) -> None:
    arrive(moved, "resize")
    asked = len(moved.kms.requests)
    moved.launcher.resize(moved.instance, "disk", LARGER)
    moved.launcher.resize(moved.instance, "disk", 2 * LARGER)
    moved.start("resize")
    assert len(moved.kms.requests) == asked


@pytest.mark.parametrize(
    ("name", "size", "event"),
    [
        ("disk", 16 * MIB - 512, "agent.header.shrink"),
        ("disk", 16 * MIB + 1, "agent.header.size"),
        ("disk", (1 << 42) + 512, "agent.header.room"),
        ("disk", 1 << 49, "agent.resize.size"),
        ("disk.swap", LARGER, "agent.resize.disk"),
    ],
)
def test_not_grown(moved: World, name: str, size: int, event: str) -> None:
    arrive(moved)
    before = moved.disk.read_bytes()
    assert refused(moved.launcher.resize, moved.instance, name, size) == event
    assert moved.disk.read_bytes() == before


def test_not_under_a_running_guest(moved: World) -> None:
    """Whoever started it: QEMU's own locks tell."""
    arrive(moved)
    holder = subprocess.Popen(
        ["qemu-io", "-f", "raw", moved.disk],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        holder.stdin.write(b"read 0 512\n")
        holder.stdin.flush()
        # it has the file open once it answers
        holder.stdout.readline()
        event = refused(moved.launcher.resize, moved.instance, "disk", LARGER)
        assert event == "agent.resize.busy"
    finally:
        holder.communicate(b"quit\n", timeout=10)
    moved.launcher.resize(moved.instance, "disk", LARGER)


def test_not_before_the_key_came(moved: World) -> None:
    moved.launcher.prepare(moved.record(), "migrate-in", "")
    event = refused(moved.launcher.resize, moved.instance, "disk", LARGER)
    assert event == "agent.resize.not-made"


def test_a_header_that_was_changed_meanwhile(moved: World) -> None:
    arrive(moved)
    with moved.disk.open("r+b") as file:
        file.seek(60)
        file.write(struct.pack(">I", 1))
    event = refused(moved.launcher.resize, moved.instance, "disk", LARGER)
    assert event == "agent.header.snapshots"


def test_a_disk_that_was_unshelved(moved: World) -> None:
    """It has no base any more; one to be launched always has."""
    overlay, _base = both(moved, moved.keys)
    uuid_there = moved.kms.requests[0].disks[0].luks_uuid
    flat = DiskRecord("disk", 16 * MIB, uuid_there, False)
    moved.disk.unlink()
    moved.launcher.prepare(moved.record(disks=(flat,)), "launch", "")
    assert refused(moved.launcher.make, moved.instance, False) == (
        "agent.make.base"
    )
    assert not moved.disk.exists()
    moved.launcher.forget(moved.instance)
    moved.overlays.write(moved.instance, flat, Secret(overlay), None)
    # with a base it is another disk
    assert refused(
        moved.launcher.prepare, moved.record(), "migrate-in", ""
    ) == ("agent.header.backing")
    moved.launcher.prepare(moved.record(disks=(flat,)), "migrate-in", "")
    (disk,) = moved.launcher.make(moved.instance, False)
    assert (disk["base"], disk["base_secret"]) == (False, "")
    moved.launcher.resize(moved.instance, "disk", LARGER)
    assert moved.launcher.describe(moved.instance)["disks"] == [
        {"name": "disk", "size": LARGER, "base": False}
    ]
    moved.start("migrate-in", flattened(moved))
    assert list(moved.secrets.defined[moved.instance].values()) == [overlay]


def flattened(world: World) -> str:
    return re.sub(
        r"<backingStore.*</backingStore>",
        "<backingStore/>",
        world.xml(),
        flags=re.S,
    )


def test_a_blank_disk_is_only_for_a_guest_that_runs(moved: World) -> None:
    """One that was unshelved moves while it runs: its new disk is blank
    until libvirt says that the guest comes in, and nothing starts with it."""
    flat = DiskRecord("disk", 16 * MIB, str(uuid.uuid4()), False)
    moved.disk.unlink()
    before = moved.secrets.ever

    def awaited(purpose: str) -> None:
        event = refused(
            moved.launcher.start, moved.instance, flattened(moved), purpose
        )
        assert event == "agent.start.awaited"
        assert moved.secrets.ever == before

    moved.launcher.prepare(moved.record(disks=(flat,)), "migrate-in", "")
    (disk,) = moved.launcher.make(moved.instance, False)
    assert (disk["base"], disk["base_secret"]) == (False, "")
    # a cold move whose disk never came, too
    for purpose in ("migrate-in", "start", "launch"):
        awaited(purpose)
    assert refused(moved.launcher.ask_start, moved.instance) == (
        "agent.start.awaited"
    )
    # nor when it is prepared for something else, now that it is there
    for purpose in ("start", "migrate-in"):
        moved.launcher.prepare(moved.record(disks=(flat,)), purpose, "")
        moved.launcher.make(moved.instance, False)
        awaited(purpose)
    assert moved.launcher.unfinished() == ([moved.instance], [])
    moved.launcher.migrate_in(moved.instance, flattened(moved))
    moved.launcher.started(moved.instance, True)
    # it has come, and starts like any other
    moved.start("start", flattened(moved))
    assert len(moved.secrets.defined[moved.instance]) == 1


@pytest.mark.parametrize("purpose", ["migrate-in", "resize"])
def test_an_unshelved_one_with_swap(moved: World, purpose: str) -> None:
    """nova does not copy swap: that is made, and the guest starts."""
    overlay, _base = both(moved, moved.keys)
    uuid_there = moved.kms.requests[0].disks[0].luks_uuid
    flat = DiskRecord("disk", 16 * MIB, uuid_there, False)
    swap = DiskRecord("disk.swap", MIB, str(uuid.uuid4()), False)
    moved.disk.unlink()
    moved.overlays.write(moved.instance, flat, Secret(overlay), None)
    moved.launcher.prepare(moved.record(disks=(flat, swap)), purpose, "")
    assert moved.launcher.unfinished() == ([], [])
    moved.launcher.make(moved.instance, False)
    assert (moved.disk.parent / "disk.swap").exists()
    moved.launcher._not_awaited(moved.instance)


def test_a_disk_that_came_in_the_place_of_a_blank_one(moved: World) -> None:
    """A live move that nobody ended, and then a cold one."""
    overlay, _base = both(moved, moved.keys)
    uuid_there = moved.kms.requests[0].disks[0].luks_uuid
    blank, flat = (
        DiskRecord("disk", 16 * MIB, one, False)
        for one in (str(uuid.uuid4()), uuid_there)
    )
    moved.disk.unlink()
    moved.launcher.prepare(moved.record(disks=(blank,)), "migrate-in", "")
    moved.launcher.make(moved.instance, False)
    moved.disk.unlink()
    moved.overlays.write(moved.instance, flat, Secret(overlay), None)
    moved.launcher.prepare(moved.record(disks=(flat,)), "migrate-in", "")
    moved.launcher.make(moved.instance, False)
    moved.start("migrate-in", flattened(moved))
    assert list(moved.secrets.defined[moved.instance].values()) == [overlay]


def test_describe(world: World) -> None:
    """Public facts, and the sizes of what is there."""
    assert refused(world.launcher.describe, world.instance) == (
        "agent.record.unknown"
    )
    world.make()
    described = world.launcher.describe(world.instance)
    assert described == {
        "image": world.tenant.image,
        "key_url": world.kms.url,
        "key_id": world.record().key_id,
        "manifest": world.tenant.manifest,
        "compat": False,
        "disks": [{"name": "disk", "size": 16 * MIB, "base": True}],
    }


def test_the_disk_of_before_comes_back(moved: World) -> None:
    """A resize on one host, reverted: the record follows the file."""
    before = moved.disk.read_bytes()
    arrive(moved, "resize")
    moved.launcher.resize(moved.instance, "disk", LARGER)
    moved.start("resize")
    moved.launcher.started(moved.instance, True)
    moved.disk.unlink()
    moved.disk.write_bytes(before)
    assert refused(moved.start, "start") == "agent.header.virtual-size"
    disks = moved.launcher.describe(moved.instance)["disks"]
    assert disks == [{"name": "disk", "size": 16 * MIB, "base": True}]
    record = moved.record(
        disks=(DiskRecord("disk", disks[0]["size"], str(uuid.uuid4()), True),)
    )
    moved.launcher.prepare(record, "start", "")
    moved.launcher.make(moved.instance, False)
    moved.start("start")


def test_by_the_socket(moved: World) -> None:
    """The verbs as the hook speaks them."""
    arrive(moved)
    context = Context(moved.launcher, moved.guard, None)  # type: ignore[arg-type]
    instance = moved.instance

    def ask(verb: str, **members: object) -> dict[str, object]:
        return dispatch(
            context, {"verb": verb, "instance": instance, **members}
        )

    assert ask("resize", disk="disk", size=LARGER) == {}
    assert ask("describe")["disks"] == [
        {"name": "disk", "size": LARGER, "base": True}
    ]
    assert ask("arrived") == {}
    assert refused(ask, "resize", disk="../disk", size=LARGER) == (
        "agent.verb.resize"
    )
    assert refused(ask, "resize", disk="disk", size=0) == "agent.verb.resize"
    assert refused(ask, "describe", more=1) == "agent.verb.describe"
