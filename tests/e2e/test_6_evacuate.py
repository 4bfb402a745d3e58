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
"""Leases in the real cloud: evacuation, revocation, and the receipt of a
deletion.  The old host still runs its guest when the server is evacuated.
"""

from __future__ import annotations

import collections.abc
import time
import typing

import pytest

from tests.minicloud import guest
from tests.minicloud.node import Node
from tests.minicloud.story import Story
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import TrustedImage, World

#: Instances move between node1 and node3 here; see conftest.
MOVES = True
pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(900)]

#: Seconds; a guest is stopped at most so long after its last grant.
LEASE = 20
#: What a loaded test machine may take longer, seconds.
SLACK = 20


@pytest.fixture(scope="module")
def image(story: Story, world: World, second_host: Node) -> TrustedImage:
    story.ready()
    key = world.create_key("leased", "--lease", str(LEASE))
    return world.create_image("leased", key)


@pytest.fixture
def server(
    world: World, image: TrustedImage, second_host: Node
) -> collections.abc.Iterator[typing.Any]:
    """On node1, with a lease."""
    world.agent_ready(second_host)
    world.only(world.node1)
    try:
        server = world.boots("leased", image)
    finally:
        world.only(*world.cloud.machines)
    yield server
    world.delete(server)


def audit(
    world: World, image: TrustedImage, server: typing.Any
) -> list[dict[str, typing.Any]]:
    """Records about one server, oldest first."""
    return [
        record
        for record in world.kms_audit(image.key_id)
        if record.get("claims", {}).get("instance") == server.id
    ]


def seen(
    world: World,
    image: TrustedImage,
    server: typing.Any,
    event: str,
    host: str,
) -> list[dict[str, typing.Any]]:
    return [
        record
        for record in audit(world, image, server)
        if (record["event"], record.get("host")) == (event, host)
    ]


def runs_on(node: Node, server: typing.Any) -> bool:
    return server.id in node.virsh("list", "--uuid").stdout.split()


def host_of(world: World, server: typing.Any) -> str:
    found = world.admin.compute.get_server(server.id)
    return str(found.hypervisor_hostname)


def shown(world: World, server: typing.Any) -> dict[str, str]:
    """``openstack trusted server show``"""
    return typing.cast(
        dict[str, str],
        world.product.answer("tenant", "trusted", "server", "show", server.id),
    )


def forced_down(world: World, node: Node, down: bool) -> None:
    for service in world.admin.compute.services(
        binary="nova-compute", host=node.name
    ):
        answer = world.admin.compute.put(
            f"/os-services/{service.id}",
            json={"forced_down": down},
            microversion="2.95",
        )
        assert answer.status_code == 200, answer.text


def evacuated(world: World, server: typing.Any) -> None:
    """nova-compute of node1 is gone, its guest is not."""
    world.node1.stop_compute()
    forced_down(world, world.node1, True)
    world.admin.compute.evacuate_server(server.id, host="node3")
    world.settle(server, "SHUTOFF")
    # nova writes that last
    wait_for("node3", lambda: host_of(world, server) == "node3", 60)
    assert runs_on(world.node1, server)


def returns(world: World, server: typing.Any) -> None:
    """node1's nova-compute is back, and cleans up what was evacuated."""
    world.node1.start_compute()
    forced_down(world, world.node1, False)
    wait_for(
        "the source's cleaning up",
        lambda: world.leftovers(world.node1, server.id) == [],
        60,
    )
    world.cloud.wait_computes()
    world.agent_ready(world.node1)


def test_renewed(
    world: World, image: TrustedImage, server: typing.Any
) -> None:
    """It runs on past its first lease, and past a restart of the agent."""
    begun = time.monotonic()
    assert "node1: until" in shown(world, server)["lease"]
    world.product.stop_agent(world.node1)
    world.product.start_agent(world.node1)
    wait_for(
        "renewals",
        lambda: (
            len(seen(world, image, server, "kms.lease.renewed", "node1")) >= 3
        ),
        4 * LEASE,
    )
    # however soon the renewals came
    time.sleep(max(0.0, LEASE + 1 - (time.monotonic() - begun)))
    assert runs_on(world.node1, server)
    assert shown(world, server)["status"] == "ACTIVE"


