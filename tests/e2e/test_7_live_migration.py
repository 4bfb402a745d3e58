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
"""A trusted guest that moves while it runs, and all that must not."""

from __future__ import annotations

import base64
import collections.abc
import contextlib
import datetime
import os
import pathlib
import shutil
import signal
import types
import typing

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mh_attest import authority, migration_ca
from mh_core.image import qcow2
from mh_nova.agent.migration_tls import jwk_of
from tests.e2e.moving import (
    ask,
    clean,
    count,
    crawl,
    create_image,
    host_of,
    move,
    on_the_wire,
    reasons,
    settle,
    stays,
)
from tests.e2e.test_9_disks import USER_DATA, Disks, drive_files
from tests.minicloud import guest
from tests.minicloud.node import Node
from tests.minicloud.story import GRANTED, Story
from tests.minicloud.trusted import SOURCES, wait_for
from tests.minicloud.world import TrustedImage, World

#: Instances move between node1 and node3 here; see conftest.
MOVES = True
BLANK = ["disk.eph0", "disk.swap"]
pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def image(world: World, story: Story, second_host: Node) -> TrustedImage:
    story.ready()
    return create_image(world, "moving")


@pytest.fixture
def server(
    world: World, image: TrustedImage
) -> collections.abc.Iterator[typing.Any]:
    """On node1, counting."""
    made = world.boots("moving", image, conn=world.operator, host="node1")
    count(world, made)
    yield made
    world.delete(made)


def releases(world: World, image: TrustedImage, **members: str) -> int:
    return sum(
        record["event"] == GRANTED
        and all(value in str(record) for value in members.values())
        for record in world.kms_audit(image.key_id)
    )


# -- it works -----------------------------------------------------------------


def test_moves_there_and_back_while_it_writes(
    world: World, image: TrustedImage, server: typing.Any
) -> None:
    """Over TLS, to a disk under another key; the source forgets."""
    before = count(world, server)
    uuids = {disk_uuid(world.node1, server)}
    for source, to in (
        (world.node1, world.node3),
        (world.node3, world.node1),
    ):
        asked = releases(
            world, image, purpose="'migrate-in'", instance=server.id
        )
        with on_the_wire(world) as seen:
            move(world, server, to.name)
        assert (
            releases(world, image, purpose="'migrate-in'", instance=server.id)
            == asked + 1
        )
        # memory and disk have crossed, and neither can be read
        assert len(seen[0]) > 1 << 20
        for secret in (image.token.encode(), image.marker, b"n=00"):
            assert secret not in seen[0]
        now = count(world, server)
        assert now > before
        before = now
        uuids.add(disk_uuid(to, server))
        assert world.leftovers(source, server.id) == []
        assert server.id not in source.virsh("list", "--all", "--uuid").stdout
        assert to.virsh("secret-list").stdout.strip() == ""
    # each disk had a LUKS header, and so a key, of its own
    assert len(uuids) == 3
    # what it wrote elsewhere is on its disk here
    world.tenant.compute.reboot_server(server.id, "HARD")
    settle(world, server)
    assert count(world, server) > before


def disk_uuid(node: Node, server: typing.Any, name: str = "disk") -> bytes:
    """Of the LUKS header in a disk of a running guest."""
    disk = node.folder / "instances" / server.id / name
    with disk.open("rb") as file:
        head = file.read(1 << 20)
    start = head.index(b"LUKS\xba\xbe")
    return head[start + 168 : start + 208]


def test_a_paused_guest_moves(
    world: World, image: TrustedImage, server: typing.Any
) -> None:
    world.tenant.compute.pause_server(server.id)
    guest.wait_status(world.admin, server, "PAUSED")
    ask(world, server)
    wait_for(
        "the move",
        lambda: (
            host_of(world, server) == "node3"
            and world.admin.compute.get_server(server.id).task_state is None
        ),
        120,
    )
    assert world.admin.compute.get_server(server.id).status == "PAUSED"
    world.tenant.compute.unpause_server(server.id)
    guest.wait_status(world.admin, server, "ACTIVE")
    count(world, server)


