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
"""Swap, ephemeral disks and config drives, judged by qemu and blkid."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mh_core import config_drive
from mh_core.errors import MHError
from mh_core.image import luks1
from mh_core.launch_policy import LaunchPolicy
from mh_nova.agent.overlay import secret_uuid
from mh_nova.agent.store import DiskRecord
from tests.functional.mh_nova.agent.world import MIB, World

USER_DATA = b"#cloud-config\nruncmd: [echo configured-by-the-tenant]\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHRlbmFudA tenant"
FOREIGN = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGNsb3Vk cloud"
PINNED = config_drive.pinned_digest(USER_DATA, [KEY])
SEED = "c2VlZC1vbmx5LW9uLXRoZS1jb25maWctZHJpdmU="


def policy(*drives: str) -> LaunchPolicy:
    return LaunchPolicy(
        config_drives=drives,
        user_data=(config_drive.user_data_digest(USER_DATA),),
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, launch_policy=policy(PINNED))
    yield world
    world.stop()


def disks(*more: tuple[str, int]) -> tuple[DiskRecord, ...]:
    return (
        DiskRecord("disk", 16 * MIB, str(uuid.uuid4()), True),
        *(
            DiskRecord(name, size, str(uuid.uuid4()), False)
            for name, size in more
        ),
    )


DRIVE = ("disk.config", 0)


def xml(world: World, *names: str) -> str:
    """With more disks, as the hook's ``GuestDisk`` writes them."""
    more = "".join(
        '<disk type="file" device="{}"><driver name="qemu" type="qcow2"/>'
        '<source file="{}"><encryption format="luks" engine="qemu"><secret '
        'type="passphrase" uuid="{}"/></encryption></source><backingStore/>'
        '<target dev="sd{}" bus="sata"/></disk>'.format(
            "cdrom" if "config" in name else "disk",
            world.disk.with_name(name),
            secret_uuid(world.instance, name, "overlay"),
            chr(ord("a") + number),
        )
        for number, name in enumerate(names)
    )
    return world.xml().replace("</devices>", more + "</devices>")


def content(world: World, name: str) -> bytes:
    """What the guest reads: opened by qemu-img with libvirt's secret."""
    key = world.secrets.defined[world.instance][
        secret_uuid(world.instance, name, "overlay")
    ]
    fd = os.memfd_create("key")
    os.write(fd, luks1.passphrase(key))
    os.lseek(fd, 0, os.SEEK_SET)
    out = world.folder / "content.raw"
    subprocess.run(
        [
            *("qemu-img", "convert", "-O", "raw"),
            *("--object", f"secret,id=s,file=/dev/fd/{fd}", "--image-opts"),
            "driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,"
            f"file.driver=file,file.filename={world.disk.with_name(name)}",
            str(out),
        ],
        pass_fds=[fd],
        check=True,
        capture_output=True,
    )
    os.close(fd)
    data = out.read_bytes()
    out.unlink()
    return data


def refused(call: Any, *args: Any) -> str:
    with pytest.raises(MHError) as caught:
        call(*args)
    return caught.value.event


def files(world: World, **changes: Any) -> dict[str, bytes]:
    """As nova's ``metadata_for_config_drive``, shortened."""
    metadata = {
        "uuid": world.instance,
        "hostname": "vm.example",
        "name": "vm",
        "launch_index": 0,
        "availability_zone": "nova",
        "random_seed": SEED,
        "project_id": "p",
        "devices": [],
        "dedicated_cpus": [],
        "meta": {"role": "web", "mh_ticket": "T" * 43},
        "public_keys": {"mine": KEY},
        "keys": [{"name": "mine", "type": "ssh", "data": KEY}],
        "admin_pass": "set-by-the-cloud",
        **changes,
    }
    made = {}
    for version in ("2012-08-10", "latest"):
        folder = f"openstack/{version}/"
        made |= {
            folder + "meta_data.json": json.dumps(metadata).encode(),
            folder + "user_data": USER_DATA,
            folder + "network_data.json": b'{"links": []}',
            folder + "vendor_data.json": b'{"cloud-init": "#!/bin/evil"}',
        }
    made["ec2/latest/user-data"] = USER_DATA
    made["ec2/latest/meta-data.json"] = b'{"hostname": "vm"}'
    return made


