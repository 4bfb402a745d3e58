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

from tests.e2e.deaths import (
    copies,
    dies,
    ends,
    goes_back,
    gone,
    key_ids,
    key_of,
    may_leave_a_key,
    moves,
    no_image,
    reverts,
    runs_at,
    runs_on,
    why,
)
from tests.fixture import steps
from tests.minicloud import bootimage, guest, overlay_write
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
from tests.minicloud.trusted import wait_for
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


@pytest.fixture(scope="module")
def large(ready: World, image: TrustedImage) -> TrustedImage:
    """More than the sockets between Glance and nova hold."""
    path, token, marker = ready.boot_disk("large")
    size = 32 << 20
    bootimage.write(path, token.encode(), size, marker=marker, fill="random")
    return ready.create_image(
        "large", {"id": image.key_id}, disk=(path, token, marker)
    )


def short(every: tuple[str, ...], few: tuple[str, ...]) -> tuple[str, ...]:
    """Every step, or those that stand for the others."""
    assert set(few) <= set(every)
    return every if ALL else few


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
    host: Mortal, large: TrustedImage, who: str, step: str, event: str
) -> None:
    with host.standing(step):
        server = launch(host.world, large)
    with gone(host, who):
        found = host.settled(server)
    assert found.status == "ERROR"
    assert event in guest.fault(found), guest.fault(found)
    ends(host, server, large)
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
    """No half image is left active, no copy, no secret, no key; the cause
    is stated; the server is as before, and can be copied again."""
    compute = host.world.tenant.compute
    before = key_ids(host.world)
    with host.standing(step):
        made = compute.create_server_image(server.id, "broken")
    host.kill(victim, server)
    host.halt.go()
    host.revive(victim)
    found = host.settled(server)
    host.halt.clear()
    # an agent that nova-compute no longer waits for ends that by itself
    wait_for("no copy", lambda: copies(host, server) == [], 30)
    wait_for(
        "no secret",
        lambda: host.node.virsh("secret-list").stdout.strip() == "",
        30,
    )
    if victim == "qemu":
        assert found.status in ("SHUTOFF", "ACTIVE"), found.status
    else:
        assert found.status == "ACTIVE", guest.fault(found)
    host.world.agent_ready(host.node)
    if no_image(host, made.id):
        assert host.world.events_in(why(host, server)), why(host, server)
    left = key_ids(host.world) - before - key_of(host, made.id)
    assert not left or may_leave_a_key(victim, step)
    host.world.tenant.image.delete_image(made.id, ignore_missing=True)
    compute.reboot_server(server.id, "HARD")
    assert host.settled(server).status == "ACTIVE"


@pytest.mark.parametrize(
    ("who", "step", "event"),
    [
        ("glance", "snapshot: store", "hook.snapshot.service"),
        *(
            [
                ("attest", "snapshot: ask for key", "kms."),
                ("kms", "register: new key", "agent.kms."),
            ]
            if ALL
            else []
        ),
    ],
)
def test_gone_in_a_snapshot(
    host: Mortal, server: typing.Any, who: str, step: str, event: str
) -> None:
    """The guest goes on; no image, no key, and the log says why."""
    before = key_ids(host.world)
    with host.standing(step):
        made = host.world.tenant.compute.create_server_image(server.id, "gone")
    with gone(host, who):
        assert host.settled(server).status == "ACTIVE"
    host.halt.clear()
    assert no_image(host, made.id)
    assert event in why(host, server)
    assert copies(host, server) == []
    assert key_ids(host.world) == before
    assert server.id in host.world.running_guests()
    assert host.node.virsh("secret-list").stdout.strip() == ""
    host.world.tenant.image.delete_image(made.id, ignore_missing=True)
    host.world.agent_ready(host.node)


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


@pytest.fixture
def moved(
    host: Mortal, other: Mortal, moving: typing.Any
) -> tuple[Mortal, Mortal, typing.Any]:
    """It has arrived, and nobody has confirmed that."""
    host.world.admin.compute.migrate_server(moving.id, host=other.node.name)
    found = other.settled(moving)
    assert found.status == "VERIFY_RESIZE", guest.fault(found)
    return host, other, moving


@pytest.mark.parametrize(
    "step", short(steps.COMPUTE_AWAY, ("destroy: ask forget",))
)
def test_nova_compute_dies_in_a_revert(
    moved: tuple[Mortal, Mortal, typing.Any], image: TrustedImage, step: str
) -> None:
    """It is reverted all the same, by nova-compute's successor."""
    host, other, server = moved
    reverts(host.world, other, server, step)
    found = host.settled(server)
    assert found.status == "ACTIVE", guest.fault(found)
    runs_on(host, server, image)
    other.nothing_left(server)
    found = host.world.admin.compute.get_server(server.id)
    assert found.hypervisor_hostname == host.node.name
    host.world.agent_ready(other.node)


