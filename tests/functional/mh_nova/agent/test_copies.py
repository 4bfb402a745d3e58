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
"""Snapshots of guests that are off, and flattening: real files and tools.

A running guest needs a real QEMU below a real libvirt: tests/e2e has it.
"""

import os
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest

from mh_core import jose
from mh_core import manifest as manifests
from mh_core.encoding import canonical_json, parse_json
from mh_core.errors import MHError
from mh_core.image import luks1, qcow2
from mh_core.launch_policy import LaunchPolicy
from mh_core.manifest import Manifest
from mh_core.payload import ReleasePayload
from mh_core.secret import Secret
from mh_core.snapshot import SnapshotClaims, jwe_digest, key_apv
from mh_nova.agent import tool
from mh_nova.agent.tool import Layer
from tests.functional.mh_nova.agent.test_formats import encrypted, sign
from tests.functional.mh_nova.agent.test_launch import qemu_io
from tests.functional.mh_nova.agent.world import KEY_ID, MIB, World

ALLOWED = LaunchPolicy(snapshots=True)
AUDIT = "5d0f3c6a-0000-4000-8000-000000000000#7"


class NoGuests:
    """libvirt, on a host where no guest is defined."""

    def connection(self) -> Any:
        return self

    def lookupByUUIDString(self, _instance: str) -> Any:  # noqa: N802
        error = libvirt.libvirtError("no domain")
        error.err = (libvirt.VIR_ERR_NO_DOMAIN, 10, "no domain") + (None,) * 6
        raise error

    def domain_xml(self, _instance: str) -> None:
        return None

    def saved_xml(self, _instance: str) -> None:
        return None


