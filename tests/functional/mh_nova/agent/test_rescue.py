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
"""Rescue: another image, with a key of its own, beside the own disk."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mh_core import config_drive, manifest
from mh_core.errors import Denied
from mh_core.launch_policy import LaunchPolicy
from mh_core.secret import Secret
from mh_nova.agent.overlay import BaseFile, secret_uuid
from mh_nova.agent.paths import PART, base_name
from mh_nova.agent.store import DiskRecord
from tests.functional.mh_nova.agent.test_disks import files, refused
from tests.functional.mh_nova.agent.world import MIB, Kms, Tenant, World

POLICY = LaunchPolicy(config_drives=(config_drive.ANY,))


class RescueWorld(World):
    """With a second image: of the same tenant, unless told otherwise."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, launch_policy=POLICY)
        other = folder / "other"
        other.mkdir()
        self.other = Tenant(
            other, launch_policy=POLICY, signing=self.tenant.signing
        )
        self.other_kms = Kms(self.authority, self.other, self.enroller)
        self.conf.set_override(
            "kms_origins",
            [self.kms.origin, self.other_kms.origin],
            group="agent",
        )
        self.halt()
        self.boot()

    def stop(self) -> None:
        super().stop()
        self.other_kms.stop()

    def run(self) -> None:
        """An ordinary guest that runs."""
        self.make()
        self.start()
        self.launcher.started(self.instance, True)

    def governed(self) -> None:
        """The guest's lease is the one that its own key server holds."""
        lease = self.leases.of(self.instance)
        assert lease is not None
        assert lease.origin == self.kms.origin
        assert lease.lease == self.kms.held[self.instance]
        assert (lease.seconds, bool(lease.ends)) == (600, True)

    @property
    def rescue_disk(self) -> Path:
        return self.disk.with_name("disk.rescue")

    def prepare_rescue(
        self, own: bool = False, *more: DiskRecord, **changes: Any
    ) -> None:
        tenant, kms = (
            (self.tenant, self.kms) if own else (self.other, self.other_kms)
        )
        disk = DiskRecord(
            "disk.rescue", tenant.virtual_size, str(uuid.uuid4()), True
        )
        record = self.record(
            image=tenant.image,
            key_url=kms.url,
            manifest=tenant.manifest,
            disks=(disk, *more),
            **changes,
        )
        self.launcher.prepare_rescue(record, "")

    def make_rescue(self, own: bool = False, *more: DiskRecord) -> Any:
        self.prepare_rescue(own, *more)
        tenant = self.tenant if own else self.other
        base = self.base.with_name(base_name(tenant.image))
        there = base.exists()
        if not there:
            base.with_name(base.name + PART).write_bytes(tenant.data)
        return self.launcher.make_rescue(self.instance, not there)

    def rescue_xml(self, own: bool = False, more: str = "") -> str:
        """As nova's legacy rescue: the rescue disk first, then the own."""
        image = self.tenant.image if own else self.other.image
        disk = (
            '<disk type="file" device="disk"><driver name="qemu" '
            f'type="qcow2"/><source file="{self.rescue_disk}">{{}}</source>'
            '<backingStore type="file"><format type="qcow2"/>'
            f'<source file="{self.root.base(image)}">{{}}</source>'
            '<backingStore/></backingStore><target dev="vda" bus="virtio"/>'
            "</disk>"
        ).format(*(self.encryption(layer) for layer in ("overlay", "base")))
        return self.first(disk).replace("</devices>", more + "</devices>")

    def first(self, disk: str) -> str:
        """The domain with a disk before its own."""
        return (
            self.xml()
            .replace('dev="vda"', 'dev="vdb"')
            .replace("<disk ", disk + "<disk ", 1)
        )

    def encryption(self, layer: str, name: str = "disk.rescue") -> str:
        secret = secret_uuid(self.instance, name, layer)
        return (
            '<encryption format="luks" engine="qemu"><secret '
            f'type="passphrase" uuid="{secret}"/></encryption>'
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RescueWorld]:
    world = RescueWorld(tmp_path)
    yield world
    world.stop()


