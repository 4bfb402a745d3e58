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

"""What is done to a server while somebody dies, and what is seen then."""

from __future__ import annotations

import collections.abc
import contextlib
import typing

from tests.minicloud import guest
from tests.minicloud.mortal import Mortal, launch
from tests.minicloud.world import TrustedImage, World


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


@contextlib.contextmanager
def gone(host: Mortal, who: str) -> collections.abc.Iterator[None]:
    """Away from now on; the process that stands goes on without it."""
    product, glance = host.product, host.cloud.processes
    stop, start = {
        "kms": (product.stop_kms, product.start_kms),
        "attest": (product.stop_attest, product.start_attest),
        # with whatever it was about to send
        "glance": (
            lambda: glance.kill("glance"),
            lambda: host.cloud.controller.web("glance"),
        ),
    }[who]
    stop()
    try:
        host.halt.go()
        yield
    finally:
        host.halt.go()
        start()


def no_image(host: Mortal, image_id: str) -> bool:
    found = host.world.tenant.image.get(f"/images/{image_id}")
    return found.status_code == 404 or found.json()["status"] != "active"


def why(host: Mortal, server: typing.Any) -> str:
    """What the action log says of the server's last snapshot."""
    compute = host.world.admin.compute
    last = next(
        action
        for action in compute.server_actions(server.id)
        if action.action == "createImage"
    )
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


def key_ids(world: World) -> set[str]:
    return {key["id"] for key in world.kms("GET", "/v1/keys")["keys"]}


def key_of(host: Mortal, image_id: str) -> set[str]:
    """The key of an image that is there."""
    if no_image(host, image_id):
        return set()
    found = host.world.tenant.image.get(f"/images/{image_id}").json()
    return {found["os_encrypt_key_id"]}


def may_leave_a_key(victim: str, step: str) -> bool:
    """ADR 75: a key without an image, which opens nothing."""
    brought = step.startswith(("register: new key is", "register: agent."))
    if victim == "agent":
        return brought
    if victim == "nova-compute":
        # it had said that it was about to store the image
        return step == "snapshot: storing answered"
    return False


def moves(
    world: World, at: Mortal, to: Mortal, server: typing.Any, step: str
) -> None:
    with at.standing(step):
        world.admin.compute.migrate_server(server.id, host=to.node.name)


def reverts(world: World, at: Mortal, server: typing.Any, step: str) -> None:
    """With nova-compute dying at a step of that, and started again."""
    with at.standing(step):
        world.tenant.compute.revert_server_resize(server.id)
    at.kill("nova-compute")
    at.halt.go()
    at.revive("nova-compute")


def runs_on(at: Mortal, server: typing.Any, image: TrustedImage) -> None:
    found = at.settled(server)
    assert found.status == "ACTIVE", guest.fault(found)
    runs_at(at, server, image)


def runs_at(at: Mortal, server: typing.Any, image: TrustedImage) -> None:
    found = at.settled(server)
    assert found.hypervisor_hostname == at.node.name
    guest.wait_console(at.world.admin, found, image.token)
    assert at.node.virsh("secret-list").stdout.strip() == ""


def goes_back(
    host: Mortal, other: Mortal, moving: typing.Any, image: TrustedImage
) -> None:
    """Reverted, where it has moved at all, it runs where it was."""
    for one in (host, other):
        one.halt.clear()
        host.world.agent_ready(one.node)
    found = host.settled(moving)
    if found.status == "VERIFY_RESIZE":
        host.world.tenant.compute.revert_server_resize(moving.id)
    runs_on(host, moving, image)
    other.nothing_left(moving)
