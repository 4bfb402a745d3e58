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
"""Volumes of trusted servers, by nova's API and a real Cinder: encrypted on
the host, asked for at each attachment and start, readable by servers of the
same key and by nobody else.
"""

from __future__ import annotations

import collections.abc
import secrets
import subprocess
import typing

import openstack
import pytest

from mh_core.image import luks1
from mh_core.volume import HEADER_BYTES
from tests.e2e.moving import ask, clean, on_the_wire
from tests.e2e.test_5_moves import Counting
from tests.e2e.test_9_disks import Disks, clear_on_disk
from tests.e2e.test_A_turned import EVENTS, TURNED, Database, turned
from tests.minicloud import guest
from tests.minicloud.node import Node
from tests.minicloud.process import CloudError
from tests.minicloud.search import Needle
from tests.minicloud.story import GRANTED, Story
from tests.minicloud.trusted import wait_for
from tests.minicloud.volumes.tenant import Volume, Volumes
from tests.minicloud.world import TrustedImage, World

VOLUMES = True
pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(900)]

PURPOSES = ("launch", "start", "migrate-in", "resize", "attach")
PLACE = 3 << 20
Server = typing.Any


class Plugged(Disks):
    """A volume of a running guest, through its QEMU; by the volume's id."""

    def _node(self, name: str) -> str:
        for block in self._qmp("query-block"):
            if name in block.get("qdev", ""):
                return str(block["inserted"]["node-name"])
        raise CloudError(f"no volume {name}")

    def put(self, name: str, text: bytes) -> None:
        """Byte for byte, so that nothing has the whole of it but QEMU."""
        [device] = [
            block["qdev"]
            for block in self._qmp("query-block")
            if name in block.get("qdev", "")
        ]
        for number, byte in enumerate(text):
            self.node.virsh(
                *("qemu-monitor-command", self.server.id, "--hmp"),
                f'qemu-io -d {device} "write -P {byte} {PLACE + number} 1"',
            )
        assert self.get(name, len(text)) == text

    def get(self, name: str, length: int) -> bytes:
        return self.read(name, PLACE, length)


@pytest.fixture(scope="module")
def ready(world: World, story: Story) -> World:
    """Also where this module runs alone."""
    story.ready()
    world.only(world.node1)
    return world


@pytest.fixture(scope="module")
def volumes(ready: World) -> Volumes:
    return Volumes(ready)


def _image(world: World, name: str, *purposes: str) -> TrustedImage:
    words = [word for one in purposes for word in ("--purpose", one)]
    return world.create_image(name, world.create_key(name, *words))


@pytest.fixture(scope="module")
def image(ready: World) -> TrustedImage:
    return _image(ready, "with-volumes", *PURPOSES)


@pytest.fixture(scope="module")
def server(
    ready: World, image: TrustedImage
) -> collections.abc.Iterator[Server]:
    made = ready.boots("volume-1", image)
    yield made
    ready.delete(made)


@pytest.fixture(scope="module")
def token() -> bytes:
    return b"vol-" + secrets.token_hex(10).encode()


@pytest.fixture(scope="module")
def volume(volumes: Volumes) -> Volume:
    return volumes.create("of-trusted")


@pytest.fixture(scope="module")
def blank(volumes: Volumes) -> collections.abc.Iterator[Volume]:
    made = volumes.create("never-attached")
    yield made
    volumes.delete(made)


@pytest.fixture(scope="module")
def used(
    ready: World, volumes: Volumes, server: Server, volume: Volume
) -> Volume:
    """Free, and of the first key: also where no test before this was run."""
    with volumes.file(volume).open("rb") as file:
        blank = not any(file.read(HEADER_BYTES))
    if blank:
        volumes.attach(server, volume)
        volumes.unplug(ready.node1, server, volume)
    return volume


def asked(world: World, image: TrustedImage, volume: Volume) -> int:
    """How often the key of a volume was released."""
    return sum(
        record["event"] == GRANTED
        and record["purpose"] == "attach"
        and any(
            disk["name"] == f"volume-{volume.id}" for disk in record["disks"]
        )
        for record in world.kms_audit(image.key_id)
    )


def again(
    world: World,
    image: TrustedImage,
    server: Server,
    volume: Volume,
    action: collections.abc.Callable[[], object],
) -> None:
    """A start, at which the volume's key is asked for again."""
    before = asked(world, image, volume)
    action()
    wait_for("a release", lambda: asked(world, image, volume) > before)
    world.settle(server, "ACTIVE")
    guest.wait_console(world.admin, server, image.token)