@pytest.mark.parametrize("step", short(steps.COMPUTE_BACK, ()))
def test_nova_compute_dies_when_it_comes_back(
    moved: tuple[Mortal, Mortal, typing.Any], image: TrustedImage, step: str
) -> None:
    """It is at home, the server says why, and a hard reboot starts it."""
    host, other, server = moved
    reverts(host.world, host, server, step)
    found = host.settled(server)
    assert found.status == "ERROR"
    assert "hook.launch.broken-off" in guest.fault(found)
    host.world.agent_ready(host.node)
    host.world.tenant.compute.reboot_server(server.id, "HARD")
    host.settled(server)
    runs_on(host, server, image)
    other.nothing_left(server)


@pytest.mark.parametrize("step", short(steps.COMPUTE_LEAVE, ()))
def test_the_agent_of_the_source_dies(
    host: Mortal,
    other: Mortal,
    moving: typing.Any,
    image: TrustedImage,
    step: str,
) -> None:
    """It is there, or has not gone: nothing in between."""
    moves(host.world, host, other, moving, step)
    host.kill("agent")
    host.halt.go()
    found = host.settled(moving)
    host.revive("agent")
    assert found.status in ("VERIFY_RESIZE", "ACTIVE"), guest.fault(found)
    goes_back(host, other, moving, image)


@pytest.mark.skipif(not ALL, reason="with MH_FAULTS=all")
def test_nova_compute_of_the_source_is_away_when_it_is_asked(
    host: Mortal, other: Mortal, moving: typing.Any, image: TrustedImage
) -> None:
    """What waits for it is done when it is back."""
    compute = host.world.admin.compute
    host.kill("nova-compute")
    compute.migrate_server(moving.id, host=other.node.name)

    def prepared() -> bool:
        last = next(iter(compute.server_actions(moving.id)))
        found = compute.get_server_action(last.request_id, moving.id)
        return any(
            one["event"] == "compute_prep_resize" and one["finish_time"]
            for one in found.events
        )

    wait_for("the destination's part", prepared, 60)
    host.revive("nova-compute")
    found = host.settled(moving)
    assert found.status == "VERIFY_RESIZE", guest.fault(found)
    runs_at(other, moving, image)
    goes_back(host, other, moving, image)


@pytest.mark.skipif(not ALL, reason="with MH_FAULTS=all")
@pytest.mark.parametrize("end", ["source", "destination"])
def test_qemu_dies_in_a_cold_move(
    host: Mortal,
    other: Mortal,
    moving: typing.Any,
    image: TrustedImage,
    end: str,
) -> None:
    at = host if end == "source" else other
    step = "leave: begin" if end == "source" else "arrive: launched"
    moves(host.world, at, other, moving, step)
    at.kill("qemu", moving)
    at.halt.go()
    found = host.settled(moving)
    assert found.status == "VERIFY_RESIZE", guest.fault(found)
    if end == "source":
        runs_at(other, moving, image)
    goes_back(host, other, moving, image)


@pytest.mark.skipif(not ALL, reason="with MH_FAULTS=all")
@pytest.mark.parametrize(
    ("who", "event"),
    [("kms", "agent.kms."), ("attest", "kms."), ("glance", "hook.image.")],
)
def test_gone_in_a_cold_move(
    host: Mortal,
    other: Mortal,
    moving: typing.Any,
    image: TrustedImage,
    who: str,
    event: str,
) -> None:
    """It is there, off, and the server says why."""
    host.world.forget_base(image.id, other.node)
    moves(host.world, other, other, moving, "key: ask for key")
    with gone(other, who):
        found = other.settled(moving)
    assert found.status == "VERIFY_RESIZE", guest.fault(found)
    assert event in found.metadata["mh_refused"]
    assert moving.id not in other.node.virsh("list", "--uuid").stdout
    assert other.node.virsh("secret-list").stdout.strip() == ""
    goes_back(host, other, moving, image)


@pytest.mark.skipif(not ALL, reason="with MH_FAULTS=all")
def test_full_on_arrival(
    host: Mortal, other: Mortal, moving: typing.Any, image: TrustedImage
) -> None:
    """It runs on where it was, its log says why, and it can go later."""
    with other.small() as small:
        moves(host.world, host, other, moving, "leave: copy")
        small.fill()
        try:
            host.halt.go()
            found = host.settled(moving)
        finally:
            small.free()
    assert found.status == "ACTIVE", guest.fault(found)
    actions = host.world.admin.compute.server_actions(moving.id)
    last = next(one for one in actions if one.action == "migrate")
    said = host.world.admin.compute.get_server_action(
        last.request_id, moving.id
    )
    assert "hook.migrate.copy" in str(said.events)
    assert "No space left on device" in str(said.events)
    goes_back(host, other, moving, image)


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