class Registry:
    """What the key server is sent of snapshots; it believes all of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sent: list[dict[str, Any]] = []
        self.fail = 0
        answer = world.kms.answer

        def respond(path: str, body: bytes) -> Any:
            if not path.endswith("/snapshots"):
                return answer(path, body)
            self.sent.append(parse_json(body))
            if self.fail:
                self.fail -= 1
                return world.kms.error(503, "kms.db.unavailable")
            return world.kms.json(
                {"key_id": self.sent[-1]["claims"]["key_id"]}, 201
            )

        world.kms.answer = respond  # type: ignore[method-assign]

    @property
    def claims(self) -> SnapshotClaims:
        return SnapshotClaims.parse(self.sent[-1]["claims"])

    @property
    def dek(self) -> bytes:
        claims = self.claims
        return jose.unwrap(
            self.sent[-1]["jwe"],
            self.world.kms.transport,
            key_apv(claims.key_id, claims.release),
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, launch_policy=ALLOWED)
    world.halt()
    world.libvirt = NoGuests()
    world.boot()
    world.kms.twist = lambda payload: replace(payload, audit=AUDIT)
    yield world
    world.stop()


@pytest.fixture
def registry(world: World) -> Registry:
    return Registry(world)


def refused(call: Any, *args: Any) -> str:
    with pytest.raises(MHError) as caught:
        call(*args)
    return caught.value.event


def stopped(world: World) -> None:
    """An instance that has run, and written 0x5a at 1 MiB."""
    world.make()
    world.start()
    keys = world.secrets.defined[world.instance]
    overlay = next(k for k in keys.values() if k != world.tenant.dek)
    world.launcher.started(world.instance, True)
    qemu_io(world, overlay, world.tenant.dek, "write -P 0x5a 1M 64k")


def wait(world: World) -> dict[str, Any]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        answer = world.launcher.copy(world.instance)
        if answer["done"]:
            return dict(answer["image"])
    raise AssertionError("the copy does not end")


def snapshot(world: World) -> tuple[Path, dict[str, Any]]:
    image = str(uuid.uuid4())
    world.launcher.snapshot(world.instance, image)
    made = wait(world)
    path = world.instances / world.instance / f"snapshot-{image}"
    return path, made


def read(path: Path, key: bytes, *commands: str) -> str:
    """A file that stands alone, opened with one key."""
    fd = tool.memfd(luks1.passphrase(key))
    try:
        done = subprocess.run(
            [
                "qemu-io",
                # to write would break the agent's lease, 45 s later
                "-r",
                *("--object", f"secret,id=s,file=/dev/fd/{fd}"),
                "--image-opts",
                "driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,"
                f"file.driver=file,file.filename={path}",
                *(part for command in commands for part in ("-c", command)),
            ],
            pass_fds=[fd],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(fd)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def left(world: World) -> list[str]:
    return [
        path.name
        for path in (world.instances / world.instance).iterdir()
        if path.name not in ("disk", "disk.info")
    ]


def test_snapshot(world: World, registry: Registry) -> None:
    stopped(world)
    path, made = snapshot(world)
    world.launcher.register(world.instance)
    claims = registry.claims
    # what the host says of it, and of itself
    assert (claims.instance, claims.release) == (world.instance, AUDIT)
    assert (claims.source_key_id, claims.key_id) == (KEY_ID, made["key_id"])
    assert claims.source_manifest == manifests.digest(world.tenant.manifest)
    assert claims.jwe_digest == jwe_digest(registry.sent[-1]["jwe"])
    token = made["manifest"]
    assert claims.manifest_digest == manifests.digest(token)
    manifest = Manifest.verify(token, [claims.signer])
    data = path.read_bytes()
    assert manifest.size == len(data) == made["size"]
    assert manifest.sha512 == made["sha512"]
    assert manifest.virtual_size == 16 * MIB
    assert manifest.launch_policy == ALLOWED
    assert made["key_url"] == f"{world.kms.origin}/v1/keys/{claims.key_id}"
    # the file: no base, what the guest wrote, and little more
    with path.open("rb") as file:
        header, _luks = qcow2.inspect(file.fileno())
        qcow2.check(header, backing=None, virtual_size=16 * MIB)
    out = read(path, registry.dek, "read -P 0x5a 1M 64k", "read -P 0 2M 1M")
    assert "Pattern verification failed" not in out
    assert len(data) < 4 * MIB
    assert world.kms.requests[-1].purpose == "snapshot"
    # nobody who is not root writes to it; gone in the end
    assert path.stat().st_mode & 0o777 == 0o444
    world.launcher.end_copy(world.instance)
    assert left(world) == []
    assert not world.secrets.defined
    assert world.events()[-3:] == [
        "agent.snapshot.begun",
        "agent.snapshot.measured",
        "agent.snapshot.registered",
    ]


def test_no_key_is_left_on_the_disk(world: World, registry: Registry) -> None:
    stopped(world)
    snapshot(world)
    world.launcher.register(world.instance)
    keys = (registry.dek, world.tenant.dek)
    for path in world.folder.rglob("*"):
        if path.is_file() and "tls" not in path.parts:
            data = path.read_bytes()
            assert not any(key in data for key in keys)
            assert not any(luks1.passphrase(k) in data for k in keys)


def test_over_raw_luks(world: World, registry: Registry) -> None:
    sign(world, encrypted(world, "luks"), launch_policy=ALLOWED)
    world.make()
    path, _made = snapshot(world)
    world.launcher.register(world.instance)
    out = read(path, registry.dek, "read -v 0 16", "read -P 0 1M 1M")
    assert "Pattern verification failed" not in out
    assert "00 00 00 00 00 00 00 00" not in out


def test_the_same_disk_twice(world: World, registry: Registry) -> None:
    """Each has a key and a signer of its own."""
    stopped(world)
    seen = []
    for _ in range(2):
        snapshot(world)
        world.launcher.register(world.instance)
        seen.append((registry.dek, registry.claims.signer["kid"]))
        world.launcher.end_copy(world.instance)
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_an_answer_that_was_lost(world: World, registry: Registry) -> None:
    stopped(world)
    snapshot(world)
    registry.fail = 1
    world.launcher.register(world.instance)
    assert registry.sent[0]["claims"] == registry.sent[1]["claims"]
    assert registry.sent[0]["nonce"] != registry.sent[1]["nonce"]


def test_a_key_server_that_does_not_take_it(
    world: World, registry: Registry
) -> None:
    stopped(world)
    snapshot(world)
    registry.fail = 2
    assert refused(world.launcher.register, world.instance) == (
        "agent.kms.refused"
    )


def test_nova_compute_dies_before_the_key_is_registered(
    world: World, registry: Registry
) -> None:
    """It may have stored the image: its successor has the key brought."""
    stopped(world)
    path, made = snapshot(world)
    world.launcher.storing(world.instance)
    world.launcher.sweep()
    assert registry.claims.key_id == made["key_id"]
    assert registry.claims.manifest_digest == manifests.digest(
        made["manifest"]
    )
    assert len(registry.dek) == 32
    assert world.events()[-1] == "agent.snapshot.registered"
    assert left(world) == []
    world.launcher.sweep()
    assert len(registry.sent) == 1


def test_nova_compute_dies_and_the_key_was_registered(
    world: World, registry: Registry
) -> None:
    stopped(world)
    snapshot(world)
    world.launcher.storing(world.instance)
    world.launcher.register(world.instance)
    world.launcher.sweep()
    assert len(registry.sent) == 1
    assert left(world) == []


def test_nova_compute_dies_before_it_knew_of_the_image(
    world: World, registry: Registry
) -> None:
    """It cannot have stored it: no key without an image."""
    stopped(world)
    world.launcher.snapshot(world.instance, str(uuid.uuid4()))
    end = time.monotonic() + 60
    while world.events()[-1] != "agent.snapshot.measured":
        assert time.monotonic() < end
        time.sleep(0.02)
    world.launcher.sweep()
    assert registry.sent == []
    assert left(world) == []


def test_nova_compute_dies_before_it_began_to_store_it(
    world: World, registry: Registry
) -> None:
    """Its question was answered, and nobody knows whether it heard."""
    stopped(world)
    snapshot(world)
    world.launcher.sweep()
    assert registry.sent == []
    assert left(world) == []


def test_stored_before_it_is_ready(world: World, registry: Registry) -> None:
    stopped(world)
    world.launcher.flatten(world.instance)
    wait(world)
    assert refused(world.launcher.storing, world.instance) == (
        "agent.snapshot.not-ready"
    )
    world.launcher.end_copy(world.instance)
    assert refused(world.launcher.storing, world.instance) == (
        "agent.copy.unknown"
    )


def test_nova_compute_dies_and_the_key_server_is_away(
    world: World, registry: Registry
) -> None:
    """Said in the log; the new nova-compute begins all the same."""
    stopped(world)
    snapshot(world)
    world.launcher.storing(world.instance)
    registry.fail = 2
    world.launcher.sweep()
    assert len(registry.sent) == 2
    assert "agent.snapshot.registered" not in world.events()
    assert left(world) == []


# Whose keys


def test_a_key_server_that_metadata_named(
    world: World, registry: Registry
) -> None:
    """The record was turned to a server that has other keys: its release is
    well-formed, and opens nothing."""
    stopped(world)
    dek = world.tenant.dek
    world.tenant.dek = os.urandom(32)
    event = refused(world.launcher.snapshot, world.instance, KEY_ID)
    assert event == "agent.measure.dek"
    world.tenant.dek, world.tenant.root = dek, os.urandom(32)
    event = refused(world.launcher.snapshot, world.instance, KEY_ID)
    assert event == "agent.header.passphrase"
    assert left(world) == []
    assert registry.sent == []


@pytest.mark.parametrize("where", ["manifest", "release"])
def test_a_launch_policy_without_snapshots(world: World, where: str) -> None:
    if where == "manifest":
        world.tenant.manifest = replace(
            world.tenant.describe(), launch_policy=LaunchPolicy()
        ).sign(world.tenant.signing)
    else:
        world.tenant.launch_policy = LaunchPolicy()
    stopped(world)
    for call, *words in (
        (world.launcher.snapshot_check, world.instance),
        (world.launcher.snapshot, world.instance, KEY_ID),
    ):
        assert refused(call, *words) == "agent.snapshot.policy"
    assert left(world) == []


def test_the_check_makes_nothing(world: World, registry: Registry) -> None:
    stopped(world)
    world.launcher.snapshot_check(world.instance)
    assert left(world) == []
    assert refused(world.launcher.copy, world.instance) == (
        "agent.copy.unknown"
    )


def test_an_instance_that_is_not_there(world: World) -> None:
    event = refused(world.launcher.snapshot, str(uuid.uuid4()), KEY_ID)
    assert event == "agent.record.unknown"


def test_another_disk_under_the_name(world: World) -> None:
    stopped(world)
    world.disk.unlink()
    world.overlays.write(
        world.instance,
        replace(
            world.store.instance(world.instance).disks[0],
            luks_uuid=str(uuid.uuid4()),
            base=False,
        ),
        Secret(os.urandom(32)),
        None,
    )
    event = refused(world.launcher.snapshot, world.instance, KEY_ID)
    assert event.startswith("agent.header.")


# Broken off


def test_written_to_before_it_is_registered(
    world: World, registry: Registry
) -> None:
    stopped(world)
    path, _made = snapshot(world)
    path.chmod(0o600)
    writer = subprocess.Popen(["sh", "-c", f"exec 3>>{path}; sleep 30"])
    try:
        # the open waits for the lease, which from then on does not hold
        time.sleep(1)
        event = refused(world.launcher.register, world.instance)
        assert event == "agent.snapshot.writer"
        assert registry.sent == []
    finally:
        writer.kill()
        writer.wait()


def test_given_up_in_the_middle(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(world)
    slow(monkeypatch)
    world.launcher.snapshot(world.instance, KEY_ID)
    wait_for_file(world)
    assert refused(world.launcher.snapshot, world.instance, KEY_ID) == (
        "agent.copy.busy"
    )
    assert refused(world.launcher.register, world.instance) == (
        "agent.snapshot.not-ready"
    )
    world.launcher.end_copy(world.instance)
    assert left(world) == []
    world.launcher.end_copy(world.instance)


def test_the_instance_is_deleted_in_the_middle(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(world)
    slow(monkeypatch)
    world.launcher.snapshot(world.instance, KEY_ID)
    wait_for_file(world)
    world.launcher.forget(world.instance)
    assert left(world) == []
    assert not list((world.folder / "state/instances").iterdir())


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A qemu-img that would take half a minute."""
    run = tool._run

    def delayed(argv: list[str], *rest: Any) -> None:
        run(["sh", "-c", 'sleep 30; exec "$0" "$@"', *argv], *rest)

    monkeypatch.setattr(tool, "_run", delayed)


