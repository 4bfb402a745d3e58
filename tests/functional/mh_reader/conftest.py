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
"""Disks that several tests read; made once."""

import pathlib
from collections.abc import Callable, Sequence

import pytest

from mh_reader.run import Limits, run
from tests.functional.mh_reader import disks

Measure = Callable[..., dict[str, str]]


class File:
    """Blocks of a plain file."""

    def __init__(self, path: pathlib.Path) -> None:
        self._file = open(path, "rb")
        self.size = path.stat().st_size

    def read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(count)

    def close(self) -> None:
        self._file.close()


def measure(
    path: pathlib.Path,
    what: str,
    names: Sequence[str] = (),
    limits: Limits | None = None,
) -> dict[str, str]:
    source = File(path)
    try:
        return run(source, what, names, limits)
    finally:
        source.close()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tree with what every file system can hold."""
    return disks.plant(tmp_path_factory.mktemp("plain") / "root")


@pytest.fixture(scope="session")
def linked(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tree with links, too."""
    root = disks.plant(tmp_path_factory.mktemp("linked") / "root")
    disks.plant_links(root)
    # mke2fs puts this into the root of every file system
    (root / "lost+found").mkdir(mode=0o700)
    return root