@pytest.mark.parametrize("own", [True, False])
def test_rescue_and_back(world: RescueWorld, own: bool) -> None:
    world.run()
    disk = world.disk.read_bytes()
    (made,) = world.make_rescue(own)
    assert made["name"] == "disk.rescue"
    assert made["base"]
    names = [one["name"] for one in world.launcher.disks(world.instance)]
    assert names == ["disk", "disk.rescue"]
    world.start("rescue", world.rescue_xml(own))
    keys = world.secrets.defined[world.instance]
    wanted = {
        secret_uuid(world.instance, name, layer)
        for name in ("disk", "disk.rescue")
        for layer in ("overlay", "base")
    }
    assert set(keys) == wanted
    # two overlay keys, and a DEK for each image
    assert len(set(keys.values())) == (3 if own else 4)
    base = secret_uuid(world.instance, "disk.rescue", "base")
    assert keys[base] == (world.tenant if own else world.other).dek
    purposes = [one.purpose for one in world.kms.requests]
    assert purposes == (["launch"] + ["rescue"] * (2 if own else 1))
    world.launcher.started(world.instance, True)
    assert not world.secrets.defined
    # unrescue
    world.start("start")
    world.launcher.started(world.instance, True)
    names = [one["name"] for one in world.launcher.disks(world.instance)]
    assert names == ["disk"]
    assert world.disk.read_bytes() == disk


@pytest.mark.parametrize("own", [True, False])
def test_the_lease_of_a_rescue_and_back(world: RescueWorld, own: bool) -> None:
    """Its own key's at every moment; the other's says nothing about it."""
    world.kms.lease = 600
    world.run()
    world.governed()
    first = world.leases.of(world.instance)
    world.prepare_rescue(own)
    world.governed()
    assert world.leases.of(world.instance) == first
    world.make_rescue(own)
    world.governed()
    world.start("rescue", world.rescue_xml(own))
    world.governed()
    world.launcher.started(world.instance, True)
    world.governed()
    world.start("start")
    world.launcher.started(world.instance, True)
    world.governed()
    assert world.instance not in world.other_kms.held


