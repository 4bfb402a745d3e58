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
"""A host's image cache, and what the deployment guard finds on it."""

from __future__ import annotations

import collections.abc
import hashlib
import pathlib
import time
import typing

import pytest

from tests.minicloud import guest
from tests.minicloud.story import Story
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import TrustedImage, World

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]

_AGES = """
[image_cache]
manager_interval = 4
remove_unused_original_minimum_age_seconds = 12
remove_unused_resized_minimum_age_seconds = 12
"""


@pytest.fixture(scope="module")
def image(story: Story) -> TrustedImage:
    return story.ready()


@pytest.fixture(scope="module")
def quick_cache(world: World) -> collections.abc.Iterator[None]:
    """Ages of seconds rather than a day."""
    node = world.node1
    before = node.options.extra
    node.options.extra = before + _AGES
    node.restart_compute()
    world.cloud.wait_computes()
    world.agent_ready(node)
    yield
    node.options.extra = before
    node.restart_compute()
    world.cloud.wait_computes()
    world.agent_ready(node)


def base_of(world: World, image: TrustedImage) -> pathlib.Path:
    name = hashlib.sha1(image.id.encode(), usedforsecurity=False).hexdigest()
    return world.node1.folder / f"instances/_base/{name}_36"


def record_of(world: World, base: pathlib.Path) -> pathlib.Path:
    agent = world.node1.folder / "var/lib/mystery-hill/agent"
    return agent / f"bases/{base.name}.json"


def precache(world: World, image: TrustedImage) -> None:
    """``nova aggregate-cache-images``: as operators warm their hosts."""
    compute = world.admin.compute
    aggregate = compute.create_aggregate(name="warm")
    try:
        compute.add_host_to_aggregate(aggregate.id, world.node1.name)
        answer = compute.post(
            f"/os-aggregates/{aggregate.id}/images",
            json={"cache": [{"id": image.id}]},
        )
        assert answer.status_code == 202, answer.text
    finally:
        compute.remove_host_from_aggregate(aggregate.id, world.node1.name)
        compute.delete_aggregate(aggregate.id)


def test_precached_then_launched_from_the_cache(
    world: World, image: TrustedImage
) -> None:
    world.forget_base(image.id)
    base = base_of(world, image)
    asked = len(world.releases(image.key_id))
    precache(world, image)
    wait_for("the base in the cache", base.exists, 60)
    # ciphertext: nobody was asked for a key
    assert len(world.releases(image.key_id)) == asked
    wait_for("its record", record_of(world, base).exists, 20)
    assert not list(base.parent.glob("*.part"))
    inode = base.stat().st_ino
    server = world.boots("warm", image)
    assert base.stat().st_ino == inode
    world.delete(server)


def test_used_bases_stay_and_unused_ones_go(
    world: World, image: TrustedImage, quick_cache: None
) -> None:
    base = base_of(world, image)
    server = world.boots("ageing", image)
    content = hashlib.sha256(base.read_bytes()).digest()
    first = base.stat().st_mtime
    # longer than an unused one would live
    wait_for(
        "its time stamp is kept new",
        lambda: base.exists() and base.stat().st_mtime > first + 14,
        60,
    )
    assert hashlib.sha256(base.read_bytes()).digest() == content
    # the agent knows it by its lease, whatever its time stamps say
    world.tenant.compute.reboot_server(server.id, "HARD")
    guest.wait_status(world.admin, server, "ACTIVE")
    world.delete(server)
    wait_for("the unused base is removed", lambda: not base.exists(), 90)
    wait_for(
        "the agent lets go of it",
        lambda: not record_of(world, base).exists(),
        30,
    )
    # and it comes again
    again = world.boots("again", image)
    world.delete(again)


def test_the_base_of_a_rescue_stays_while_it_lasts(
    world: World, image: TrustedImage, quick_cache: None
) -> None:
    purposes = [
        *("--purpose", "launch", "--purpose", "start"),
        *("--purpose", "rescue"),
    ]
    key = world.create_key("cached-rescue", *purposes)
    first, other = (
        world.create_image(name, key) for name in ("sick", "rescuer")
    )
    server = world.boots("sick", first)
    world.product.answer(
        "tenant",
        *("trusted", "server", "rescue", server.id, "--image", other.id),
    )
    guest.wait_console(world.admin, server, other.token)
    base = base_of(world, other)
    # an unused one goes with the first look after 12 seconds
    wait_for(
        "its age",
        lambda: not base.exists() or time.time() - base.stat().st_mtime > 26,
        60,
    )
    assert base.exists()
    world.tenant.compute.unrescue_server(server.id)
    world.settle(server, "ACTIVE")
    wait_for("the unused base is removed", lambda: not base.exists(), 60)
    assert base_of(world, first).exists()
    world.delete(server)


def _qemu_conf(world: World) -> pathlib.Path:
    return world.node1.folder / "etc/libvirt/qemu.conf"


@pytest.fixture
def core_dumps(world: World) -> collections.abc.Iterator[None]:
    path = _qemu_conf(world)
    before = path.read_text()
    path.write_text(before.replace("max_core = 0", "max_core = 1"))
    yield
    path.write_text(before)
    world.agent_ready(world.node1)


def test_what_is_amiss_withdraws_the_trait_and_plain_ones_go_on(
    world: World, image: TrustedImage, core_dumps: None
) -> None:
    node = world.node1
    log = node.log("nova-compute")
    mark = len(log.read_bytes())
    world.wait_trait(node, False)
    said = world.log_since(log, mark)
    assert "agent.guard.core" in said
    assert "max_core" in said
    server = world.launch("amiss", image)
    assert server.status == "ERROR"
    world.delete(server)
    picture, token = world.plain_disk()
    plain: typing.Any = guest.boot(
        world.admin,
        "plain-beside",
        picture,
        world.admin.compute.find_flavor("m1.plain"),
        host=node.name,
    )
    guest.wait_console(world.admin, plain, token)
    guest.delete(world.admin, plain)
    world.admin.image.delete_image(picture.id)


def test_put_right_it_carries_trusted_ones_again(
    world: World, image: TrustedImage
) -> None:
    world.wait_trait(world.node1, True)
    server = world.boots("right", image)
    world.delete(server)
