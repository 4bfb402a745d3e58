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
"""Snapshots of trusted instances, and shelving, which makes one.

Every image that comes of it is encrypted under a new key of the tenant's,
and boots with what the guest had on its disk.
"""

from __future__ import annotations

import collections.abc
import contextlib
import json
import typing
import uuid

import pymysql  # type: ignore[import-untyped]
import pytest

from mh_core.image import qcow2
from tests.minicloud import guest, overlay_write
from tests.minicloud.process import CloudError
from tests.minicloud.search import (
    Needle,
    Search,
    default_roots,
    key_needles,
    plant,
)
from tests.minicloud.story import AGENT_LOG, Story
from tests.minicloud.trusted import ATTEST_ORIGIN, KMS_ORIGIN, wait_for
from tests.minicloud.world import (
    PLAIN_FLAVOR,
    TRUSTED_FLAVOR,
    TrustedImage,
    World,
)

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(900)]

PURPOSES = ("launch", "start", "snapshot", "flatten")
REGISTERED = "kms.snapshot.registered"


@pytest.fixture(scope="module")
def ready(world: World, story: Story) -> World:
    """Also where this module runs alone."""
    try:
        trusted = world.level(world.node1) == "trusted"
    except CloudError:
        trusted = False
    if not trusted:
        story.enrol()
    world.flavors()
    world.only(world.node1)
    return world


@pytest.fixture(scope="module")
def image(ready: World) -> TrustedImage:
    words = [word for name in PURPOSES for word in ("--purpose", name)]
    key = ready.create_key("snap", *words)
    return ready.create_image("snap", key, "--allow-snapshots")


@pytest.fixture(scope="module")
def server(
    ready: World, image: TrustedImage
) -> collections.abc.Iterator[Server]:
    """With a token of its own on its disk."""
    made = Server(ready, ready.boots("snapped", image))
    made.write()
    yield made
    ready.delete(made.server)


class Server:
    """A trusted server, and the line that its disk makes it print."""

    def __init__(self, world: World, server: typing.Any) -> None:
        self.world = world
        self.server = server
        self.id = str(server.id)
        self.token = ""

    def settle(self, status: str) -> typing.Any:
        """Wait until no task is left, in the state asked for."""
        return self.world.settle(self, status)

    def stop(self) -> None:
        self.world.tenant.compute.stop_server(self.id)
        self.settle("SHUTOFF")

    def start(self) -> None:
        self.world.tenant.compute.start_server(self.id)
        self.settle("ACTIVE")
        self.prints()

    def write(self) -> None:
        self.stop()
        self.token = overlay_write.write_token(
            self.world, self.world.node1, self.id
        )
        self.start()

    def prints(self) -> None:
        guest.wait_console(self.world.admin, self.server, self.token)

    def reboot(self) -> None:
        self.world.tenant.compute.reboot_server(self.id, "HARD")
        self.settle("ACTIVE")
        self.prints()

    def snapshot(self, name: str) -> TrustedImage:
        """Through nova; the image as the tenant sees it."""
        made = self.world.tenant.compute.create_server_image(self.id, name)
        status = self.world.admin.compute.get_server(self.id).status
        self.settle(status)
        return taken(self.world, made.id, self.token)


def taken(world: World, image_id: str, token: str) -> TrustedImage:
    """A snapshot that is there, or what nova says about why not."""
    answer = world.tenant.image.get(f"/images/{image_id}")
    if answer.status_code != 200:
        raise CloudError("nova deleted the image")
    document = answer.json()
    if document.get("status") != "active":
        raise CloudError(f"the image is {document.get('status')}")
    key_id = document["os_encrypt_key_id"]
    [digest] = world.kms("GET", f"/v1/keys/{key_id}")["manifests"]
    return TrustedImage(
        id=image_id,
        name=document["name"],
        key_id=key_id,
        key_url=document["mh_key_url"],
        token=token,
        marker=b"",
        manifest_digest=digest,
        properties=document,
    )


def why(world: World, server: Server) -> str:
    """What the server's action log says of the last snapshot."""
    action = next(iter(world.admin.compute.server_actions(server.id)))
    found = world.admin.compute.get_server_action(action.request_id, server.id)
    return f"{found.events} {found.message}"


def encrypted(world: World, image: TrustedImage) -> None:
    """Glance's file is qcow2 with LUKS inside, and stands alone."""
    with (world.glance_store / image.id).open("rb") as file:
        header, _luks = qcow2.inspect(file.fileno())
        qcow2.check(header, backing=None)


def clean(world: World, server: Server) -> None:
    """Neither file nor secret of a copy is left."""
    folder = world.node1.folder / "instances" / server.id
    assert not [
        path.name
        for path in folder.iterdir()
        if path.name.startswith(("snapshot-", "flattened-"))
    ]
    assert world.node1.virsh("secret-list").stdout.strip() == ""


