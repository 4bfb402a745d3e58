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

import pathlib
import shutil

import pytest

from tests.unit.mh_kms.launch import Launch
from tests.unit.mh_kms.world import World


@pytest.fixture(scope="session")
def synced(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A state folder as ``db sync`` leaves it, to copy."""
    base = tmp_path_factory.mktemp("kms")
    World(base).sync()
    return base


@pytest.fixture
def world(synced: pathlib.Path, tmp_path: pathlib.Path) -> World:
    for name in ("kms.sqlite", "kek"):
        shutil.copy2(synced / name, tmp_path / name)
    one = World(tmp_path)
    one.start()
    return one


@pytest.fixture
def launch(world: World) -> Launch:
    return Launch(world)