def test_moves_with_swap_and_ephemeral(
    world: World, image: TrustedImage
) -> None:
    """Each under a key of its own, at either end; what is in them moves."""
    flavor = world.admin.compute.create_flavor(
        name="m1.moving.disks", ram=64, vcpus=1, disk=1, swap=64, ephemeral=1
    )
    world.admin.compute.create_flavor_extra_specs(
        flavor, {"trust:trusted_host": "trusted"}
    )
    server = world.boots(
        *("disks", image),
        **{"conn": world.operator, "host": "node1", "flavor": flavor.name},
    )
    here = Disks(world, server)
    for name in BLANK:
        here.write(name, 1 << 20, 0x5A)
    uuids = {disk_uuid(world.node1, server, name) for name in BLANK}
    with on_the_wire(world) as seen:
        move(world, server, "node3")
    assert bytes([0x5A]) * 512 not in seen[0]
    there = Disks(world, server, world.node3)
    assert there.names() == ["disk", *BLANK]
    for name in BLANK:
        assert there.read(name, 1 << 20, 512) == bytes([0x5A]) * 512
        head = (there.folder / name).read_bytes()
        assert bytes([0x5A]) * 512 not in head
        uuids.add(disk_uuid(world.node3, server, name))
    assert len(uuids) == 2 * len(BLANK)
    assert there.read("disk.swap", 4086, 10) == b"SWAPSPACE2"
    clean(world, server, world.node1)
    world.delete(server)
    world.admin.compute.delete_flavor(flavor)


def test_an_unshelved_one_moves(world: World, second_host: Node) -> None:
    """Its disk has no base, and its key is that of a snapshot which is no
    more: there and back, with what it wrote."""
    image = create_image(
        world,
        "shelved",
        "--allow-snapshots",
        purposes=("snapshot", "flatten"),
    )
    server = world.boots("shelved", image, conn=world.operator, host="node1")
    before = count(world, server)
    world.only(world.node1)
    world.tenant.compute.shelve_server(server.id)
    guest.wait_status(world.admin, server, "SHELVED_OFFLOADED")
    world.tenant.compute.unshelve_server(server.id)
    guest.wait_status(world.admin, server, "ACTIVE")
    world.only(world.node1, world.node2, world.node3)
    settle(world, server)
    uuids = {disk_uuid(world.node1, server)}
    for source, to in (
        (world.node1, world.node3),
        (world.node3, world.node1),
    ):
        now = count(world, server)
        assert now > before
        before = now
        with on_the_wire(world) as seen:
            move(world, server, to.name)
        assert len(seen[0]) > 1 << 20
        for secret in (image.token.encode(), image.marker, b"n=00"):
            assert secret not in seen[0]
        uuids.add(disk_uuid(to, server))
        clean(world, server, source)
        assert to.virsh("secret-list").stdout.strip() == ""
        disk = to.folder / "instances" / server.id / "disk"
        with disk.open("rb") as file:
            header, _luks = qcow2.inspect(file.fileno())
        qcow2.check(header, backing=None)
    assert len(uuids) == 3
    # all of it came along: it boots from it
    world.tenant.compute.reboot_server(server.id, "HARD")
    settle(world, server)
    assert count(world, server) > before
    world.delete(server)
    world.tenant.image.delete_image(image.id)


@pytest.fixture(scope="module")
def driven(
    world: World, image: TrustedImage
) -> collections.abc.Iterator[typing.Any]:
    """A server with a config drive, on node1."""
    path = world.product.workstation / "user-data"
    path.write_bytes(USER_DATA)
    pinned = create_image(
        world,
        "driven",
        *("--config-drive", "pinned", "--user-data", str(path)),
    )
    made = world.boots(
        "driven",
        pinned,
        conn=world.operator,
        host="node1",
        config_drive=True,
        user_data=base64.b64encode(USER_DATA).decode(),
    )
    count(world, made)
    yield made
    world.delete(made)


def drive_of(node: Node, server: typing.Any) -> pathlib.Path:
    return node.folder / "instances" / server.id / "disk.config"


def test_a_config_drive_that_somebody_changed(
    world: World, driven: typing.Any
) -> None:
    """Its key does not open it where it comes to: the guest stays, and has
    its own.  The drive is as it was, and goes with it after that."""
    path = drive_of(world.node1, driven)
    before = path.read_bytes()
    # key material of the first slot of the LUKS header
    place = before.index(b"LUKS\xba\xbe") + 4096
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([before[place] ^ 1]))
    ask(world, driven)
    stays(world, driven)
    told = reasons(world, driven)
    assert "agent.header.passphrase" in told, told
    with path.open("r+b") as file:
        file.seek(place)
        file.write(before[place : place + 1])
    assert path.read_bytes() == before