def on_iso(image: bytes, folder: Path) -> dict[str, bytes]:
    """What is on a drive, read by isoinfo through Rock Ridge."""
    path = folder / "drive.iso"
    path.write_bytes(image)

    def isoinfo(*words: str) -> bytes:
        return subprocess.run(
            ["isoinfo", "-R", "-i", str(path), *words],
            check=True,
            capture_output=True,
        ).stdout

    names = [
        line.strip("/")
        for line in isoinfo("-f").decode().splitlines()
        if "." in line or "user" in line
    ]
    found = {name: isoinfo("-x", "/" + name) for name in names}
    label = subprocess.run(
        ["blkid", "-p", "-s", "LABEL", "-o", "value", str(path)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert label == "config-2"
    path.unlink()
    return found


# -- swap and ephemeral ------------------------------------------------------


def test_swap_and_ephemeral_disks_have_keys_of_their_own(world: World) -> None:
    more = disks(("disk.eph0", 32 * MIB), ("disk.swap", 16 * MIB))
    made = world.make(disks=more)
    assert [one["name"] for one in made] == ["disk", "disk.eph0", "disk.swap"]
    assert [one["base"] for one in made] == [True, False, False]
    world.start(xml=xml(world, "disk.eph0", "disk.swap"))
    keys = world.secrets.defined[world.instance]
    assert len(keys) == 4
    assert len(set(keys.values())) == 4
    assert [one.name for one in world.kms.requests[-1].disks] == [
        "disk",
        "disk.eph0",
        "disk.swap",
    ]
    assert content(world, "disk.eph0") == bytes(32 * MIB)
    swap = content(world, "disk.swap")
    (world.folder / "swap").write_bytes(swap)
    kind = subprocess.run(
        ["blkid", "-p", str(world.folder / "swap")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert 'TYPE="swap"' in kind
    assert b"SWAPSPACE2" not in world.disk.with_name("disk.swap").read_bytes()


def test_they_are_the_same_at_the_next_start(world: World) -> None:
    more = disks(("disk.swap", 16 * MIB))
    world.make(disks=more)
    machine = xml(world, "disk.swap")
    world.start(xml=machine)
    first = dict(world.secrets.defined[world.instance])
    before = world.disk.with_name("disk.swap").read_bytes()
    world.launcher.started(world.instance, True)
    world.halt()
    world.boot()
    world.start("start", machine)
    assert world.secrets.defined[world.instance] == first
    assert world.disk.with_name("disk.swap").read_bytes() == before


@pytest.mark.parametrize("name", ["disk.swap", "disk.eph0"])
def test_a_disk_in_the_clear_does_not_start(world: World, name: str) -> None:
    world.make(disks=disks((name, 16 * MIB)))
    path = world.disk.with_name(name)
    path.unlink()
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(path), "16M"],
        check=True,
    )
    machine = xml(world, name)
    assert refused(world.start, "launch", machine).startswith("agent.header.")
    assert world.secrets.ever == 0


def test_a_swap_that_is_gone_does_not_start(world: World) -> None:
    world.make(disks=disks(("disk.swap", 16 * MIB)))
    world.disk.with_name("disk.swap").unlink()
    machine = xml(world, "disk.swap")
    assert refused(world.start, "launch", machine) == "agent.overlay.missing"


# -- config drive ------------------------------------------------------------


def started(world: World) -> None:
    world.make(disks=disks(DRIVE))
    world.start(xml=xml(world, "disk.config"))


def test_a_pinned_config_drive(world: World) -> None:
    started(world)
    path = world.disk.with_name("disk.config")
    assert not path.exists()
    world.launcher.drive(world.instance, "disk.config", files(world))
    # nothing of it in the clear
    for part in (USER_DATA, SEED.encode(), b"config-2", b"meta_data"):
        assert part not in path.read_bytes()
    found = on_iso(content(world, "disk.config"), world.folder)
    assert sorted(found) == sorted(
        f"openstack/{version}/{name}"
        for version in ("2012-08-10", "latest")
        for name in ("meta_data.json", "network_data.json", "user_data")
    )
    assert found["openstack/latest/user_data"] == USER_DATA
    metadata = json.loads(found["openstack/latest/meta_data.json"])
    assert metadata["public_keys"] == {"mine": KEY}
    assert metadata["random_seed"] == SEED
    assert metadata["meta"] == {"role": "web"}
    assert "admin_pass" not in metadata
    world.launcher.started(world.instance, True)
    assert world.events()[-2:] == [
        "agent.launch.drive",
        "agent.launch.started",
    ]


def test_the_drive_is_the_same_at_the_next_start(world: World) -> None:
    started(world)
    world.launcher.drive(world.instance, "disk.config", files(world))
    world.launcher.started(world.instance, True)
    world.halt()
    world.boot()
    machine = xml(world, "disk.config")
    world.start("start", machine)
    assert USER_DATA in content(world, "disk.config")
    world.launcher.started(world.instance, True)
    # not what was written: rearranged by somebody without the key
    path = world.disk.with_name("disk.config")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert refused(world.start, "start", machine) == "agent.overlay.changed"


def test_any_config_drive(world: World) -> None:
    world.tenant.launch_policy = policy(config_drive.ANY)
    world.tenant.manifest = world.tenant.describe().sign(world.tenant.signing)
    started(world)
    given = files(world, files=[{"path": "/etc/motd"}])
    given["openstack/content/0000"] = b"motd"
    world.launcher.drive(world.instance, "disk.config", given)
    found = on_iso(content(world, "disk.config"), world.folder)
    assert found.items() <= given.items()
    assert b"set-by-the-cloud" in found["openstack/latest/meta_data.json"]


def test_refused_before_anything_is_made(world: World) -> None:
    world.tenant.launch_policy = LaunchPolicy()
    world.tenant.manifest = world.tenant.describe().sign(world.tenant.signing)
    world.prepare(disks=disks(DRIVE))
    world.download()
    assert refused(world.launcher.make, world.instance, True) == (
        "agent.config-drive.policy"
    )
    assert not world.disk.exists()


@pytest.mark.parametrize(
    ("changes", "more", "event"),
    [
        ({"public_keys": {"x": FOREIGN}}, {}, "pinned"),
        (
            {"keys": [{"name": "x", "type": "ssh", "data": FOREIGN}]},
            {},
            "pinned",
        ),
        ({"public_keys": {}, "keys": []}, {}, "pinned"),
        ({"uuid": str(uuid.uuid4())}, {}, "content"),
        ({"files": [{"path": "/etc/shadow"}]}, {}, "content"),
        ({}, {"openstack/content/0000": b"x"}, "content"),
        ({"keys": [{"data": KEY}]}, {}, "content"),
        ({"public_keys": {"x": 1}}, {}, "content"),
        ({}, {"openstack/latest/meta_data.json": b"[]"}, "content"),
        ({}, {"openstack/latest/meta_data.json": b"{"}, "content"),
        ({}, {"openstack/latest/user_data": b"#!/bin/evil"}, "user-data"),
        ({}, {"ec2/latest/user-data": b"#!/bin/evil"}, "user-data"),
        ({}, {"../../etc/shadow": b"x"}, "files"),
        ({}, {"openstack/latest": b"x"}, "files"),
        ({}, {"autorun.inf": b"x"}, "files"),
        ({}, {f"openstack/v{i}/x": b"" for i in range(300)}, "files"),
    ],
)
def test_a_config_drive_that_is_refused(
    world: World,
    changes: dict[str, Any],
    more: dict[str, bytes],
    event: str,
) -> None:
    started(world)
    given = files(world, **changes) | more
    found = refused(world.launcher.drive, world.instance, "disk.config", given)
    assert found == f"agent.config-drive.{event}"
    assert not world.disk.with_name("disk.config").exists()
    assert world.events()[-1] == found


def test_both_policies_must_list_it(world: World) -> None:
    """The release pins nothing, the manifest does: the manifest counts."""
    world.tenant.launch_policy = policy(config_drive.ANY)
    started(world)
    found = refused(
        world.launcher.drive,
        world.instance,
        "disk.config",
        files(world, public_keys={"x": FOREIGN}),
    )
    assert found == "agent.config-drive.pinned"


def test_only_within_a_start(world: World) -> None:
    def drive() -> str:
        return refused(
            world.launcher.drive, world.instance, "disk.config", files(world)
        )

    assert drive() == "agent.drive.no-start"
    world.make(disks=disks(DRIVE))
    assert drive() == "agent.drive.no-start"
    world.start(xml=xml(world, "disk.config"))
    world.launcher.started(world.instance, True)
    assert drive() == "agent.drive.no-start"


def test_it_is_written_once(world: World) -> None:
    started(world)
    given = files(world)
    world.launcher.drive(world.instance, "disk.config", given)
    assert (
        refused(world.launcher.drive, world.instance, "disk.config", given)
        == "agent.overlay.exists"
    )


def test_a_base_fetched_again_forgets_no_digest(world: World) -> None:
    started(world)
    world.launcher.drive(world.instance, "disk.config", files(world))
    world.launcher.started(world.instance, True)
    before = world.store.instance(world.instance)
    world.launcher.prepare(
        world.record(
            disks=disks(("disk.config", before.disks[1].size)),
        ),
        "start",
        "",
    )
    assert world.store.instance(world.instance).disks == before.disks


# -- a config drive that moves -----------------------------------------------


@pytest.fixture
def size(world: World) -> int:
    """Of a drive that was written on another host: this one never heard of
    it, and the file is there."""
    started(world)
    world.launcher.drive(world.instance, "disk.config", files(world))
    world.launcher.started(world.instance, True)
    made = world.store.instance(world.instance).disks[1].size
    world.launcher.forget(world.instance)
    return made


def come(world: World, size: int, live: bool = True) -> None:
    """As the hook of a destination; with a live guest, the drive is all
    there is."""
    if live:
        world.disk.unlink(missing_ok=True)
    record = world.record(disks=disks(("disk.config", size)))
    world.launcher.prepare(record, "migrate-in", "")
    world.launcher.make(world.instance, False)


def test_a_drive_comes_with_a_guest_that_runs(world: World, size: int) -> None:
    """As it was, under the key it has; the root disk gets a new one."""
    path = world.disk.with_name("disk.config")
    before, old = path.read_bytes(), world.kms.requests[-1].disks
    come(world, size)
    request = world.kms.requests[-1]
    assert request.purpose == "migrate-in"
    assert [disk.name for disk in request.disks] == ["disk", "disk.config"]
    assert request.disks[1] == old[1]
    assert request.disks[0].luks_uuid != old[0].luks_uuid
    assert world.launcher.unfinished() == ([world.instance], [])
    # no secret before libvirt itself asks
    assert not world.secrets.defined
    world.launcher.migrate_in(world.instance, xml(world, "disk.config"))
    assert USER_DATA in content(world, "disk.config")
    assert path.read_bytes() == before
    world.launcher.started(world.instance, True)
    assert not world.secrets.defined
    # and it is held to that from now on
    world.start("start", xml(world, "disk.config"))
    world.launcher.started(world.instance, True)
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    machine = xml(world, "disk.config")
    assert refused(world.start, "start", machine) == "agent.overlay.changed"


def test_a_drive_that_was_changed_after_it_came(
    world: World, size: int
) -> None:
    come(world, size)
    path = world.disk.with_name("disk.config")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    defined = world.secrets.ever
    assert (
        refused(
            world.launcher.migrate_in,
            world.instance,
            xml(world, "disk.config"),
        )
        == "agent.overlay.changed"
    )
    assert world.secrets.ever == defined


def _missing(world: World, path: Path) -> str:
    path.unlink()
    return "agent.config-drive.missing"


def _in_the_clear(world: World, path: Path) -> str:
    path.unlink()
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(path), "2M"],
        check=True,
    )
    return "agent.header."


