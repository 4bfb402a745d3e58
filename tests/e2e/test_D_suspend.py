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
"""Suspend and resume: refused in the clear, working where it is encrypted.

On node1; its save directory is put on an ext4 with encryption.
"""

from __future__ import annotations

import collections.abc
import typing

import pytest

from tests.minicloud import guest, save_dir
from tests.minicloud.process import CloudError
from tests.minicloud.save_dir import SAVE
from tests.minicloud.story import GRANTED, Story
from tests.minicloud.world import TrustedImage, World

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def image(story: Story) -> TrustedImage:
    return story.ready()


@pytest.fixture(scope="module")
def server(
    world: World, image: TrustedImage
) -> collections.abc.Iterator[typing.Any]:
    server = world.boots("sleeper", image)
    yield server
    world.delete(server)


@pytest.fixture(scope="module")
def encrypted(world: World) -> collections.abc.Iterator[None]:
    with save_dir.encrypted(world.node1) as why:
        if why:
            pytest.skip(why)
        yield


def reasons(world: World, server: typing.Any) -> str:
    """Everything nova tells of the last action."""
    compute = world.admin.compute
    last = next(iter(compute.server_actions(server.id)))
    action = compute.get_server_action(last.request_id, server.id)
    found = compute.get_server(server.id)
    return f"{action.events} {action.message} {found.fault}"


def releases(world: World, image: TrustedImage, server: typing.Any) -> int:
    return sum(
        GRANTED in str(record) and server.id in str(record)
        for record in world.kms_audit(image.key_id)
    )


def domain(world: World, server: typing.Any) -> str:
    return world.node1.virsh("domname", server.id).stdout.strip()


def test_in_the_clear_it_is_refused_and_stays_active(
    world: World, server: typing.Any
) -> None:
    world.tenant.compute.suspend_server(server.id)
    world.settle(server, "ACTIVE")
    assert "agent.suspend.clear" in reasons(world, server)
    assert domain(world, server) in world.node1.guests()


def test_suspended_with_its_memory_encrypted(
    world: World,
    image: TrustedImage,
    server: typing.Any,
    encrypted: None,
) -> None:
    node = world.node1
    world.tenant.compute.suspend_server(server.id)
    world.settle(server, "SUSPENDED")
    saved = node.path(f"{SAVE}/{domain(world, server)}.save").read_bytes()
    # control: through the mount, with the key, the memory is there
    assert image.token.encode() in saved
    node.command(["sync"])
    raw = (node.folder / "save.img").read_bytes()
    assert image.token.encode() not in raw
    assert b"LibvirtQemudSave" in saved
    assert b"LibvirtQemudSave" not in raw
    assert node.virsh("secret-list").stdout.strip() == ""


def test_resume_without_a_key_leaves_it_suspended(
    world: World, image: TrustedImage, server: typing.Any, encrypted: None
) -> None:
    path = world.node1.path(f"{SAVE}/{domain(world, server)}.save")
    before = path.stat().st_size
    world.product.stop_kms()
    try:
        world.tenant.compute.resume_server(server.id)
        world.settle(server, "SUSPENDED")
        assert "agent.kms." in reasons(world, server)
    finally:
        world.product.start_kms()
    assert path.stat().st_size == before
    assert world.node1.virsh("secret-list").stdout.strip() == ""


def test_resume_asks_for_the_key_and_goes_on(
    world: World, image: TrustedImage, server: typing.Any, encrypted: None
) -> None:
    node = world.node1
    name = domain(world, server)
    before = releases(world, image, server)
    world.tenant.compute.resume_server(server.id)
    world.settle(server, "ACTIVE")
    assert releases(world, image, server) == before + 1
    assert node.virsh("secret-list").stdout.strip() == ""
    assert not node.path(f"{SAVE}/{name}.save").exists()
    # restored, not booted anew
    log = node.path(f"/var/log/libvirt/qemu/{name}.log").read_text()
    assert "-incoming" in log.rsplit("starting up", 1)[-1]


def test_saved_memory_of_another_domain_is_not_run(
    world: World, image: TrustedImage, server: typing.Any, encrypted: None
) -> None:
    """What libvirt would restore has a domain of its own: with a channel
    into it, say."""
    node = world.node1
    name = domain(world, server)
    world.tenant.compute.suspend_server(server.id)
    world.settle(server, "SUSPENDED")
    xml = node.virsh("managedsave-dumpxml", name).stdout
    channel = "<on_crash>coredump-destroy</on_crash>"
    changed = xml.replace("<on_crash>destroy</on_crash>", channel)
    if changed == xml:
        raise CloudError(f"no such line in {xml}")
    path = node.folder / "tmp/changed.xml"
    path.write_text(changed)
    node.virsh("managedsave-define", name, str(path))
    world.tenant.compute.resume_server(server.id)
    world.settle(server, "SUSPENDED")
    assert "agent.admit." in reasons(world, server)
    assert name not in node.guests()
    path.write_text(xml)
    node.virsh("managedsave-define", name, str(path))
    world.tenant.compute.resume_server(server.id)
    world.settle(server, "ACTIVE")


def test_a_plain_instance_beside_it_is_suspended_as_ever(
    world: World, encrypted: None
) -> None:
    picture, token = world.plain_disk()
    server = guest.boot(
        world.admin,
        "plain-sleeper",
        picture,
        world.admin.compute.find_flavor("m1.plain"),
        host=world.node1.name,
    )
    guest.wait_console(world.admin, server, token)
    world.admin.compute.suspend_server(server.id)
    world.settle(server, "SUSPENDED")
    world.admin.compute.resume_server(server.id)
    world.settle(server, "ACTIVE")
    guest.delete(world.admin, server)
    world.admin.image.delete_image(picture.id)
