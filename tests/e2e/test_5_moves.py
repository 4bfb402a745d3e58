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
"""An instance that moves from one trusted host to another, cold."""

from __future__ import annotations

import typing

import pytest

from tests.minicloud import guest
from tests.minicloud.node import Node
from tests.minicloud.story import Story
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import PLAIN_FLAVOR, TrustedImage, World

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def image(story: Story) -> TrustedImage:
    return story.ready()


def settle(world: World, server: typing.Any, status: str) -> typing.Any:
    """Wait until no task is left, in the state asked for."""

    def test() -> typing.Any:
        found = world.admin.compute.get_server(server.id)
        return found if found.task_state is None else None

    found = wait_for("the end of the task", test, 90)
    assert found.status == status, guest.fault(found)
    return found


def host_of(world: World, server: typing.Any) -> str:
    found = world.admin.compute.get_server(server.id)
    return str(found.hypervisor_hostname)


def test_plain_moves_as_ever(
    world: World, image: TrustedImage, second_host: Node
) -> None:
    """An ordinary instance: migrated cold, back, and live."""
    compute = world.admin.compute
    picture, token = world.plain_disk()
    server = guest.boot(
        world.admin,
        "plain",
        picture,
        compute.find_flavor(PLAIN_FLAVOR),
        host="node1",
    )
    guest.wait_console(world.admin, server, token)
    compute.migrate_server(server.id, host="node3")
    settle(world, server, "VERIFY_RESIZE")
    assert host_of(world, server) == "node3"
    guest.wait_console(world.admin, server, token)
    compute.revert_server_resize(server.id)
    settle(world, server, "ACTIVE")
    assert host_of(world, server) == "node1"
    compute.live_migrate_server(
        server.id, host="node3", block_migration="auto"
    )
    settle(world, server, "ACTIVE")
    assert host_of(world, server) == "node3"
    guest.delete(world.admin, server)
    world.admin.image.delete_image(picture.id)