def _over_a_file(world: World, path: Path) -> str:
    """A backing file in the header: /etc/shadow for the guest to read."""
    data = bytearray(path.read_bytes())
    name = b"/etc/shadow"
    data[0x200 : 0x200 + len(name)] = name
    data[8:20] = (0x200).to_bytes(8, "big") + len(name).to_bytes(4, "big")
    path.write_bytes(data)
    return "agent.header."


def _of_another_key(world: World, path: Path) -> str:
    world.tenant.root = os.urandom(32)
    return "agent.header.passphrase"


def _a_link(world: World, path: Path) -> str:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))
    return "agent.path.link"


@pytest.mark.parametrize(
    "change",
    [_missing, _in_the_clear, _over_a_file, _of_another_key, _a_link],
)
@pytest.mark.parametrize("live", [True, False])
def test_another_file_in_its_place(
    world: World, size: int, change: Any, live: bool
) -> None:
    event = change(world, world.disk.with_name("disk.config"))
    defined = world.secrets.ever
    assert refused(come, world, size, live).startswith(event)
    assert world.secrets.ever == defined


def test_a_drive_that_comes_is_not_to_be_made(world: World, size: int) -> None:
    """Of no size, it would be one that the start makes: not looked at."""
    assert refused(come, world, 0) == "agent.header.virtual-size"
    assert refused(come, world, size + 512) == "agent.header.virtual-size"
    world.disk.with_name("disk.config").unlink()
    assert refused(come, world, 0) == "agent.config-drive.missing"


def test_a_policy_that_allows_no_drive_any_more(
    world: World, size: int
) -> None:
    world.tenant.launch_policy = LaunchPolicy()
    assert refused(come, world, size) == "agent.config-drive.policy"
    assert not world.disk.exists()


def test_after_a_cold_move_it_stays_what_it_is(
    world: World, size: int
) -> None:
    come(world, size, live=False)
    world.launcher.arrived(world.instance)
    machine = xml(world, "disk.config")
    world.start("start", machine)
    world.launcher.started(world.instance, True)
    path = world.disk.with_name("disk.config")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert refused(world.start, "start", machine) == "agent.overlay.changed"