def test_a_rescue_that_finds_no_room_leaves_the_lease(
    world: RescueWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused after both keys, while the guest still runs."""
    world.kms.lease = 600
    world.run()

    def full(*_args: Any) -> None:
        raise Denied("agent.overlay.write", "no space")

    monkeypatch.setattr(world.overlays, "write", full)
    assert refused(world.make_rescue) == "agent.overlay.write"
    monkeypatch.undo()
    untouched(world)


def test_after_a_restart_of_the_agent(world: RescueWorld) -> None:
    world.run()
    world.make_rescue()
    world.halt()
    world.boot()
    world.start("rescue", world.rescue_xml())
    assert len(world.secrets.defined[world.instance]) == 4


def test_the_report_names_the_rescue_image(world: RescueWorld) -> None:
    world.run()
    world.make_rescue()
    world.start("rescue", world.rescue_xml())
    attempt = world.launcher._attempts.get(world.instance)
    assert attempt is not None
    assert attempt.measured is not None
    assert attempt.measured.verdicts["rescue"] == manifest.digest(
        world.other.manifest
    )


def untouched(world: RescueWorld) -> None:
    """Nothing of the rescue is there, and the instance starts."""
    if world.kms.lease:
        world.governed()
    assert not world.rescue_disk.exists()
    assert not world.secrets.defined
    assert len(world.launcher.disks(world.instance)) == 1
    world.start("start")
    world.launcher.started(world.instance, True)


def test_an_image_that_a_stranger_signed(tmp_path: Path) -> None:
    """Say, the operator's: encrypted, and measured, and not the tenant's."""
    world = RescueWorld(tmp_path)
    try:
        folder = tmp_path / "stranger"
        folder.mkdir()
        world.other = world.other_kms.tenant = Tenant(
            folder, launch_policy=POLICY
        )
        world.kms.lease = 600
        world.run()
        assert refused(world.make_rescue) == "agent.rescue.stranger"
        assert world.events()[-1] == "agent.rescue.stranger"
        untouched(world)
    finally:
        world.stop()


def test_a_release_policy_without_rescue(world: RescueWorld) -> None:
    world.kms.lease = 600
    world.run()
    world.kms.reply = lambda path: world.kms.error(403, "kms.release.purpose")
    assert refused(world.make_rescue) == "agent.kms.refused"
    world.kms.reply = lambda path: None
    untouched(world)


def test_a_rescue_image_whose_key_is_refused(world: RescueWorld) -> None:
    world.kms.lease = 600
    world.run()
    world.other_kms.reply = lambda path: world.kms.error(
        403, "kms.release.project"
    )
    assert refused(world.make_rescue) == "agent.kms.refused"
    untouched(world)


def test_a_rescue_image_that_is_not_its_manifests(world: RescueWorld) -> None:
    world.kms.lease = 600
    world.run()
    world.prepare_rescue()
    part = world.base.with_name(base_name(world.other.image) + PART)
    part.write_bytes(world.other.data + b"x")
    assert (
        refused(world.launcher.make_rescue, world.instance, True)
        == "agent.measure.size"
    )
    assert not part.exists()
    untouched(world)


@pytest.mark.parametrize(
    ("case", "event"),
    [
        ("without-rescue-disk", "agent.admit.root-disk"),
        ("booting-the-own-disk", "agent.admit.boot"),
        ("plain-rescue-disk", "agent.admit.disk"),
        ("not-prepared", "agent.record.unknown"),
        ("rescue-disk-of-another-key", "agent.header.uuid"),
    ],
)
def test_a_start_that_is_refused(
    world: RescueWorld, case: str, event: str
) -> None:
    world.run()
    text = world.rescue_xml()
    if case != "not-prepared":
        world.make_rescue()
    if case == "without-rescue-disk":
        text = world.xml()
    elif case == "booting-the-own-disk":
        # libvirt's order, not that of the XML
        text = text.replace("vda", "vdc")
    elif case == "plain-rescue-disk":
        text = text.replace(world.encryption("overlay"), "")
    elif case == "rescue-disk-of-another-key":
        other = world.rescue_disk
        other.unlink()
        world.overlays.write(
            world.instance,
            DiskRecord("disk.rescue", 8 * MIB, str(uuid.uuid4()), True),
            Secret(bytes(range(32))),
            BaseFile(world.root.base(world.other.image)),
        )
    before = world.secrets.ever
    assert refused(world.start, "rescue", text) == event
    assert world.secrets.ever == before
    # the ordinary start is still there
    world.start("start")


@pytest.mark.parametrize("how", ["prepared", "made", "plain"])
def test_a_rescue_that_nova_gave_up(world: RescueWorld, how: str) -> None:
    """Before its start: nothing of it is under way, and nothing waits."""
    world.kms.lease = 600
    world.run()
    if how == "prepared":
        world.prepare_rescue()
    elif how == "made":
        world.make_rescue()
    else:
        world.launcher.allow_plain(world.instance)
    world.launcher.end_rescue(world.instance)
    # neither would an attachment find it busy, nor a restart an image
    assert world.launcher._attempts.get(world.instance) is None
    assert world.launcher._side.attempts.get(world.instance) is None
    assert refused(world.start, "rescue", world.rescue_xml()) == (
        "agent.record.unknown"
    )
    # nova removes it, at every end
    world.rescue_disk.unlink(missing_ok=True)
    untouched(world)


def test_the_end_of_a_rescue_ends_no_other_start(world: RescueWorld) -> None:
    world.run()
    world.start("start")
    world.launcher.end_rescue(world.instance)
    assert world.secrets.defined[world.instance]
    world.launcher.started(world.instance, True)
    assert world.events()[-1] != "agent.launch.unknown"


def test_another_projects_instance(world: RescueWorld) -> None:
    world.run()
    assert (
        refused(lambda: world.prepare_rescue(project="q" * 32))
        == "agent.rescue.project"
    )
    assert (
        refused(lambda: world.prepare_rescue(instance=str(uuid.uuid4())))
        == "agent.record.unknown"
    )


def test_a_disk_in_the_clear_where_the_policy_allows_it(
    world: RescueWorld,
) -> None:
    world.kms.lease = 600
    world.run()
    world.launcher.allow_plain(world.instance)
    assert world.kms.requests[-1].purpose == "rescue-plain"
    world.governed()
    disk = (
        '<disk type="file" device="disk"><driver name="qemu" type="qcow2"/>'
        f'<source file="{world.rescue_disk}"/>'
        '<target dev="vda" bus="virtio"/></disk>'
    )
    text = world.first(disk)
    # no other purpose lets it in
    for purpose in ("start", "rescue"):
        assert refused(world.start, purpose, text) in (
            "agent.admit.foreign-disk",
            "agent.record.unknown",
        )
    world.start("rescue-plain", text)
    assert len(world.secrets.defined[world.instance]) == 2
    world.governed()
    world.launcher.started(world.instance, True)
    world.kms.reply = lambda path: world.kms.error(403, "kms.release.purpose")
    assert refused(world.launcher.allow_plain, world.instance) == (
        "agent.kms.refused"
    )
    assert refused(world.start, "rescue-plain", text) == "agent.kms.refused"
    world.governed()


def test_a_rescue_gets_a_config_drive_of_its_own(world: RescueWorld) -> None:
    world.run()
    drive = DiskRecord("disk.config.rescue", 0, str(uuid.uuid4()), False)
    world.make_rescue(False, drive)
    path = world.disk.with_name(drive.name)
    text = world.rescue_xml(
        more='<disk type="file" device="cdrom"><driver name="qemu" '
        f'type="qcow2"/><source file="{path}">'
        + world.encryption("overlay", drive.name)
        + '</source><backingStore/><target dev="sda" bus="sata"/></disk>'
    )
    world.start("rescue", text)
    given = {
        path: data
        for path, data in files(world).items()
        # the policies of these images list none
        if "user" not in path
    }
    world.launcher.drive(world.instance, drive.name, given)
    assert path.exists()
    assert world.events()[-1] == "agent.launch.drive"
