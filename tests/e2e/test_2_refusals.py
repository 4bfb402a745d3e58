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
"""Every refusal, by whom it is meant, and the launch that then succeeds."""

from __future__ import annotations

import pytest

from tests.minicloud import refusals
from tests.minicloud.refusals import Refusal
from tests.minicloud.story import Story
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import World

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    "one", refusals.load(), ids=lambda one: one.case.__name__ + ":" + one.event
)
def test_refused(world: World, story: Story, one: Refusal) -> None:
    assert refusals.try_one(world, story.ready(), one).startswith(one.event)


def test_everything_is_put_right(world: World) -> None:
    world.close()
    # nova may list a server for a moment after it is gone
    wait_for(
        "no server left",
        lambda: not list(world.admin.compute.servers(all_projects=True)),
        30,
    )
