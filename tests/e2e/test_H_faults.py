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

"""Somebody dies, or is gone, or the disk is full, at a named step.

Every time the server ends in a state that nova understands, with a fault
that names the cause, or runs; it can be deleted; and nothing of it is left.
The steps stand in ``tests.fixture.steps``. Some are walked here; with
``MH_FAULTS=all`` (``tox -e faults``) every one is.
"""

from __future__ import annotations

import collections.abc
import os
import typing

import pytest

from tests.fixture import steps
from tests.minicloud import guest, overlay_write
from tests.minicloud.mortal import Mortal, Small, launch
from tests.minicloud.node import Node
from tests.minicloud.process import CloudError
from tests.minicloud.search import (
    Needle,
    Search,
    default_roots,
    key_needles,
    plant,
)
from tests.minicloud.story import Story
from tests.minicloud.world import TrustedImage, World

#: node3 is used in some of it; see conftest.
MOVES = True
ALL = os.environ.get("MH_FAULTS") == "all"
pytestmark = [
    pytest.mark.minicloud,
    pytest.mark.timeout(7200 if ALL else 600),
]
PURPOSES = ("launch", "start", "snapshot", "migrate-in")


@pytest.fixture(scope="module")
def ready(world: World, story: Story) -> World:
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
def host(ready: World) -> collections.abc.Iterator[Mortal]:
    host = Mortal(ready, ready.node1)
    host.begin()
    yield host
    host.end()


@pytest.fixture(scope="module")
def image(ready: World) -> TrustedImage:
    words = [word for name in PURPOSES for word in ("--purpose", name)]
    key = ready.create_key("mortal", *words)
    return ready.create_image("mortal", key, "--allow-snapshots")


def short(every: tuple[str, ...], few: tuple[str, ...]) -> tuple[str, ...]:
    """Every step, or those that stand for the others."""
    assert set(few) <= set(every)
    return every if ALL else few


def ends(host: Mortal, server: typing.Any, image: TrustedImage) -> str:
    """In what the server ended: why, or empty where it runs."""
    found = host.settled(server)
    why = guest.fault(found)
    if found.status == "ERROR":
        assert host.world.events_in(why), why
    else:
        assert found.status == "ACTIVE", found.status
        guest.wait_console(host.world.admin, found, image.token)
        why = ""
    assert host.node.virsh("secret-list").stdout.strip() == ""
    host.world.delete(found)
    host.nothing_left(server)
    return why


def dies(host: Mortal, image: TrustedImage, step: str, victim: str) -> str:
    with host.standing(step):
        server = launch(host.world, image)
    host.kill(victim, server)
    host.halt.go()
    host.revive(victim)
    try:
        return ends(host, server, image)
    finally:
        host.halt.clear()
        host.world.agent_ready(host.node)


# A launch


def test_every_step_of_a_launch_has_its_name(
    host: Mortal, image: TrustedImage
) -> None:
    host.halt.clear()
    server = launch(host.world, image)
    assert ends(host, server, image) == ""
    walked = set(host.halt.walked())
    assert set(steps.SPAWN) <= walked
    assert {step for step in walked if step.startswith("spawn: ")} == set(
        steps.COMPUTE_SPAWN
    )


@pytest.mark.parametrize(
    "step",
    short(
        (*steps.SPAWN, *steps.COMPUTE_SPAWN),
        (
            "spawn: download under way",
            "start: secrets defined",
        ),
    ),
)
def test_the_agent_dies(host: Mortal, image: TrustedImage, step: str) -> None:
    why = dies(host, image, step, "agent")
    late = ("spawn: launch", "spawn: ask started", "spawn: end", "started:")
    # once the guest was let in it goes on
    if not step.startswith((*late, "spawn: start", "spawn: begin")):
        assert why


@pytest.mark.parametrize(
    "step",
    short(
        (*steps.SPAWN, *steps.COMPUTE_SPAWN),
        ("make: disk written",),
    ),
)
def test_nova_compute_dies(
    host: Mortal, image: TrustedImage, step: str
) -> None:
    why = dies(host, image, step, "nova-compute")
    assert "hook.launch.broken-off" in why or step == "spawn: end", why


def test_qemu_dies_right_after_its_start(
    host: Mortal, image: TrustedImage
) -> None:
    why = dies(host, image, "spawn: launched", "qemu")
    assert "hook.launch.ended" in why


# Somebody is gone