def boots(world: World, image: TrustedImage) -> None:
    """A new server of it prints what the disk held."""
    made = world.boots("again", image)
    world.delete(made)


def sound(world: World, server: Server, snap: TrustedImage) -> None:
    """What is true of every snapshot."""
    encrypted(world, snap)
    clean(world, server)
    assert (
        snap.key_id != overlay_write.record(world.node1, server.id)["key_id"]
    )
    assert snap.key_url == f"{KMS_ORIGIN}/v1/keys/{snap.key_id}"
    assert REGISTERED in json.dumps(
        world.kms_audit(
            world.kms("GET", f"/v1/keys/{snap.key_id}/snapshot")["claims"][
                "source_key_id"
            ]
        )
    )


@pytest.fixture(scope="module")
def live(ready: World, server: Server) -> TrustedImage:
    return server.snapshot("live")


def test_of_a_running_instance(
    ready: World, server: Server, live: TrustedImage
) -> None:
    """By the guest's own QEMU, which goes on; it boots again."""
    assert server.id in ready.running_guests()
    sound(ready, server, live)
    boots(ready, live)
    server.reboot()


def test_of_a_paused_instance(ready: World, server: Server) -> None:
    ready.tenant.compute.pause_server(server.id)
    server.settle("PAUSED")
    snap = server.snapshot("paused")
    ready.tenant.compute.unpause_server(server.id)
    server.settle("ACTIVE")
    sound(ready, server, snap)
    boots(ready, snap)


def test_of_a_stopped_instance(ready: World, server: Server) -> None:
    """By qemu-img, with the keys released for it; it starts afterwards."""
    server.stop()
    snap = server.snapshot("stopped")
    sound(ready, server, snap)
    server.start()
    boots(ready, snap)


# Whose it is


def test_the_chain_is_shown(ready: World, live: TrustedImage) -> None:
    """``image show``: from the image to the host's TPM and to the disk."""
    shown = ready.product.answer("tenant", "trusted", "image", "show", live.id)
    assert shown["manifest"].startswith("verified: signed by an attested host")
    chain = "\n".join(shown["snapshot"])
    assert "quoted by the AK of node1" in chain
    assert f"says {ATTEST_ORIGIN}" in chain
    assert "that host trusted at" in chain


def test_its_owner_launches_it(
    ready: World, server: Server, live: TrustedImage
) -> None:
    """By the client, with a ticket; nobody without one."""
    shown = ready.product.answer(
        "tenant",
        *("trusted", "server", "create", "owned"),
        *("--image", live.id, "--flavor", TRUSTED_FLAVOR),
    )
    made = ready.admin.compute.get_server(shown["id"])
    ready.servers.append(made)
    assert made.status == "ACTIVE"
    guest.wait_console(ready.admin, made, live.token)
    ready.delete(made)
    refused = ready.launch("unticketed", live, ticket="")
    assert "kms.release.ticket" in guest.fault(refused)
    ready.delete(refused)


def test_nothing_is_inherited(
    ready: World, image: TrustedImage, live: TrustedImage
) -> None:
    before, after = image.properties, live.properties
    for name in ("mh_key_url", "mh_manifest", "os_encrypt_key_id"):
        assert after[name] != before[name]
    assert after["mh_manifest"].count(".") == 2
    assert {n for n in after if n.startswith(("mh_", "os_encrypt"))} == {
        n for n in before if n.startswith(("mh_", "os_encrypt"))
    }
    assert after["trait:CUSTOM_MH_TRUSTED_LAUNCH"] == "required"
    assert (after["disk_format"], after["container_format"]) == (
        "qcow2",
        "bare",
    )
    assert after["image_type"] == "snapshot"


def test_of_an_instance_of_a_snapshot(
    ready: World, live: TrustedImage
) -> None:
    second = Server(ready, ready.boots("second", live))
    second.write()
    snap = second.snapshot("second")
    sound(ready, second, snap)
    boots(ready, snap)
    ready.delete(second.server)


def test_rebuild_to_a_snapshot(
    ready: World, image: TrustedImage, live: TrustedImage
) -> None:
    other = Server(ready, ready.boots("rebuilt", image))
    ready.tenant.compute.rebuild_server(
        other.id,
        image=live.id,
        name="rebuilt",
        metadata={"mh_ticket": ready.ticket(live)},
    )
    other.settle("ACTIVE")
    other.token = live.token
    other.prints()
    ready.delete(other.server)


# Metadata turned against it