def no_secrets(world: World) -> bool:
    return not world.node1.virsh("secret-list").stdout.split()


def refused(
    world: World, volumes: Volumes, server: Server, volume: Volume
) -> str:
    """Ask for an attachment that ends in nothing; what nova's log says."""
    log = world.node1.log("nova-compute")
    mark = log.stat().st_size
    said = ""
    try:
        world.tenant.compute.create_volume_attachment(
            server, volume_id=volume.id
        )
    except openstack.exceptions.BadRequestException as error:
        said = str(error)
    # it is first reserved, then given back, and then forgotten
    wait_for(
        "the volume to be free",
        lambda: (
            (said or "Refused for a trusted" in world.log_since(log, mark))
            and volumes.show(volume).status == "available"
            and not list(world.tenant.compute.volume_attachments(server))
        ),
    )
    assert world.admin.compute.get_server(server.id).status == server.status
    return said or world.log_since(log, mark)


def test_attached_to_a_running_server(
    ready: World,
    volumes: Volumes,
    image: TrustedImage,
    server: Server,
    volume: Volume,
    token: bytes,
) -> None:
    """What the guest writes is in no file of the cloud in the clear."""
    assert asked(ready, image, volume) == 0
    volumes.attach(server, volume)
    assert asked(ready, image, volume) == 1
    assert no_secrets(ready)
    disks = Plugged(ready, server)
    whole = volumes.file(volume).stat().st_size
    assert disks.size(volume.id) == whole - HEADER_BYTES
    disks.put(volume.id, token)
    with volumes.file(volume).open("rb") as file:
        header = luks1.parse(file.read(HEADER_BYTES))
        file.seek(HEADER_BYTES + PLACE)
        assert token not in file.read(4096)
    assert str(header.uuid) == volume.id
    assert not clear_on_disk(ready, Needle("written", token))
    found = volumes.sources(ready.node1, server)
    assert found["vdb"] == str(volumes.file(volume))


def test_started_with_it(
    ready: World,
    image: TrustedImage,
    server: Server,
    volume: Volume,
    token: bytes,
) -> None:
    compute = ready.tenant.compute
    again(
        ready,
        image,
        server,
        volume,
        lambda: compute.reboot_server(server.id, "HARD"),
    )
    disks = Plugged(ready, server)
    assert disks.get(volume.id, len(token)) == token
    compute.stop_server(server.id)
    ready.settle(server, "SHUTOFF")
    again(
        ready, image, server, volume, lambda: compute.start_server(server.id)
    )
    assert disks.get(volume.id, len(token)) == token
    assert no_secrets(ready)


def test_a_rebuild_keeps_it(
    ready: World,
    image: TrustedImage,
    server: Server,
    volume: Volume,
    token: bytes,
) -> None:
    again(
        ready,
        image,
        server,
        volume,
        lambda: ready.tenant.compute.rebuild_server(
            server.id, image=image.id, name="volume-1"
        ),
    )
    disks = Plugged(ready, server)
    assert disks.get(volume.id, len(token)) == token


def test_detached_and_in_another_server(
    ready: World,
    volumes: Volumes,
    image: TrustedImage,
    server: Server,
    volume: Volume,
    token: bytes,
) -> None:
    """Of the same key: it reads what the first one wrote.  Deleted with
    the volume in it, it leaves it free."""
    volumes.unplug(ready.node1, server, volume)
    assert list(volumes.sources(ready.node1, server)) == ["vda"]
    other = ready.boots("volume-2", image)
    try:
        before = asked(ready, image, volume)
        ready.tenant.compute.stop_server(other.id)
        ready.settle(other, "SHUTOFF")
        # looked at, and asked for, when it is attached; and at the start
        volumes.attach(other, volume)
        assert asked(ready, image, volume) == before + 1
        again(
            ready,
            image,
            other,
            volume,
            lambda: ready.tenant.compute.start_server(other.id),
        )
        disks = Plugged(ready, other)
        assert disks.get(volume.id, len(token)) == token
    finally:
        ready.delete(other)
    assert volumes.wait(volume, "available").attachments == []
    assert not clear_on_disk(ready, Needle("written", token))


