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
"""A trusted instance's life, and what is refused without harming it."""

from __future__ import annotations

import collections.abc
import contextlib
import time
import typing

import pytest
from openstack import exceptions

from tests.minicloud import guest
from tests.minicloud.process import CloudError
from tests.minicloud.story import GRANTED, Story
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import TrustedImage, World

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def image(story: Story) -> TrustedImage:
    return story.ready()


@pytest.fixture(scope="module")
def server(
    world: World, image: TrustedImage
) -> collections.abc.Iterator[typing.Any]:
    server = world.boots("life", image)
    yield server
    world.delete(server)


@pytest.fixture(scope="module")
def plain(world: World) -> collections.abc.Iterator[typing.Any]:
    """An ordinary instance beside it, on the same host."""
    picture, token = world.plain_disk()
    server = guest.boot(
        world.admin,
        "beside",
        picture,
        world.admin.compute.find_flavor("m1.plain"),
        host=world.node1.name,
    )
    guest.wait_console(world.admin, server, token)
    yield server
    guest.delete(world.admin, server)
    world.admin.image.delete_image(picture.id)


def releases(world: World, image: TrustedImage, server: typing.Any) -> int:
    """How often the key was released for this instance."""
    return sum(
        GRANTED in str(record) and server.id in str(record)
        for record in world.kms_audit(image.key_id)
    )


def again(
    world: World,
    image: TrustedImage,
    server: typing.Any,
    action: collections.abc.Callable[[], object],
    since: int | None = None,
) -> None:
    """Something that starts the guest: the key is asked for again, once,
    and the guest prints its line once more, in a process of its own."""
    before = releases(world, image, server)
    process = world.pid(world.node1, server)
    action()
    wait_for(
        "a new release",
        lambda: releases(world, image, server) > before,
        60,
    )
    world.settle(server, "ACTIVE")
    guest.wait_console(world.admin, server, image.token)
    assert releases(world, image, server) == before + 1
    assert world.pid(world.node1, server) not in (0, process)


def test_stop_and_start(
    world: World, image: TrustedImage, server: typing.Any
) -> None:
    world.tenant.compute.stop_server(server.id)
    world.settle(server, "SHUTOFF")
    assert world.node1.virsh("secret-list").stdout.strip() == ""
    again(
        world,
        image,
        server,
        lambda: world.tenant.compute.start_server(server.id),
    )


@pytest.mark.parametrize("kind", ["SOFT", "HARD"])
def test_reboot(
    world: World, image: TrustedImage, server: typing.Any, kind: str
) -> None:
    again(
        world,
        image,
        server,
        lambda: world.tenant.compute.reboot_server(server.id, kind),
    )


@pytest.mark.parametrize("kind", ["SOFT", "HARD"])
def test_reboot_where_the_key_server_is_down(
    world: World, image: TrustedImage, server: typing.Any, kind: str
) -> None:
    """Refused before the guest is shut down, and its owner is told."""
    process = world.pid(world.node1, server)
    world.product.stop_kms()
    try:
        world.tenant.compute.reboot_server(server.id, kind)
        found = world.settle(server, "ACTIVE")
    finally:
        world.product.start_kms()
    assert "agent.kms." in found.metadata["mh_refused"]
    assert world.pid(world.node1, server) == process
    again(
        world,
        image,
        server,
        lambda: world.tenant.compute.reboot_server(server.id, kind),
    )
    assert "mh_refused" not in world.settle(server, "ACTIVE").metadata


@pytest.mark.parametrize("part", ["compute", "libvirtd", "agent"])
def test_restart_under_a_running_guest(
    world: World, image: TrustedImage, server: typing.Any, part: str
) -> None:
    node = world.node1
    process = world.pid(node, server)
    assert process
    if part == "compute":
        node.restart_compute()
        world.cloud.wait_computes()
    elif part == "libvirtd":
        world.cloud.restart_libvirtd(node)
    else:
        world.product.stop_agent(node)
        world.product.start_agent(node)
    world.agent_ready(node)
    assert server.id in world.running_guests()
    assert world.pid(node, server) == process
    assert node.virsh("secret-list").stdout.strip() == ""
    again(
        world,
        image,
        server,
        lambda: world.tenant.compute.reboot_server(server.id, "HARD"),
    )