def test_moves_with_a_config_drive(world: World, driven: typing.Any) -> None:
    """The file itself, and not by QEMU; under the key that it has."""
    before = drive_of(world.node1, driven).read_bytes()
    content = drive_files(Disks(world, driven))[""]
    assert USER_DATA in content
    root = disk_uuid(world.node1, driven)
    for source, to in (
        (world.node1, world.node3),
        (world.node3, world.node1),
    ):
        with on_the_wire(world) as seen:
            move(world, driven, to.name)
        assert USER_DATA not in seen[0]
        there = Disks(world, driven, to)
        assert there.names() == ["disk", "disk.config"]
        assert drive_files(there)[""] == content
        assert drive_of(to, driven).read_bytes() == before
        assert disk_uuid(to, driven) != root
        assert to.virsh("secret-list").stdout.strip() == ""
        clean(world, driven, source)
    world.tenant.compute.reboot_server(driven.id, "HARD")
    settle(world, driven)
    assert drive_files(Disks(world, driven))[""] == content


def test_a_vm_report_says_that_it_arrived(
    world: World, image: TrustedImage, server: typing.Any
) -> None:
    move(world, server, "node3")

    def arrived() -> bool:
        found = world.attest("GET", f"/v1/vm-reports/{server.id}")["reports"]
        claims = found[-1]["claims"] if found else {}
        return (claims.get("purpose"), claims.get("host")) == (
            "migrate-in",
            "node3",
        )

    wait_for("the VM report", arrived, 60)


# -- it is refused ------------------------------------------------------------


def force(world: World, server: typing.Any, host: str) -> None:
    """Past the scheduler, as an operator once could."""
    world.admin.compute.post(
        f"/servers/{server.id}/action",
        json={
            "os-migrateLive": {
                "host": host,
                "block_migration": "auto",
                "force": True,
            }
        },
        microversion="2.67",
    )


def test_no_way_to_a_host_that_is_not_trusted(
    world: World, server: typing.Any
) -> None:
    """Forced past the scheduler; node2 is not enrolled."""
    force(world, server, "node2")
    stays(world, server, world.node2)


@contextlib.contextmanager
def foul(world: World, node: Node) -> collections.abc.Iterator[None]:
    """A host whose boot changed, with a nova-compute that takes anything;
    its certificate is still good."""
    certificate = node.path("/run/mystery-hill/migration/server-cert.pem")
    assert certificate.exists()
    node.options.command = ["python", "-m", "tests.minicloud.foul_destination"]
    node.options.env = SOURCES
    world.cloud.restart_compute(node)
    world.cloud.wait_computes()
    node.tpm.extend(4, b"something else was started")
    try:
        yield
    finally:
        node.options.command, node.options.env = ["mh-nova-compute"], {}
        node.tpm.reset()
        world.cloud.restart_compute(node)
        world.cloud.wait_computes()
        world.agent_ready(node)


def test_the_gate_alone_keeps_it_here(
    world: World, server: typing.Any
) -> None:
    """A valid certificate and no fresh appraisal: neither memory nor a
    block, though the destination's nova would take them."""
    with foul(world, world.node3):
        with on_the_wire(world) as seen:
            force(world, server, "node3")
            stays(world, server)
        assert seen == [b""]
        told = reasons(world, server)
        assert "agent.migrate.refused" in told, told
        # what was started then does not stand in the event log
        assert "attest.appraise.event-log" in told, told


