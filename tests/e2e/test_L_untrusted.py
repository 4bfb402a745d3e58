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
"""A host that is not trusted at that moment: after its boot something more
was measured (PCR 4). It gives each operation a reason, and leaves the
instance as it was, so that everything goes on once the host is trusted again.

node1 is that host; ``home`` lives on it, ``back`` has it as the home that a
resize would be reverted to, ``away`` lives on node3 and would come to it.
"""

from __future__ import annotations

import collections.abc
import contextlib
import typing

import pytest
from openstack import exceptions

from tests.e2e.test_5_moves import LARGER, Counting
from tests.e2e.test_6_evacuate import forced_down
from tests.e2e.test_D_suspend import encrypted as encrypted  # noqa: PLC0414
from tests.minicloud.node import Node
from tests.minicloud.story import GRANTED, Story
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import TrustedImage, World

#: Instances move between node1 and node3 here; see conftest.
MOVES = True
pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]

PURPOSES = (
    *("launch", "start", "migrate-in", "resize"),
    *("snapshot", "flatten", "rescue"),
)
KMS = "agent.kms.refused"
FILTER = "scheduler.filter.untrusted"
#: All that nova lets a cold move say.
NO_HOST = "No valid host"


@pytest.fixture(scope="module")
def image(world: World, story: Story, second_host: Node) -> TrustedImage:
    story.ready()
    words = [word for name in PURPOSES for word in ("--purpose", name)]
    key = world.create_key("anything-goes", *words)
    if world.admin.compute.find_flavor(LARGER) is None:
        world.product.openstack(
            "admin",
            *("trusted", "flavor", "create", LARGER),
            *("--ram", "64", "--vcpus", "1", "--disk", "2"),
        )
    return world.create_image("anything-goes", key, "--allow-snapshots")


@contextlib.contextmanager
def only(world: World, *nodes: Node) -> collections.abc.Iterator[None]:
    world.only(*nodes)
    try:
        yield
    finally:
        world.only(*world.cloud.machines)


class Servers(typing.NamedTuple):
    home: Counting
    back: Counting
    away: Counting


@pytest.fixture(scope="module")
def servers(
    world: World, image: TrustedImage, second_host: Node
) -> collections.abc.Iterator[Servers]:
    world.agent_ready(second_host)
    with only(world, world.node1):
        home, back = (world.boots(name, image) for name in ("home", "back"))
    with only(world, second_host):
        away = world.boots("away", image)
    found = Servers(
        *(Counting(world, image, one) for one in (home, back, away))
    )
    for one in found:
        one.booted(0)
    found.back.migrate(second_host)
    found.back.settle("VERIFY_RESIZE")
    found.back.booted()
    yield found
    world.delete(*(one.show() for one in found))


@pytest.fixture(scope="module")
def untrusted(
    world: World, servers: Servers
) -> collections.abc.Iterator[None]:
    """For the rest of the module, but for its last tests."""
    world.node1.tpm.extend(4, b"something else was started")
    try:
        wait_for(
            "node1 untrusted",
            lambda: world.level(world.node1) != "trusted",
            30,
        )
        world.pause(world.CACHE)
        yield
    finally:
        world.node1.tpm.reset()
        world.agent_ready(world.node1)


def allocated(world: World, server: Counting) -> object:
    """What placement holds for it, and on which hosts."""
    found = world.admin.placement.get(f"/allocations/{server.id}").json()
    return {
        host: one["resources"] for host, one in found["allocations"].items()
    }


def released(server: Counting) -> int:
    """How often keys of it went anywhere."""
    return sum(
        record["event"] == GRANTED
        and record["claims"]["instance"] == server.id
        for record in server.world.kms_audit(server.image.key_id)
    )


def image_rows(found: typing.Any) -> object:
    return found.image["id"], found.flavor["original_name"]


def reasons(server: Counting, log: str = "") -> str:
    """Everything nova tells of the last action, its owner's metadata, and
    what the scheduler noted."""
    said = server.show().metadata.get("mh_refused", "")
    return f"{said} {server.reasons()} {log}"


@contextlib.contextmanager
def left(
    world: World, server: Counting, node: Node, event: str
) -> collections.abc.Iterator[None]:
    """Whatever is asked meanwhile is refused for this, and changes
    nothing: not the guest's process, its disk, its rows or its place."""
    log = world.cloud.where.log / "nova-scheduler.log"
    mark = log.stat().st_size
    if "mh_refused" in server.show().metadata:
        world.admin.compute.delete_server_metadata(server.id, ["mh_refused"])
    disk = node.folder / "instances" / server.id / "disk"

    def state() -> object:
        found = server.show()
        return (
            *(found.status, found.compute_host, image_rows(found)),
            *(allocated(world, server), world.pid(node, server)),
            released(server),
            disk.stat().st_ino if disk.exists() else None,
        )

    before = state()
    last = last_request(world, server)
    yield
    wait_for("the request", lambda: last_request(world, server) != last, 30)
    wait_for(
        f"the reason ({event})",
        lambda: event in reasons(server, world.log_since(log, mark)),
        60,
    )
    server.settle(before[0])  # type: ignore[index]
    assert state() == before
    assert world.node1.virsh("secret-list").stdout.strip() == ""


def last_request(world: World, server: Counting) -> str:
    actions = world.admin.compute.server_actions(server.id)
    return str(next(iter(actions)).request_id)


# -- on the host where it runs