def test_rebuild_to_plain_and_back(
    world: World, image: TrustedImage, server: typing.Any
) -> None:
    compute = world.tenant.compute
    again(
        world,
        image,
        server,
        lambda: compute.rebuild_server(server.id, image=image.id, name="life"),
    )
    picture, token = world.plain_disk()
    compute.rebuild_server(server.id, image=picture.id, name="life")
    world.settle(server, "ACTIVE")
    guest.wait_console(world.admin, server, token)
    again(
        world,
        image,
        server,
        lambda: compute.rebuild_server(server.id, image=image.id, name="life"),
    )
    world.tenant.image.delete_image(picture.id)


def _refused(world: World, operation: str, server: typing.Any) -> object:
    compute, admin = world.tenant.compute, world.admin.compute
    calls: dict[str, collections.abc.Callable[[], object]] = {
        "suspend": lambda: compute.suspend_server(server.id),
        "snapshot": lambda: compute.create_server_image(server.id, "leak"),
        "shelve": lambda: compute.shelve_server(server.id),
        "rescue": lambda: compute.rescue_server(server.id),
        "live-migration": lambda: admin.live_migrate_server(
            server.id, host="node2", block_migration="auto"
        ),
    }
    return calls[operation]()


@pytest.mark.parametrize(
    "operation",
    ["suspend", "snapshot", "shelve", "rescue", "live-migration"],
)
def test_refused_early_and_unharmed(
    world: World,
    image: TrustedImage,
    server: typing.Any,
    plain: typing.Any,
    operation: str,
) -> None:
    """Would leak: refused with a reason; guest and neighbour go on."""
    running = sorted(world.node1.virsh("list", "--uuid").stdout.split())
    with contextlib.suppress(exceptions.HttpException):
        _refused(world, operation, server)
    time.sleep(1)
    world.settle(server, "ACTIVE")
    actions = world.admin.compute.server_actions(server.id)
    said = _reasons(world, server, next(iter(actions)).request_id)
    if operation == "live-migration":
        # no other host is trusted, so placement is the first to say no
        assert "hook.refused." in said or "No valid host" in said, said
    elif operation in ("snapshot", "shelve", "rescue"):
        # this key's policy does not list the purpose
        assert "kms.release.purpose" in said, said
    elif operation == "suspend":
        # this host's save directory is in the clear
        assert "agent.suspend.clear" in said, said
    else:
        assert "hook.refused." in said, said
    assert sorted(world.node1.virsh("list", "--uuid").stdout.split()) == (
        running
    )
    leaks = [i for i in world.tenant.image.images() if i.name == "leak"]
    assert not [i for i in leaks if i.status == "active"]
    for picture in leaks:
        world.tenant.image.delete_image(picture.id)


def _reasons(world: World, server: typing.Any, request: str) -> str:
    """Everything nova tells a user about the last action."""
    action = world.admin.compute.get_server_action(request, server.id)
    found = world.admin.compute.get_server(server.id)
    return f"{action.events} {action.message} {found.fault}"


@pytest.mark.parametrize(
    ("what", "event"),
    [
        ("config-drive", "agent.config-drive.policy"),
        ("kernel", "hook.launch.kernel"),
    ],
)
def test_refused_at_launch(
    world: World, image: TrustedImage, what: str, event: str
) -> None:
    more: dict[str, typing.Any] = {}
    image_id = image.id
    if what == "config-drive":
        more["config_drive"] = True
    else:
        world.tenant.image.update_image(
            image_id, kernel_id=image_id, ramdisk_id=image_id
        )
    try:
        server = world.launch("refused", image, **more)
        message = guest.fault(server)
        if server.status == "ACTIVE":
            raise CloudError("not refused")
        assert event in message
        assert world.leftovers(world.node1, server.id) == []
        world.delete(server)
    finally:
        if what == "kernel":
            world.admin.image.patch(
                f"/images/{image_id}",
                json=[
                    {"op": "remove", "path": "/kernel_id"},
                    {"op": "remove", "path": "/ramdisk_id"},
                ],
                headers={
                    "Content-Type": "application/"
                    "openstack-images-v2.1-json-patch"
                },
            )


def test_delete_leaves_nothing(world: World, image: TrustedImage) -> None:
    server = world.boots("short", image)
    world.delete(server)
    assert world.leftovers(world.node1, server.id) == []


def test_plain_instance_beside_is_untouched(
    world: World, plain: typing.Any
) -> None:
    found = world.admin.compute.get_server(plain.id)
    assert found.status == "ACTIVE"
