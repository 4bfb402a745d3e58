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
"""Everybody who takes part in a live migration dies at every named step.

What is seen afterwards is what matters: one host has the guest, which goes
on; nothing of it is anywhere else; one host holds the lease; nova knows, and
the next move goes well, since every case but the first begins with one.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import os
import typing

import pytest

from tests.e2e.moving import (
    ask,
    clean,
    count,
    crawl,
    create_image,
    host_of,
    move,
    reasons,
    settle,
)
from tests.fixture import steps
from tests.minicloud import guest
from tests.minicloud.mortal import Mortal
from tests.minicloud.node import Node
from tests.minicloud.process import CloudError
from tests.minicloud.story import Story
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import TrustedImage, World

#: Instances move between node1 and node3 here; see conftest.
MOVES = True
pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]
#: Every case, and not only those that differ most.
ALL = os.environ.get("MH_FAULTS") == "all"
RUNNING = "running"
SERVICES = ("kms", "attest")
#: Instead of nova's minute: how long a source waits for a destination that
#: died, seconds.
PATIENCE = 20


@dataclasses.dataclass(frozen=True)
class Fault:
    """
    :param step: of the host's agent, by verb and record, or nova-compute,
        by method; or ``running``: memory is crossing.
    :param at: host of the step.
    :param dies: ``agent``, ``nova-compute`` and the guest's ``qemu`` of
        that host, ``kms`` and ``attest`` of theirs.
    :param end: where the guest is at last.
    """

    step: str
    at: str
    dies: str
    end: str
    status: str = "ACTIVE"
    short: bool = False

    def __str__(self) -> str:
        return f"{self.step}-{self.dies}-{self.at}"


#: Once one of these has begun, the guest is at its destination.
MOVED = (
    "post_live_migration",
    "post_live_migration_at_source",
    "post_live_migration_at_destination",
    "migrate-left",
    "forget",
    "started",
)
#: Those that differ most, which are not walked with the others only.
SHORT = (
    # libvirt asks the destination's agent
    ("migrate-in: agent.admit.passed", "agent"),
    # the guest has moved
    ("post_live_migration: begin", "nova-compute"),
)


def named(at: str, dies: str, *every: str) -> list[Fault]:
    """One at each step; where the guest is then says the step."""
    found = []
    for step in every:
        within = step.partition(":")[0]
        moved = within in MOVED or step == "live_migration: end"
        # nova itself gives up, and says so; the guest runs on
        given_up = dies == "nova-compute" and within == MOVED[2]
        found.append(
            Fault(
                *(step, at, dies, "node3" if moved else "node1"),
                status="ERROR" if given_up else "ACTIVE",
                short=(step, dies) in SHORT,
            )
        )
    return found


FAULTS = (
    *named("node3", "agent", *steps.LIVE_ARRIVE),
    *named("node3", "nova-compute", *steps.COMPUTE_LIVE_ARRIVE),
    *named("node1", "agent", *steps.LIVE_LEAVE),
    *named("node1", "nova-compute", *steps.COMPUTE_LIVE_LEAVE),
    # whom the agents ask
    *named("node3", "kms", "prepare: agent.launch.prepared"),
    *named("node3", "attest", "prepare: agent.launch.prepared"),
    *named("node1", "attest", "live_migration: begin"),
    *named("node1", "kms", "post_live_migration: begin"),
    # the agent is away while nova-compute is about to ask it
    *named("node1", "agent", "post_live_migration: begin"),
    *named("node3", "agent", "post_live_migration_at_destination: begin"),
    # memory and blocks are crossing
    Fault(RUNNING, "node1", "nova-compute", "node1", short=True),
    Fault(RUNNING, "node1", "agent", "node1"),
    Fault(RUNNING, "node3", "nova-compute", "node1"),
    Fault(RUNNING, "node3", "agent", "node1"),
    Fault(RUNNING, "node3", "qemu", "node1"),
)


@pytest.fixture(scope="module")
def image(world: World, story: Story, second_host: Node) -> TrustedImage:
    story.ready()
    return create_image(world, "faults")


@pytest.fixture(scope="module")
def hosts(
    world: World, second_host: Node, image: TrustedImage
) -> collections.abc.Iterator[dict[str, Mortal]]:
    """Both enrolled, with programs that stop where they are told to."""
    options = f"[DEFAULT]\nrpc_response_timeout = {PATIENCE}\n"
    made = [
        Mortal(world, node, options) for node in (world.node1, world.node3)
    ]
    for host in made:
        host.begin()
    yield {host.node.name: host for host in made}
    for host in made:
        host.end()


@pytest.fixture(scope="module")
def server(
    world: World, image: TrustedImage, hosts: dict[str, Mortal]
) -> collections.abc.Iterator[typing.Any]:
    made = world.boots("faults", image, conn=world.operator, host="node1")
    count(world, made)
    yield made
    world.delete(made)


def kill(host: Mortal, who: str, server: typing.Any) -> None:
    if who in SERVICES:
        host.cloud.processes.kill(f"mh-{who}")
    else:
        host.kill(who, server)


def revive(host: Mortal, who: str) -> None:
    if who == "kms":
        host.product.start_kms()
    elif who == "attest":
        host.product.start_attest()
    elif who == "agent":
        log = host.node.log("mh-agent")
        mark = log.stat().st_size
        host.revive(who)
        wait_for(
            "a migration certificate",
            lambda: (
                "agent.migrate.certified" in host.world.log_since(log, mark)
            ),
        )
    else:
        host.revive(who)


def ask_only(world: World, server: typing.Any) -> None:
    """Without waiting for nova's checks, in which somebody may stand."""
    answer = world.admin.compute.post(
        f"/servers/{server.id}/action",
        json={"os-migrateLive": {"host": "node3", "block_migration": "auto"}},
        microversion="2.34",
    )
    assert answer.status_code == 202, answer.text