def minted(world: World, node: Node, expired: bool) -> dict[str, bytes]:
    """Files as the agent's: of the right authority but expired, or valid
    and of another authority, names and all."""
    key = ec.generate_private_key(ec.SECP256R1())
    folder = world.product.mh / "attest"
    if not expired:
        folder = world.cloud.where.tmp / "foreign"
        shutil.rmtree(folder, ignore_errors=True)
        authority.create(folder, datetime.datetime.now(datetime.UTC))
    signer = authority.load(folder, "nobody")
    now = datetime.datetime.now(datetime.UTC)
    made = migration_ca.issue(
        signer,
        typing.cast(
            typing.Any,
            types.SimpleNamespace(
                name=node.name, listener=f"https://{node.address}:1"
            ),
        ),
        jwk_of(key.public_key()),
        now - datetime.timedelta(hours=2 if expired else 0),
        datetime.timedelta(hours=1),
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    files = {
        "server-cert.pem": made.public_bytes(pem),
        "client-cert.pem": made.public_bytes(pem),
        "server-key.pem": private,
        "client-key.pem": private,
    }
    if not expired:
        files["ca-cert.pem"] = signer.migration_ca.public_bytes(pem)
    return files


@contextlib.contextmanager
def certificates(
    world: World, node: Node, files: dict[str, bytes]
) -> collections.abc.Iterator[None]:
    """Behind the agent's back; it repairs that when it starts again."""
    folder = node.path("/run/mystery-hill/migration")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    try:
        yield
    finally:
        world.product.stop_agent(node)
        world.product.start_agent(node)
        world.agent_ready(node)
        wait_for(
            "a certificate",
            lambda: (
                (folder / "server-cert.pem").read_bytes()
                != files["server-cert.pem"]
            ),
            30,
        )


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        ("expired", "node1"),
        ("expired", "node3"),
        ("foreign", "node1"),
        ("foreign", "node3"),
    ],
)
def test_a_certificate_that_is_not_good(
    world: World, image: TrustedImage, server: typing.Any, end: str, fault: str
) -> None:
    """At either end; the agents know nothing of it."""
    node = getattr(world, end)
    files = minted(world, node, fault == "expired")
    with certificates(world, node, files):
        with on_the_wire(world) as seen:
            ask(world, server)
            stays(world, server)
        assert image.token.encode() not in seen[0]


# -- it is broken off ---------------------------------------------------------


@pytest.fixture(scope="module")
def slow(
    world: World, image: TrustedImage
) -> collections.abc.Iterator[typing.Any]:
    """A guest that makes more memory other ones than may leave in the same
    time; see :func:`under_way`."""
    made = world.boots("slow", image, conn=world.operator, host="node1")
    count(world, made)
    # MiB/s
    world.node1.virsh("migrate-setspeed", made.id, "1")
    yield made
    world.delete(made)


def under_way(world: World, server: typing.Any) -> typing.Any:
    """Ask for it, and wait until memory is crossing: so slowly that it goes
    on until somebody ends it, however seldom the guest gets a processor.
    """
    ask(world, server)

    def running() -> typing.Any:
        found = world.admin.compute.get(
            f"/servers/{server.id}/migrations", microversion="2.59"
        ).json()["migrations"]
        return found[0] if found and found[0]["status"] == "running" else None

    migration = wait_for("the migration", running, 90)
    wait_for(
        "the guest at the destination",
        lambda: server.id in world.node3.virsh("list", "--uuid").stdout,
        60,
    )
    crawl(world, server)
    world.pause(3)
    assert running()
    return migration


def test_cancelled(world: World, slow: typing.Any) -> None:
    """nova server migration abort"""
    migration = under_way(world, slow)
    world.admin.compute.delete(
        f"/servers/{slow.id}/migrations/{migration['id']}",
        microversion="2.24",
    )
    stays(world, slow)


def test_the_destinations_qemu_is_killed(
    world: World, slow: typing.Any
) -> None:
    under_way(world, slow)
    name = world.node3.virsh("domname", slow.id).stdout.strip()
    pid = world.node3.path(f"/run/libvirt/qemu/{name}.pid").read_text()
    os.kill(int(pid), signal.SIGKILL)
    stays(world, slow)


def test_the_destinations_libvirtd_is_killed(
    world: World, slow: typing.Any
) -> None:
    under_way(world, slow)
    world.node3.kill("libvirtd")
    world.node3.start_libvirt()
    stays(world, slow)
    world.cloud.wait_computes()
    world.agent_ready(world.node3)


def test_the_sources_qemu_is_killed(world: World, slow: typing.Any) -> None:
    """Nothing has moved: its disk is kept, and the tenant sees it off."""
    before = count(world, slow)
    under_way(world, slow)
    name = world.node1.virsh("domname", slow.id).stdout.strip()
    pid = world.node1.path(f"/run/libvirt/qemu/{name}.pid").read_text()
    os.kill(int(pid), signal.SIGKILL)
    guest.wait_status(world.admin, slow, "SHUTOFF")
    assert host_of(world, slow) == "node1"
    clean(world, slow, world.node3)
    assert "hook.migration.broken-off" in reasons(world, slow)
    world.tenant.compute.start_server(slow.id)
    guest.wait_status(world.admin, slow, "ACTIVE")
    assert count(world, slow) > before