def test_a_server_of_another_key(
    ready: World, volumes: Volumes, used: Volume
) -> None:
    """Its key opens nothing; nor does a policy allow it that is silent."""
    volume = used
    before = volumes.file(volume).read_bytes()[: HEADER_BYTES + PLACE + 512]
    for name, purposes, event in (
        ("other-key", PURPOSES, "agent.volume.key"),
        ("no-volumes", ("launch", "start"), "kms.release.purpose"),
    ):
        image = _image(ready, name, *purposes)
        other = ready.boots(name, image)
        try:
            assert event in refused(ready, volumes, other, volume)
            assert no_secrets(ready)
            assert list(volumes.sources(ready.node1, other)) == ["vda"]
        finally:
            ready.delete(other)
    after = volumes.file(volume).read_bytes()[: HEADER_BYTES + PLACE + 512]
    assert after == before


def test_a_volume_with_something_on_it(
    ready: World, volumes: Volumes, server: Server
) -> None:
    full = volumes.create("full")
    with volumes.file(full).open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"a file system")
    said = refused(ready, volumes, server, full)
    assert "agent.volume.not-blank" in said
    with volumes.file(full).open("rb") as file:
        file.seek(1 << 20)
        assert file.read(13) == b"a file system"
        file.seek(0)
        assert not any(file.read(4096))
    volumes.delete(full)


def test_a_volume_that_the_cloud_put_in_the_place(
    ready: World, volumes: Volumes, server: Server, used: Volume
) -> None:
    """A copy of another one's content, as after a swap."""
    swapped = volumes.create("swapped")
    with volumes.file(used).open("rb") as file:
        head = file.read(8 << 20)
    with volumes.file(swapped).open("r+b") as file:
        file.write(head)
    said = refused(ready, volumes, server, swapped)
    assert "agent.volume.other" in said
    volumes.delete(swapped)


@pytest.mark.parametrize("kind", sorted(TURNED))
def test_turned_and_attached_to(
    ready: World,
    volumes: Volumes,
    image: TrustedImage,
    server: Server,
    blank: Volume,
    kind: str,
) -> None:
    """Metadata as the cloud's operator could edit it: nothing is plugged
    in, no key is asked for, and the volume stays blank."""
    database = Database(ready, server)
    try:
        with turned(database, kind):
            said = refused(ready, volumes, server, blank)
    finally:
        database.close()
    assert EVENTS[kind] in said
    assert asked(ready, image, blank) == 0
    with volumes.file(blank).open("rb") as file:
        assert not any(file.read(1 << 20))


def test_a_host_that_is_not_trusted(
    ready: World, volumes: Volumes, server: Server
) -> None:
    """The user has the reason as the answer; Cinder hears of nothing."""
    blank = volumes.create("blank")
    ready.product.stop_agent(ready.node1)
    try:
        said = refused(ready, volumes, server, blank)
        assert "hook.agent.unavailable" in said
    finally:
        ready.product.start_agent(ready.node1)
        ready.agent_ready(ready.node1)
    with volumes.file(blank).open("rb") as file:
        assert not any(file.read(1 << 20))
    volumes.delete(blank)


def test_at_a_launch(
    ready: World, volumes: Volumes, image: TrustedImage
) -> None:
    """A new volume beside the image: encrypted before the guest starts."""
    blank = volumes.create("at-launch")
    server = ready.boots(
        "volume-3",
        image,
        block_device_mapping=[
            {
                "boot_index": 0,
                "uuid": image.id,
                "source_type": "image",
                "destination_type": "local",
            },
            {
                "boot_index": -1,
                "uuid": blank.id,
                "source_type": "volume",
                "destination_type": "volume",
            },
        ],
    )
    try:
        assert asked(ready, image, blank) == 1
        assert no_secrets(ready)
        with volumes.file(blank).open("rb") as file:
            header = luks1.parse(file.read(HEADER_BYTES))
        assert str(header.uuid) == blank.id
    finally:
        ready.delete(server)
    volumes.wait(blank, "available")
    volumes.delete(blank)