def under_way(world: World, server: typing.Any) -> None:
    world.node1.virsh("migrate-setspeed", server.id, "1")
    ask(world, server)
    wait_for(
        "the guest at the destination",
        lambda: server.id in world.node3.virsh("list", "--uuid").stdout,
        60,
    )
    crawl(world, server)
    world.pause(2)


def give_up(world: World, server: typing.Any) -> None:
    """End a migration that nothing else ends."""
    found = world.admin.compute.get(
        f"/servers/{server.id}/migrations", microversion="2.59"
    ).json()["migrations"]
    for one in found:
        world.admin.compute.delete(
            f"/servers/{server.id}/migrations/{one['id']}",
            microversion="2.24",
        )


def happen(host: Mortal, server: typing.Any, fault: Fault) -> None:
    """Let it die there, and be started again."""
    world = host.world
    if fault.step == RUNNING:
        under_way(world, server)
        kill(host, fault.dies, server)
        revive(host, fault.dies)
        give_up(world, server)
        return
    with host.standing(fault.step):
        ask_only(world, server)
    kill(host, fault.dies, server)
    host.halt.go()
    if fault.dies != "nova-compute":
        # it is away until nova has done what it does without it
        idle(world, server)
    revive(host, fault.dies)
    host.halt.clear()


def idle(world: World, server: typing.Any) -> typing.Any:
    def test() -> typing.Any:
        found = world.admin.compute.get_server(server.id)
        return found if found.task_state is None else None

    # nova waits a minute for each of two that do not answer
    return wait_for("the end of the task", test, 240)


def holders(
    world: World, image: TrustedImage, server: typing.Any
) -> list[str]:
    """Hosts that the key server thinks the guest may run on."""
    found = world.kms("GET", f"/v1/keys/{image.key_id}/instances/{server.id}")
    return [
        lease["host"] for lease in found["leases"] if not lease["ended_at"]
    ]