@contextlib.contextmanager
def turned(
    world: World, server: Server, changes: dict[str, str | None]
) -> collections.abc.Iterator[None]:
    """The operator's hand in nova's database; None deletes a row."""
    with pymysql.connect(
        unix_socket=str(world.cloud.where.mysql_socket),
        user="root",
        database="nova_cell1",
        autocommit=True,
    ) as connection:
        with connection.cursor() as cursor:
            before: dict[str, str] = {}
            for key, value in changes.items():
                cursor.execute(
                    "select value from instance_system_metadata"
                    " where instance_uuid = %s and `key` = %s"
                    " and deleted = 0",
                    (server.id, key),
                )
                row = cursor.fetchone()
                assert row is not None, key
                before[key] = row[0]
                cursor.execute(
                    "update instance_system_metadata"
                    " set value = %s, `key` = %s"
                    " where instance_uuid = %s and `key` = %s"
                    " and deleted = 0",
                    (
                        value or row[0],
                        key if value else "gone_" + key,
                        server.id,
                        key,
                    ),
                )
            try:
                yield
            finally:
                for key, value in before.items():
                    cursor.execute(
                        "update instance_system_metadata set value = %s, "
                        "`key` = %s where instance_uuid = %s "
                        "and `key` in (%s, %s) and deleted = 0",
                        (value, key, server.id, key, "gone_" + key),
                    )


OTHER = str(uuid.uuid4())


@pytest.mark.parametrize(
    "changes",
    [
        {
            "image_mh_key_url": f"https://127.0.0.1:15547/v1/keys/{OTHER}",
            "image_os_encrypt_key_id": OTHER,
        },
        {"image_mh_version": None},
    ],
    ids=["another key server", "denied"],
)
def test_refused_where_metadata_was_turned(
    ready: World, server: Server, changes: dict[str, str | None]
) -> None:
    """Never under a key server that somebody named meanwhile."""
    before = key_ids(ready)
    with turned(ready, server, changes):
        with pytest.raises(CloudError):
            server.snapshot("turned")
        assert "hook.ours." in why(ready, server)
    assert server.id in ready.running_guests()
    assert key_ids(ready) == before
    clean(ready, server)
    server.reboot()


# Refused, and broken off


def test_refused_where_the_launch_policy_does_not_allow_it(
    ready: World, image: TrustedImage
) -> None:
    """Also for shelving, before the guest is stopped."""
    bare = ready.create_image("bare", {"id": image.key_id})
    one = Server(ready, ready.boots("bare", bare))
    with pytest.raises(CloudError):
        one.snapshot("bare")
    assert "kms.release.snapshots" in why(ready, one)
    ready.tenant.compute.shelve_server(one.id)
    one.settle("ACTIVE")
    assert one.id in ready.running_guests()
    clean(ready, one)
    ready.delete(one.server)


def key_ids(world: World) -> set[str]:
    return {key["id"] for key in world.kms("GET", "/v1/keys")["keys"]}


def begun(world: World, server: Server) -> typing.Any:
    """Ask for a snapshot, and wait until the agent has its leave for it."""
    log = world.node1.folder / AGENT_LOG
    mark = log.stat().st_size
    made = world.tenant.compute.create_server_image(server.id, "broken")
    wait_for(
        "the copy",
        lambda: "agent.snapshot.begun" in world.log_since(log, mark),
        30,
        pause=0.02,
    )
    return made


def no_image(world: World, image_id: str) -> bool:
    found = world.tenant.image.get(f"/images/{image_id}")
    if found.status_code == 404:
        return True
    return bool(found.json().get("status") == "deleted")


def test_the_key_server_goes_in_the_middle(
    ready: World, server: Server
) -> None:
    """No image, no key, no file; the guest goes on."""
    before = key_ids(ready)
    made = begun(ready, server)
    ready.product.stop_kms()
    try:
        server.settle("ACTIVE")
    finally:
        ready.product.start_kms()
    assert no_image(ready, made.id)
    assert key_ids(ready) == before
    clean(ready, server)
    server.reboot()


def test_the_agent_dies_in_the_middle(ready: World, server: Server) -> None:
    before = key_ids(ready)
    made = begun(ready, server)
    ready.node1.kill("mh-agent")
    (ready.node1.folder / "run/mystery-hill/agent.sock").unlink()
    ready.product.start_agent(ready.node1)
    server.settle("ACTIVE")
    assert no_image(ready, made.id)
    assert key_ids(ready) == before
    ready.agent_ready(ready.node1)
    clean(ready, server)
    server.reboot()
    boots(ready, server.snapshot("after"))


def test_nova_compute_dies_in_the_middle(ready: World, server: Server) -> None:
    """Its successor has the agent clear away; nova leaves the image queued,
    as it does for any instance."""
    before = key_ids(ready)
    made = begun(ready, server)
    ready.node1.kill("nova-compute")
    ready.node1.start_compute()
    ready.cloud.wait_computes()
    server.settle("ACTIVE")
    clean(ready, server)
    assert key_ids(ready) == before
    left = ready.tenant.image.get(f"/images/{made.id}")
    assert left.status_code == 404 or left.json()["status"] != "active"
    ready.tenant.image.delete_image(made.id)
    ready.agent_ready(ready.node1)
    server.reboot()