@pytest.mark.parametrize(
    ("who", "step", "event"),
    [
        ("kms", "key: ask for key", "agent.kms."),
        ("attest", "key: ask for key", "kms."),
        ("glance", "spawn: download under way", "hook.image."),
    ],
)
def test_gone_in_the_middle(
    host: Mortal, image: TrustedImage, who: str, step: str, event: str
) -> None:
    product, control = host.product, host.cloud.controller
    with host.standing(step):
        server = launch(host.world, image)
    try:
        if who == "glance":
            host.cloud.processes.stop("glance")
        else:
            {"kms": product.stop_kms, "attest": product.stop_attest}[who]()
        host.halt.go()
        found = host.settled(server)
    finally:
        host.halt.go()
        if who == "glance":
            control.web("glance")
        else:
            {"kms": product.start_kms, "attest": product.start_attest}[who]()
    if step != "spawn: download under way" or found.status == "ERROR":
        # what had been sent may have been all
        assert event in guest.fault(found), guest.fault(found)
    ends(host, server, image)
    host.halt.clear()
    host.world.agent_ready(host.node)


# The disk is full


@pytest.fixture
def small(host: Mortal) -> collections.abc.Iterator[Small]:
    with host.small() as small:
        yield small


@pytest.mark.parametrize(
    ("step", "event"),
    [
        ("spawn: download", "hook.image.download"),
        ("make: disk", "agent.overlay.write"),
    ],
)
def test_full_at_a_launch(
    host: Mortal, image: TrustedImage, small: Small, step: str, event: str
) -> None:
    with host.standing(step):
        server = launch(host.world, image)
    small.fill()
    try:
        host.halt.go()
        found = host.settled(server)
    finally:
        small.free()
        host.halt.clear()
    why = guest.fault(found)
    assert event in why
    assert "No space left on device" in why
    ends(host, server, image)
    host.world.agent_ready(host.node)


def test_full_at_a_snapshot(
    host: Mortal, image: TrustedImage, small: Small
) -> None:
    """The guest goes on; there is no image; the next one is made."""
    server = host.world.boots("full", image)
    with host.standing("copy: disk"):
        made = host.world.tenant.compute.create_server_image(server.id, "full")
    small.fill()
    try:
        host.halt.go()
        assert host.settled(server).status == "ACTIVE"
    finally:
        small.free()
        host.halt.clear()
    assert no_image(host, made.id)
    assert "agent.overlay.write" in why(host, server)
    assert server.id in host.world.running_guests()
    assert copies(host, server) == []
    made = host.world.tenant.compute.create_server_image(server.id, "full")
    assert host.settled(server).status == "ACTIVE"
    assert not no_image(host, made.id)
    host.world.delete(server)
    host.nothing_left(server)


# A snapshot


def no_image(host: Mortal, image_id: str) -> bool:
    found = host.world.tenant.image.get(f"/images/{image_id}")
    return found.status_code == 404 or found.json()["status"] != "active"


def why(host: Mortal, server: typing.Any) -> str:
    """What the server's action log says of its last action."""
    compute = host.world.admin.compute
    last = next(iter(compute.server_actions(server.id)))
    found = compute.get_server_action(last.request_id, server.id)
    return f"{found.events} {found.message}"


def copies(host: Mortal, server: typing.Any) -> list[str]:
    folder = host.node.folder / "instances" / server.id
    if not folder.exists():
        folder = host.node.path(str(host.cloud.where.instances / server.id))
    return [
        path.name
        for path in folder.iterdir()
        if path.name.startswith("snapshot-")
    ]


@pytest.fixture(scope="module")
def server(
    host: Mortal, image: TrustedImage
) -> collections.abc.Iterator[typing.Any]:
    made = host.world.boots("copied", image)
    yield made
    host.world.delete(made)
    host.nothing_left(made)


@pytest.mark.parametrize("victim", ["agent", "nova-compute", "qemu"])
@pytest.mark.parametrize(
    "step",
    short(
        (*steps.SNAPSHOT_LIVE, *steps.COMPUTE_SNAPSHOT),
        ("copy: block copy",),
    ),
)
def test_death_in_a_snapshot(
    host: Mortal,
    server: typing.Any,
    image: TrustedImage,
    step: str,
    victim: str,
) -> None:
    """No half image is left active, no copy, no secret; the server is as
    before, and can be copied again."""
    compute = host.world.tenant.compute
    with host.standing(step):
        made = compute.create_server_image(server.id, "broken")
    host.kill(victim, server)
    host.halt.go()
    host.revive(victim)
    found = host.settled(server)
    host.halt.clear()
    assert copies(host, server) == []
    assert host.node.virsh("secret-list").stdout.strip() == ""
    if victim == "qemu":
        assert found.status in ("SHUTOFF", "ACTIVE"), found.status
    else:
        assert found.status == "ACTIVE", guest.fault(found)
    host.world.tenant.image.delete_image(made.id, ignore_missing=True)
    host.world.agent_ready(host.node)
    compute.reboot_server(server.id, "HARD")
    assert host.settled(server).status == "ACTIVE"


