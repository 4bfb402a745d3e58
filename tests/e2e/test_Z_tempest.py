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
"""The short form of ``tox -e tempest``: peers' tests with our driver.

All of them pass with nova's own, which ``tox -e tempest -- --short`` shows.
"""

from __future__ import annotations

import pathlib

import pytest

from tests.minicloud.story import Story
from tests.minicloud.world import World
from tests.tempest.run import SHORT, Suite

VOLUMES = True
pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(900)]


def test_peers_tests_pass(
    world: World, story: Story, tmp_path: pathlib.Path
) -> None:
    story.ready()
    suite = Suite(world.cloud, tmp_path / "tempest")
    suite.configure()
    found = suite.run("ours", SHORT, jobs=2, timeout=600)
    assert {test for test, word in found.items() if word == "fail"} == set()
    assert sum(word == "success" for word in found.values()) >= 10