def ready(world: World, server: typing.Any) -> None:
    """On node1, whatever became of it before."""
    for node in (world.node1, world.node3):
        wait_for(
            f"{node.name} trusted",
            lambda node=node: world.level(node) == "trusted",
        )
        world.wait_trait(node, True)
    world.pause(world.CACHE)
    found = idle(world, server)
    if found.status == "ERROR":
        world.admin.compute.reset_server_state(server.id, "active")
    if host_of(world, server) != "node1":
        move(world, server, "node1")
    # MiB/s; whatever a case before said
    world.node1.virsh("migrate-setspeed", server.id, "1024")


def walked(host: Mortal, *lists: tuple[str, ...]) -> set[str]:
    """Of those verbs and methods that the lists are about."""
    about = {step.partition(":")[0] for one in lists for step in one}
    return {
        step for step in host.halt.walked() if step.partition(":")[0] in about
    }


def test_every_step_has_its_name(
    world: World, hosts: dict[str, Mortal], server: typing.Any
) -> None:
    """Who adds one adds it to its list, and so to those that are died at."""
    ready(world, server)
    for host in hosts.values():
        host.halt.clear()
    move(world, server, "node3")
    for name, lists in (
        ("node1", (steps.LIVE_LEAVE, steps.COMPUTE_LIVE_LEAVE)),
        ("node3", (steps.LIVE_ARRIVE, steps.COMPUTE_LIVE_ARRIVE)),
    ):
        known = {step for one in lists for step in one}
        # the source clears up after nova has said that it has moved
        with contextlib.suppress(CloudError):
            wait_for(
                "every step",
                lambda host=hosts[name], lists=lists, known=known: (
                    known <= walked(host, *lists)
                ),
            )
        found = walked(hosts[name], *lists)
        assert known <= found
        assert found - known <= set(steps.LIVE_BASE)


@pytest.mark.parametrize(
    "fault", [one for one in FAULTS if ALL or one.short], ids=str
)
def test_dies(
    world: World,
    image: TrustedImage,
    hosts: dict[str, Mortal],
    server: typing.Any,
    fault: Fault,
) -> None:
    ready(world, server)
    happen(hosts[fault.at], server, fault)
    idle(world, server)
    wait_for(fault.end, lambda: host_of(world, server) == fault.end, 60)
    node, other = world.node1, world.node3
    if fault.end == "node3":
        node, other = other, node
    assert server.id in node.virsh("list", "--uuid").stdout
    clean(world, server, other)
    # where nobody could say that the guest has arrived, that is noticed
    wait_for(
        "the secrets' end",
        lambda: node.virsh("secret-list").stdout.strip() == "",
        30,
    )
    count(world, server)
    wait_for(
        "one holder",
        lambda: holders(world, image, server) == [fault.end],
        30,
    )
    # by now nova, too, has said all that it has to say
    found = world.admin.compute.get_server(server.id)
    assert found.status == fault.status, guest.fault(found)


@pytest.mark.skipif(not ALL, reason="with MH_FAULTS=all")
def test_qemu_dies_on_the_way(
    world: World,
    image: TrustedImage,
    hosts: dict[str, Mortal],
    server: typing.Any,
) -> None:
    """The guest's own: it is off where it was, with its disk, and starts."""
    ready(world, server)
    under_way(world, server)
    kill(hosts["node1"], "qemu", server)
    idle(world, server)
    wait_for(
        "nova to see that it is off",
        lambda: world.admin.compute.get_server(server.id).status == "SHUTOFF",
        60,
    )
    assert host_of(world, server) == "node1"
    clean(world, server, world.node3)
    assert "hook.migration.broken-off" in reasons(world, server)
    world.tenant.compute.start_server(server.id)
    world.settle(server, "ACTIVE")
    count(world, server)
    assert holders(world, image, server) == ["node1"]


def test_goes_on_after_all_that(
    world: World, image: TrustedImage, server: typing.Any
) -> None:
    """Off and on, from the disk that it arrived on at last."""
    ready(world, server)
    before = count(world, server)
    move(world, server, "node3")
    world.tenant.compute.reboot_server(server.id, "HARD")
    settle(world, server)
    assert count(world, server) > before