def test_moved_with_it(
    ready: World,
    volumes: Volumes,
    image: TrustedImage,
    second_host: Node,
    token: bytes,
) -> None:
    """Cold, with the key asked for where it arrives.  Not while it runs: to
    libvirt this folder is not one that both hosts have; it stays as it is."""
    ready.only(ready.node1)
    made = ready.boots("volume-4", image)
    server = Counting(ready, image, made)
    volume = volumes.create("moves")
    try:
        volumes.attach(made, volume)
        Plugged(ready, made).put(volume.id, token)
        ready.only(ready.node1, second_host)
        ask(ready, made, second_host.name)
        server.settle("ACTIVE")
        server.on(ready.node1)
        told = server.reasons()
        assert "hook.migration.broken-off" in told, told
        assert "nsafe" in told, told
        clean(ready, made, second_host)
        assert Plugged(ready, made).get(volume.id, len(token)) == token
        with server.asking(second_host, "attach"):
            server.migrate(second_host)
            server.settle("VERIFY_RESIZE")
            server.on(second_host)
        there = Plugged(ready, made, second_host)
        assert there.get(volume.id, len(token)) == token
        server.confirm()
        server.nothing_of_it_on(ready.node1)
    finally:
        ready.only(ready.node1, ready.node2)
        ready.delete(made)
    assert volumes.wait(volume, "available").attachments == []
    volumes.delete(volume)


def policy(world: World, image: TrustedImage, *purposes: str) -> None:
    """What the key is released for from now on."""
    words = [word for one in purposes for word in ("--purpose", one)]
    world.product.openstack(
        "tenant", *("trusted", "key", "set", image.key_id), *words
    )


def test_moves_while_it_runs(
    ready: World, volumes: Volumes, second_host: Node, token: bytes
) -> None:
    """The same volume, at another device on each host.  QEMU copies nothing
    of it; the key is asked for where the guest comes in, and where that is
    refused, the guest stays and the volume with it."""
    if subprocess.run(["losetup", "--find"], check=False).returncode:
        pytest.skip("no loop devices here")
    ready.only(ready.node1)
    image = _image(ready, "moves-with-it", *PURPOSES)
    made = ready.boots("volume-5", image)
    server = Counting(ready, image, made)
    volume = volumes.create("device", metadata={"connect": "device"})
    try:
        volumes.attach(made, volume)
        here = volumes.connected(volume)["node1"]
        assert volumes.sources(ready.node1, made)["vdb"] == here
        Plugged(ready, made).put(volume.id, token)
        ready.only(ready.node1, second_host)
        # refused by its owner
        policy(ready, image, "launch", "start", "migrate-in")
        ask(ready, made, second_host.name)
        server.settle("ACTIVE")
        server.on(ready.node1)
        assert "hook.migration.broken-off" in server.reasons()
        clean(ready, made, second_host)
        assert volumes.connected(volume) == {"node1": here}
        assert Plugged(ready, made).get(volume.id, len(token)) == token
        # there, and back
        policy(ready, image, *PURPOSES)
        written = token
        for source, to in (
            (ready.node1, second_host),
            (second_host, ready.node1),
        ):
            with server.asking(to, "attach"), on_the_wire(ready) as seen:
                ask(ready, made, to.name)
                server.settle("ACTIVE")
            server.on(to)
            device = volumes.sources(to, made)["vdb"]
            assert volumes.connected(volume) == {to.name: device}
            assert not to.virsh("secret-list").stdout.split()
            clean(ready, made, source)
            # far less than the volume's GiB has crossed
            assert written not in seen[0]
            assert len(seen[0]) < 1 << 29
            disks = Plugged(ready, made, to)
            assert disks.get(volume.id, len(written)) == written
            # and it goes on from there
            written = b"on-" + secrets.token_hex(8).encode() + to.name.encode()
            disks.put(volume.id, written)
            # who has it, only an administrator sees
            found = ready.admin.block_storage.get_volume(volume.id)
            assert found.status == "in-use"
            assert [one["host_name"] for one in found.attachments] == [to.name]
        with volumes.file(volume).open("rb") as file:
            assert written not in file.read(HEADER_BYTES + PLACE + 4096)
        again(
            ready,
            image,
            made,
            volume,
            lambda: ready.tenant.compute.reboot_server(made.id, "HARD"),
        )
        disks = Plugged(ready, made)
        assert disks.get(volume.id, len(written)) == written
    finally:
        ready.only(ready.node1, ready.node2)
        ready.delete(made)
    assert volumes.wait(volume, "available").attachments == []
    assert volumes.connected(volume) == {}
    volumes.delete(volume)


def test_deleted(volumes: Volumes, volume: Volume) -> None:
    volumes.delete(volume)
