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
"""The short form of ``tox -e model``: a few random operations and kills."""

from __future__ import annotations

import pytest

from tests.minicloud.node import Node
from tests.minicloud.story import Story
from tests.minicloud.world import World
from tests.model.run import play

MOVES = True
pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(900)]
#: The same operations in every run; the long form draws its own.
SEED = 20


def test_random_operations(
    world: World, story: Story, second_host: Node
) -> None:
    """The captured output repeats the run's protocol."""
    story.ready()
    model = play(world, SEED, instances=3, operations=12, kills=0.2)
    assert model.wrong == []
    assert any(step.killed for step in model.steps)
