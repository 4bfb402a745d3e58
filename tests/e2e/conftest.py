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
"""One minicloud with the product on it, for all end-to-end tests."""

from __future__ import annotations

import collections.abc
import os
import pathlib

import pytest

from tests.minicloud.cloud import Cloud
from tests.minicloud.node import Node
from tests.minicloud.searches import everywhere, of_every_image
from tests.minicloud.story import Story
from tests.minicloud.trusted import TrustedCloud
from tests.minicloud.world import World


@pytest.fixture(scope="session")
def product(
    request: pytest.FixtureRequest,
) -> collections.abc.Iterator[TrustedCloud]:
    """With Cinder, where a module of the run has ``VOLUMES``."""
    base = os.environ.get("MH_CLOUD_BASE")
    modules = {item.getparent(pytest.Module) for item in request.session.items}
    volumes = any(
        module is not None and getattr(module.obj, "VOLUMES", False)
        for module in modules
    )
    product = TrustedCloud(
        Cloud(pathlib.Path(base) if base else None, volumes=volumes)
    )
    try:
        product.start()
        yield product
    finally:
        product.stop()


@pytest.fixture(scope="session")
def world(
    product: TrustedCloud, tmp_path_factory: pytest.TempPathFactory
) -> collections.abc.Iterator[World]:
    """At the end of it all, whatever was done with an encrypted image: what
    it holds is nowhere in the clear, nor is a key."""
    world = World(product)
    yield world
    if world.images:
        folder = tmp_path_factory.getbasetemp()
        print(everywhere(world, of_every_image(world), [folder]))


@pytest.fixture(scope="session")
def second_host(product: TrustedCloud, world: World) -> Node:
    """node3, trusted as node1 is; it stays for the rest of the run."""
    node = product.second_host()
    world.agent_ready(node)
    return node


@pytest.fixture(scope="module", autouse=True)
def hosts(request: pytest.FixtureRequest, world: World) -> None:
    """node3 stays up once it is; only modules about moves are to see it."""
    if not world.node3.runs("nova-compute"):
        return
    if getattr(request.module, "MOVES", False):
        world.only(*world.cloud.machines)
    else:
        world.only(world.node1, world.node2)


@pytest.fixture(scope="session")
def story(world: World) -> Story:
    """Shared by the tests of the main job, which go on from one another."""
    return Story(world)