def test_evacuated(
    world: World,
    image: TrustedImage,
    server: typing.Any,
    second_host: Node,
) -> None:
    try:
        evacuated(world, server)
        moved = seen(world, image, server, "kms.lease.moved", "node1")
        assert len(moved) == 1
        wait_for(
            "the end of node1's guest",
            lambda: not runs_on(world.node1, server),
            LEASE + SLACK,
        )
        assert seen(world, image, server, "kms.release.lease-moved", "node1")
        before = len(
            seen(world, image, server, "kms.release.granted", "node3")
        )
        assert before
        world.tenant.compute.start_server(server.id)
        world.settle(server, "ACTIVE")
        guest.wait_console(world.admin, server, image.token)
        assert (
            len(seen(world, image, server, "kms.release.granted", "node3"))
            > before
        )
    finally:
        returns(world, server)
    assert runs_on(second_host, server)
    # the receipt of the source, which was not the holder any more
    found = wait_for(
        "the receipt",
        lambda: seen(world, image, server, "kms.lease.erased", "node1"),
    )
    assert found[-1]["held"] is False
    assert "node3: until" in shown(world, server)["lease"]


def test_evacuated_and_cut_off(
    world: World, image: TrustedImage, server: typing.Any
) -> None:
    """No key server, no attestation server, no nova: it stops all the
    same, with an agent that was killed meanwhile."""
    product = world.product
    try:
        evacuated(world, server)
        product.stop_kms()
        product.stop_attest()
        cut = time.monotonic()
        world.node1.kill("mh-agent")
        product.start_agent(world.node1)
        wait_for(
            "the end of node1's guest",
            lambda: not runs_on(world.node1, server),
            LEASE + SLACK,
        )
        assert time.monotonic() - cut < LEASE + SLACK
        log = world.node1.folder / "var/lib/mystery-hill/agent/audit.log"
        assert "agent.lease.stopped" in log.read_text()
    finally:
        product.start_attest()
        product.start_kms()
        returns(world, server)
    world.tenant.compute.start_server(server.id)
    world.settle(server, "ACTIVE")
    guest.wait_console(world.admin, server, image.token)


def test_revoked_by_its_owner(
    world: World, image: TrustedImage, server: typing.Any
) -> None:
    answer = world.product.answer(
        "tenant", "trusted", "server", "revoke", server.id
    )
    assert answer["revoked"] is True
    wait_for(
        "the guest's end",
        lambda: not runs_on(world.node1, server),
        LEASE + SLACK,
    )
    wait_for(
        "nova to notice",
        lambda: world.admin.compute.get_server(server.id).status == "SHUTOFF",
        60,
    )
    reason = wait_for(
        "the reason",
        lambda: (
            "agent.lease.stopped" in shown(world, server)["reason"]
            and shown(world, server)["reason"]
        ),
        30,
    )
    assert "kms.release.lease-revoked" in reason
    assert "revoked by its owner" in reason
    world.tenant.compute.start_server(server.id)
    wait_for(
        "the refusal",
        lambda: "kms.release.revoked" in shown(world, server)["reason"],
        60,
    )
    world.settle(server, "SHUTOFF")
    world.product.answer(
        "tenant", "trusted", "server", "revoke", "--undo", server.id
    )
    world.tenant.compute.start_server(server.id)
    world.settle(server, "ACTIVE")
    guest.wait_console(world.admin, server, image.token)
    found = world.admin.compute.get_server(server.id)
    assert "mh_refused" not in found.metadata


def test_receipt_of_a_deletion(world: World, image: TrustedImage) -> None:
    """Also where the key server is away while the server is deleted."""
    world.only(world.node1)
    one = world.boots("gone", image)
    two = world.boots("gone-too", image)
    world.delete(one)
    assert world.leftovers(world.node1, one.id) == []
    found = wait_for(
        "the receipt",
        lambda: seen(world, image, one, "kms.lease.erased", "node1"),
    )
    assert found[-1]["held"] is True
    world.product.stop_kms()
    try:
        world.delete(two)
        assert world.leftovers(world.node1, two.id) == []
    finally:
        world.product.start_kms()
    wait_for(
        "the receipt",
        lambda: seen(world, image, two, "kms.lease.erased", "node1"),
    )
    world.only(*world.cloud.machines)
