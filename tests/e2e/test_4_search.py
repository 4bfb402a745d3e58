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
"""The search: nothing in the clear, and what is planted is found."""

from __future__ import annotations

import pytest

from tests.minicloud import guest
from tests.minicloud.searches import Searches
from tests.minicloud.story import Story
from tests.minicloud.world import World

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def searches(world: World, story: Story) -> Searches:
    """With a guest that runs, as after the story."""
    if story.server is None or not any(
        server.id == story.server.id
        for server in world.admin.compute.servers(all_projects=True)
    ):
        story.server = world.boots("searched", story.ready())
    guest.wait_status(world.admin, story.server, "ACTIVE")
    return Searches(story)


def test_while_a_trusted_guest_runs(searches: Searches) -> None:
    assert "was found" in searches.running()


def test_after_its_deletion(searches: Searches) -> None:
    assert "was found" in searches.deleted()
