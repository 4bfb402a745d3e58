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
import json
import typing

import pytest
from openstack import exceptions

from mh_core.image import qcow2
from tests.minicloud import guest, overlay_write
from tests.minicloud.process import CloudError
from tests.minicloud.story import Story
from tests.minicloud.trusted import KMS_ORIGIN, wait_for
from tests.minicloud.world import TrustedImage, World

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

        def test() -> typing.Any:
            found = self.world.admin.compute.get_server(self.id)
            return found if found.task_state is None else None

        found = wait_for("the end of the task", test, 120)
        assert found.status == status, (found.status, guest.fault(found))
        return found

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
    try:
        document = world.tenant.image.get(f"/images/{image_id}").json()
    except exceptions.HttpException as exc:
        raise CloudError("nova deleted the image") from exc
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