@pytest.mark.parametrize(
    "operation",
    ["rebuild", "hard-reboot", "soft-reboot", "snapshot", "shelve", "rescue"],
)
def test_where_it_runs(
    world: World,
    image: TrustedImage,
    servers: Servers,
    untrusted: None,
    operation: str,
) -> None:
    home, compute = servers.home, world.tenant.compute
    calls: dict[str, collections.abc.Callable[[], object]] = {
        "rebuild": lambda: compute.rebuild_server(
            home.id, image=image.id, name="home"
        ),
        "hard-reboot": lambda: compute.reboot_server(home.id, "HARD"),
        "soft-reboot": lambda: compute.reboot_server(home.id, "SOFT"),
        "snapshot": lambda: compute.create_server_image(home.id, "leak"),
        "shelve": lambda: compute.shelve_server(home.id),
        "rescue": lambda: compute.rescue_server(home.id, image_ref=image.id),
    }
    with left(world, home, world.node1, KMS):
        calls[operation]()
    wait_for(
        "no image",
        lambda: (
            "leak" not in [one.name for one in world.tenant.image.images()]
        ),
        20,
    )


def test_resize_where_it_runs(
    world: World, servers: Servers, untrusted: None
) -> None:
    flavor = world.admin.compute.find_flavor(LARGER)
    with (
        only(world, world.node1),
        left(world, servers.home, world.node1, FILTER),
    ):
        world.tenant.compute.resize_server(servers.home.id, flavor.id)


def test_resume(
    world: World, servers: Servers, untrusted: None, encrypted: None
) -> None:
    """What sleeps needs no key to fall asleep, and stays so."""
    home = servers.home
    world.tenant.compute.suspend_server(home.id)
    home.settle("SUSPENDED")
    with left(world, home, world.node1, KMS):
        world.tenant.compute.resume_server(home.id)


def test_reboot_of_what_sleeps(
    world: World, servers: Servers, untrusted: None, encrypted: None
) -> None:
    """It would cost the memory that was saved."""
    with left(world, servers.home, world.node1, KMS):
        world.tenant.compute.reboot_server(servers.home.id, "HARD")


# -- on its way there


@pytest.mark.parametrize("operation", ["migrate", "resize", "live-migration"])
def test_on_its_way(
    world: World,
    servers: Servers,
    untrusted: None,
    second_host: Node,
    operation: str,
) -> None:
    away, admin = servers.away, world.admin.compute
    flavor = admin.find_flavor(LARGER)
    calls: dict[str, collections.abc.Callable[[], object]] = {
        "migrate": lambda: admin.migrate_server(away.id, host="node1"),
        "resize": lambda: world.tenant.compute.resize_server(
            away.id, flavor.id
        ),
        "live-migration": lambda: admin.live_migrate_server(
            away.id, host="node1", block_migration="auto"
        ),
    }
    # it is not placement that says no
    assert world.has_trait(world.node1)
    event = FILTER if operation == "live-migration" else NO_HOST
    with (
        only(world, world.node1),
        left(world, away, second_host, event),
        # nova's API may be the one to say it
        contextlib.suppress(exceptions.BadRequestException),
    ):
        calls[operation]()


def test_evacuated_by_force(
    world: World, servers: Servers, untrusted: None, second_host: Node
) -> None:
    """Past the scheduler; the guest of the host that is said to be down
    goes on, and is not ended when its nova-compute is back."""
    away = servers.away
    second_host.stop_compute()
    forced_down(world, second_host, True)
    try:
        with left(world, away, second_host, KMS):
            answer = world.admin.compute.post(
                f"/servers/{away.id}/action",
                json={"evacuate": {"host": "node1", "force": True}},
                microversion="2.67",
            )
            assert answer.status_code == 200, answer.text
    finally:
        second_host.start_compute()
        forced_down(world, second_host, False)
        world.cloud.wait_computes()
    away.nothing_of_it_on(world.node1)
    away.booted(0)
    away.on(second_host)


def test_unshelved_there(
    world: World, servers: Servers, untrusted: None, second_host: Node
) -> None:
    away = servers.away
    world.tenant.compute.shelve_server(away.id)
    away.settle("SHELVED_OFFLOADED")
    with (
        only(world, world.node1),
        left(world, away, world.node1, FILTER),
    ):
        world.tenant.compute.unshelve_server(away.id)
    away.nothing_of_it_on(world.node1)


# -- back home


def test_reverted_to_it(
    world: World, servers: Servers, untrusted: None, second_host: Node
) -> None:
    """nova has ended the guest on the other host by then: it is home, off,
    its disk that of before the resize."""
    back = servers.back
    world.tenant.compute.revert_server_resize(back.id)
    wait_for("the reason", lambda: KMS in reasons(back), 60)
    wait_for("off", lambda: back.show().status == "SHUTOFF", 60)
    back.on(world.node1)
    back.nothing_of_it_on(second_host)


def test_start(world: World, servers: Servers, untrusted: None) -> None:
    with left(world, servers.back, world.node1, KMS):
        world.tenant.compute.start_server(servers.back.id)


# -- trusted again


def test_everything_goes_on(
    world: World, servers: Servers, untrusted: None, second_host: Node
) -> None:
    """And the guests know of every time they booted before."""
    world.node1.tpm.reset()
    world.agent_ready(world.node1)
    compute = world.tenant.compute
    home, back, away = servers
    if home.show().status == "SUSPENDED":
        compute.resume_server(home.id)
    compute.start_server(back.id)
    with only(world, world.node1):
        compute.unshelve_server(away.id)
        for one in servers:
            one.settle("ACTIVE")
    # a guest that woke up has printed nothing anew
    assert world.pid(world.node1, home)
    away.booted()
    # the boot on the other host was taken back
    back.booted(0)
    with home.asking(world.node1, "start"):
        compute.reboot_server(home.id, "HARD")
        home.settle("ACTIVE")
        home.booted()
