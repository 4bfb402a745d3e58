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
"""The agent that the benchmark compares with: the seed's own design."""

import pytest

from mh_nova.agent.launch import Launcher
from tests.bench import seed_agent
from tests.functional.mh_nova.agent.world import World


def test_it_copies_the_image_and_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it makes is on record as any disk: the benchmark launches it."""
    world.make()
    ours = world.disk.stat().st_blocks
    world.launcher.forget(world.instance)
    world.disk.unlink()
    monkeypatch.setattr(Launcher, "_make_disk", seed_agent._copying)
    world.make()
    assert world.disk.stat().st_blocks > ours
    assert world.store.instance(world.instance).made
    world.start()
    assert len(world.secrets.defined[world.instance]) == 2
