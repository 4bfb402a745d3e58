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
"""Nova's image cache over our disks, with real files and qemu-img."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nova.conf
import pytest
from nova import exception
from oslo_concurrency import processutils

from mh_nova.hook.operations import image_cache
from tests.functional.mh_nova.hook.conftest import base_file, write_disk
from tests.unit.mh_nova.hook.fake_agent import INSTANCE

CONF = nova.conf.CONF


@pytest.fixture
def base(where: Path) -> Path:
    path = base_file(where)
    path.parent.mkdir(exist_ok=True)
    write_disk(str(path))
    # older than an unused one may get
    os.utime(path, (0, 0))
    return path


@pytest.fixture
def folder(where: Path) -> Iterator[Path]:
    path = where / INSTANCE
    path.mkdir()
    yield path
    shutil.rmtree(path)


def look(base: Path, *names: str) -> None:
    """A pass over the cache, in a cloud with no image of that base."""
    manager: Any = image_cache.CacheManager()
    manager._reset_state()
    manager._scan_base_images(str(base.parent))
    manager.instance_names = set(names)
    manager._age_and_verify_cached_images(None, [], str(base.parent))


def test_the_driver_has_it(driver: Any) -> None:
    found = driver.image_cache_manager
    assert isinstance(found, image_cache.CacheManager)


def test_unused(base: Path) -> None:
    look(base)
    assert not base.exists()


def test_under_a_rescue_disk(base: Path, folder: Path) -> None:
    write_disk(str(folder / "disk.rescue"), str(base))
    look(base, INSTANCE)
    assert base.exists()
    (folder / "disk.rescue").unlink()
    look(base, INSTANCE)
    assert not base.exists()


def test_of_an_instance_that_is_not_here(base: Path, folder: Path) -> None:
    write_disk(str(folder / "disk.rescue"), str(base))
    look(base)
    assert not base.exists()


def test_a_rescue_disk_without_a_base(base: Path, folder: Path) -> None:
    write_disk(str(folder / "disk.rescue"))
    look(base, INSTANCE)
    assert not base.exists()


def test_one_that_cannot_be_read_ends_the_pass(
    base: Path, folder: Path
) -> None:
    (folder / "disk.rescue").mkdir()
    with pytest.raises(
        (exception.NovaException, processutils.ProcessExecutionError)
    ):
        look(base, INSTANCE)
    assert base.exists()