# Shelve


def flat(world: World, server: Server) -> None:
    """The disk stands alone, encrypted."""
    path = world.node1.folder / "instances" / server.id / "disk"
    with path.open("rb") as file:
        header, _luks = qcow2.inspect(file.fileno())
        qcow2.check(header, backing=None)


@pytest.fixture(scope="module")
def unshelved(
    ready: World, image: TrustedImage
) -> collections.abc.Iterator[Server]:
    """Shelved, offloaded, and back."""
    one = Server(ready, ready.boots("shelved", image))
    one.write()
    ready.tenant.compute.shelve_server(one.id)
    found = one.settle("SHELVED_OFFLOADED")
    assert ready.leftovers(ready.node1, one.id) == []
    [kept] = [
        picture
        for picture in ready.tenant.image.images()
        if picture.name == f"{found.name}-shelved"
    ]
    encrypted(ready, taken(ready, kept.id, one.token))
    ready.tenant.compute.unshelve_server(one.id)
    one.settle("ACTIVE")
    assert no_image(ready, kept.id)
    ready.forget_base(kept.id)
    yield one
    ready.delete(one.server)


def test_shelve_offload_unshelve(ready: World, unshelved: Server) -> None:
    unshelved.prints()
    flat(ready, unshelved)
    clean(ready, unshelved)
    # without the image, its base, and the one it was first made of
    unshelved.reboot()
    unshelved.stop()
    unshelved.start()


def test_what_an_unshelved_guest_writes_stays(
    ready: World, unshelved: Server
) -> None:
    unshelved.write()
    unshelved.reboot()


def test_of_an_unshelved_instance(ready: World, unshelved: Server) -> None:
    snap = unshelved.snapshot("unshelved")
    sound(ready, unshelved, snap)
    boots(ready, snap)
    unshelved.stop()
    snap = unshelved.snapshot("unshelved off")
    sound(ready, unshelved, snap)
    unshelved.start()


def test_its_owner_sees_an_unshelved_server_as_verified(
    ready: World, unshelved: Server
) -> None:
    shown = ready.product.answer(
        "tenant", "trusted", "server", "show", unshelved.id
    )
    assert shown["verdict"].startswith("trusted:"), shown


# Beside it


def test_of_a_plain_instance(ready: World) -> None:
    """Stock nova's, as ever."""
    picture, token = ready.plain_disk()
    plain = guest.boot(
        ready.admin,
        "plain",
        picture,
        ready.admin.compute.find_flavor(PLAIN_FLAVOR),
        host=ready.node1.name,
    )
    guest.wait_console(ready.admin, plain, token)
    made = ready.admin.compute.create_server_image(plain.id, "plain-snap")
    wait_for(
        "the plain snapshot",
        lambda: ready.admin.image.get_image(made.id).status == "active",
        120,
    )
    document = ready.admin.image.get(f"/images/{made.id}").json()
    assert not [name for name in document if name.startswith("mh_")]
    again = guest.boot(
        ready.admin,
        "plain again",
        ready.admin.image.get_image(made.id),
        ready.admin.compute.find_flavor(PLAIN_FLAVOR),
        host=ready.node1.name,
    )
    guest.wait_console(ready.admin, again, token)
    for server in (again, plain):
        guest.delete(ready.admin, server)
    ready.admin.image.delete_image(made.id)
    ready.tenant.image.delete_image(picture.id)


def test_nothing_is_in_the_clear(
    ready: World, server: Server, image: TrustedImage, live: TrustedImage
) -> None:
    """After all of the above; what is planted is found."""
    node = ready.node1
    disk = node.folder / "instances" / server.id / "disk"
    needles = [
        Needle("marker", image.marker),
        *key_needles(
            "DEK",
            overlay_write.dek(ready, image.key_id),
            ready.glance_store / image.id,
        ),
        *key_needles(
            "snapshot's DEK",
            overlay_write.dek(ready, live.key_id),
            ready.glance_store / live.id,
        ),
        *key_needles(
            "overlay key",
            overlay_write.disk_key(ready, node, server.id),
            disk,
        ),
    ]
    folders = [
        ready.glance_store,
        node.folder / "instances",
        ready.cloud.where.tmp,
        node.path("/var/lib/libvirt/qemu"),
    ]
    with plant(folders) as planted:
        search = Search(
            default_roots(ready.cloud.base),
            [ready.product.workstation],
            [*needles, *planted.needles],
        )
        hits = search.run()
        assert planted.missing(hits) == []
        assert planted.others(hits) == []