def wait_for_file(world: World) -> None:
    end = time.monotonic() + 10
    while not left(world) and time.monotonic() < end:
        time.sleep(0.02)
    assert left(world)


def test_what_a_dead_agent_left_goes_at_its_start(world: World) -> None:
    stopped(world)
    folder = world.instances / world.instance
    for name in (f"snapshot-{KEY_ID}", "flattened-disk"):
        (folder / name).write_bytes(b"x")
    kept = folder / "disk.info"
    kept.write_text("{}")
    world.halt()
    world.boot()
    world.launcher.start_threads()
    assert left(world) == []
    assert kept.exists()
    assert world.disk.exists()


# Flatten


def flatten(world: World) -> None:
    world.launcher.flatten(world.instance)
    assert wait(world) == {}
    world.launcher.end_copy(world.instance)


def test_flatten(world: World, registry: Registry) -> None:
    stopped(world)
    before = world.store.instance(world.instance).disks[0]
    flatten(world)
    assert world.kms.requests[-1].purpose == "flatten"
    after = world.store.instance(world.instance).disks[0]
    assert after == replace(before, base=False)
    assert left(world) == []
    # neither image nor base is needed any more
    world.base.unlink()
    (disk,) = world.launcher.disks(world.instance)
    assert (disk["base"], disk["base_secret"]) == (False, "")
    key = world.kms.payload(world.kms.requests[-1]).overlay_keys["disk"]
    out = read(world.disk, key.reveal(), "read -P 0x5a 1M 64k")
    assert "Pattern verification failed" not in out
    # and it can be snapshotted, with what was written
    path, _made = snapshot(world)
    world.launcher.register(world.instance)
    out = read(path, registry.dek, "read -P 0x5a 1M 64k")
    assert "Pattern verification failed" not in out