# A cold move


@pytest.fixture(scope="module")
def other(host: Mortal, second_host: Node) -> collections.abc.Iterator[Mortal]:
    other = Mortal(host.world, second_host)
    other.begin()
    yield other
    other.end()


@pytest.fixture
def moving(
    host: Mortal, other: Mortal, image: TrustedImage
) -> collections.abc.Iterator[typing.Any]:
    """On the one host, and about to go to the other."""
    world = host.world
    world.only(host.node)
    made = world.boots("moving", image)
    world.only(host.node, other.node)
    yield made
    world.only(host.node)
    world.delete(made)
    for one in (host, other):
        one.nothing_left(made)


#: Nothing becomes larger here.
ARRIVE = (
    *(step for step in steps.ARRIVE if not step.startswith("resize:")),
    *steps.COMPUTE_ARRIVE,
)


def moves(
    world: World, at: Mortal, to: Mortal, server: typing.Any, step: str
) -> None:
    with at.standing(step):
        world.admin.compute.migrate_server(server.id, host=to.node.name)


def runs_on(at: Mortal, server: typing.Any, image: TrustedImage) -> None:
    found = at.settled(server)
    assert found.status == "ACTIVE", guest.fault(found)
    assert found.hypervisor_hostname == at.node.name
    guest.wait_console(at.world.admin, found, image.token)
    assert at.node.virsh("secret-list").stdout.strip() == ""


@pytest.mark.parametrize(
    "step", short(steps.COMPUTE_LEAVE, ("leave: copied",))
)
def test_the_source_dies(
    host: Mortal,
    other: Mortal,
    moving: typing.Any,
    image: TrustedImage,
    step: str,
) -> None:
    """The guest runs where it was, and nothing is where it was to go."""
    moves(host.world, host, other, moving, step)
    host.kill("nova-compute")
    host.halt.go()
    host.revive("nova-compute")
    found = host.settled(moving)
    if found.status == "SHUTOFF":
        host.world.tenant.compute.start_server(moving.id)
    runs_on(host, moving, image)
    other.nothing_left(moving)
    host.world.agent_ready(host.node)


@pytest.mark.parametrize(
    "step",
    short(ARRIVE, ("start: secrets defined",)),
)
def test_the_agent_of_the_destination_dies(
    host: Mortal,
    other: Mortal,
    moving: typing.Any,
    image: TrustedImage,
    step: str,
) -> None:
    """There and off, or running; and reverted it runs where it was."""
    moves(host.world, other, other, moving, step)
    other.kill("agent")
    other.halt.go()
    other.revive("agent")
    found = other.settled(moving)
    assert found.status == "VERIFY_RESIZE", guest.fault(found)
    assert other.node.virsh("secret-list").stdout.strip() == ""
    host.world.agent_ready(other.node)
    host.world.tenant.compute.revert_server_resize(moving.id)
    runs_on(host, moving, image)
    other.nothing_left(moving)


@pytest.mark.parametrize(
    "step",
    short(ARRIVE, ("arrive: ask start",)),
)
def test_nova_compute_of_the_destination_dies(
    host: Mortal,
    other: Mortal,
    moving: typing.Any,
    image: TrustedImage,
    step: str,
) -> None:
    """nova's own word for a move that failed, and ours for why; with a
    hard reboot it goes on there."""
    moves(host.world, other, other, moving, step)
    other.kill("nova-compute")
    other.halt.go()
    other.revive("nova-compute")
    found = other.settled(moving)
    assert found.status == "ERROR"
    assert "hook.launch.broken-off" in guest.fault(found)
    assert other.node.virsh("secret-list").stdout.strip() == ""
    host.world.agent_ready(other.node)


# After all of it


def test_nothing_is_in_the_clear(
    host: Mortal, image: TrustedImage, server: typing.Any
) -> None:
    world, node = host.world, host.node
    disk = node.folder / "instances" / server.id / "disk"
    needles = [
        Needle("marker", image.marker),
        *key_needles(
            "DEK",
            overlay_write.dek(world, image.key_id),
            world.glance_store / image.id,
        ),
        *key_needles(
            "overlay key",
            overlay_write.disk_key(world, node, server.id),
            disk,
        ),
    ]
    with plant([world.glance_store, world.cloud.where.tmp]) as planted:
        search = Search(
            default_roots(world.cloud.base),
            [world.product.workstation],
            [*needles, *planted.needles],
        )
        hits = search.run()
        assert planted.missing(hits) == []
        assert planted.others(hits) == []