def test_a_flattened_disk_starts(world: World) -> None:
    stopped(world)
    flatten(world)
    world.base.unlink()
    world.halt()
    world.boot()
    xml = world.xml()
    begin = xml.index("<backingStore")
    end = xml.index("</disk>")
    inside = xml[begin:end]
    rest = inside[inside.rindex("</backingStore>") + 15 :]
    world.start("start", xml[:begin] + "<backingStore/>" + rest + xml[end:])
    keys = world.secrets.defined[world.instance]
    assert len(keys) == 1
    assert world.tenant.dek not in keys.values()


def test_flattened_during_the_launch_it_starts_from(world: World) -> None:
    """As nova does at unshelve: made, flattened, started."""
    world.make()
    flatten(world)
    assert refused(world.start) == "agent.admit.disk"


def test_flatten_twice_changes_nothing(world: World) -> None:
    stopped(world)
    flatten(world)
    status = world.disk.stat()
    flatten(world)
    assert world.disk.stat().st_ino == status.st_ino


def test_flatten_without_leave(world: World) -> None:
    stopped(world)

    def other(payload: ReleasePayload) -> ReleasePayload:
        return replace(payload, purpose="start")

    world.kms.twist = other
    assert refused(world.launcher.flatten, world.instance) == (
        "agent.release.binding"
    )
    assert world.store.instance(world.instance).disks[0].base


def test_flatten_that_fails_leaves_the_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(world)
    data = world.disk.read_bytes()
    monkeypatch.setattr(tool, "_ENVIRONMENT", {"PATH": "/nonexistent"})
    world.launcher.flatten(world.instance)
    assert refused(wait, world) == "agent.tool.missing"
    world.launcher.end_copy(world.instance)
    assert world.disk.read_bytes() == data
    assert left(world) == []


# The tool


def test_a_wrong_key_opens_nothing(world: World) -> None:
    stopped(world)
    target = world.folder / "target"
    with world.disk.open("rb") as top, target.open("w+b") as out:
        layers = (
            Layer(top.fileno(), Secret(os.urandom(32))),
            None,
            Layer(out.fileno(), Secret(os.urandom(32))),
        )
        with pytest.raises(MHError) as caught:
            tool.convert(*layers, threading.Event())
    assert caught.value.event == "agent.tool.convert"
    assert canonical_json(caught.value.message).isascii()
