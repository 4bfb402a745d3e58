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
"""Bases and fs-verity: the agent's side of it, without the kernel's.

What the kernel does is in ``tests/functional/mh_nova/agent/test_verity``;
here is what happens where it does nothing, and which notes are believed.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mh_core.errors import Denied, InputError
from mh_nova.agent import verity
from mh_nova.agent.bases import Bases
from mh_nova.agent.measurers.base import HashedFile
from mh_nova.agent.paths import PART, Root, base_name
from mh_nova.agent.protect import (
    AUTO,
    NOTES,
    OFF,
    REQUIRE,
    Note,
    Protection,
)
from mh_nova.agent.store import Store

DATA = os.urandom(100_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = "base"
DIGEST = bytes(range(32))


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder on tmpfs, which has no fs-verity."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def base(memory: Path) -> Iterator[HashedFile]:
    (memory / NAME).write_bytes(DATA)
    fd = os.open(memory / NAME, os.O_RDONLY)
    yield HashedFile(fd, len(DATA), SHA256)
    os.close(fd)


def never(_name: str, _inode: int) -> None:
    raise AssertionError("called")


# -- where there is none -------------------------------------------------


def test_the_module_says_so(base: HashedFile) -> None:
    assert not verity.available(base.fd)
    assert verity.measure(base.fd) is None
    with pytest.raises(Denied) as caught:
        verity.enable(base.fd)
    assert caught.value.event == "agent.verity.missing"


@pytest.mark.parametrize("mode", [AUTO, OFF])
def test_nothing_happens(memory: Path, base: HashedFile, mode: str) -> None:
    protection = Protection(mode, memory)
    threads = threading.active_count()
    protection.begin(NAME, base, never)
    assert threading.active_count() == threads
    assert protection.known(NAME, base.fd) is None
    assert not (memory / NOTES).exists()


def test_required_is_refused(memory: Path) -> None:
    image = "7d3a61c0-8e1b-4a0e-9a55-0d3f1d9f2a11"
    directory = memory / "instances" / "_base"
    directory.mkdir(parents=True)
    bases = Bases(
        Root(str(memory / "instances")),
        Store(memory / "state"),
        protection=Protection(REQUIRE, memory),
    )
    name = base_name(image)
    bases.follow(image, "one")
    (directory / (name + PART)).write_bytes(DATA)
    bases.downloaded(image)
    with bases.candidate(image, 10) as hashed:
        with pytest.raises(Denied) as caught:
            bases.adopt(image, hashed)
        assert caught.value.event == "agent.verity.missing"
    bases.leave(image, "one")
    # nor is one that is there already
    (directory / (name + PART)).rename(directory / name)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Denied) as caught, bases.base(image):
        pass
    assert caught.value.event == "agent.verity.missing"
    assert len(os.listdir("/proc/self/fd")) == before
    bases.close()


# -- notes ---------------------------------------------------------------


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the kernel would say next; the last one for good."""
    found = [DIGEST]
    monkeypatch.setattr(verity, "measure", lambda _fd: found[-1])
    return found


def noted(memory: Path, base: HashedFile) -> Path:
    Protection(AUTO, memory).note(NAME, base, DIGEST)
    return memory / NOTES / f"{NAME}.json"


def again(memory: Path, base: HashedFile) -> HashedFile | None:
    """After a restart of the agent."""
    return Protection(AUTO, memory).known(NAME, base.fd)


def test_known_again(
    memory: Path, base: HashedFile, digests: list[bytes]
) -> None:
    path = noted(memory, base)
    assert again(memory, base) == base
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert Protection(OFF, memory).known(NAME, base.fd) is None


def test_another_digest(
    memory: Path, base: HashedFile, digests: list[bytes]
) -> None:
    noted(memory, base)
    digests.append(bytes(32))
    assert again(memory, base) is None


def test_another_size(
    memory: Path, base: HashedFile, digests: list[bytes]
) -> None:
    noted(memory, base)
    with (memory / NAME).open("ab") as file:
        file.write(b"x")
    assert again(memory, base) is None


def test_another_name(
    memory: Path, base: HashedFile, digests: list[bytes]
) -> None:
    path = noted(memory, base)
    path.rename(path.with_name("other.json"))
    assert again(memory, base) is None


def test_dropped(memory: Path, base: HashedFile, digests: list[bytes]) -> None:
    protection = Protection(AUTO, memory)
    protection.note(NAME, base, DIGEST)
    assert protection.known(NAME, base.fd) == base
    protection.drop(NAME)
    assert protection.known(NAME, base.fd) is None
    assert again(memory, base) is None


@pytest.mark.parametrize("data", ["", "{", "[]", '{"size": 1}'])
def test_damaged(
    memory: Path, base: HashedFile, digests: list[bytes], data: str
) -> None:
    noted(memory, base).write_text(data)
    assert again(memory, base) is None


def test_on_a_disk(
    memory: Path,
    base: HashedFile,
    digests: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where whoever writes a base could write the note as well."""
    noted(memory, base)
    monkeypatch.setattr("mh_nova.agent.protect.in_memory", lambda _path: False)
    assert again(memory, base) is None
    shutil.rmtree(memory / NOTES)
    protection = Protection(AUTO, memory)
    protection.note(NAME, base, DIGEST)
    # this agent's own memory holds it, no file does
    assert protection.known(NAME, base.fd) == base
    assert not (memory / NOTES).exists()


def test_in_a_folder_that_others_write(
    memory: Path, base: HashedFile, digests: list[bytes]
) -> None:
    path = noted(memory, base)
    path.parent.chmod(0o770)
    assert again(memory, base) is None


def test_in_a_folder_elsewhere(
    memory: Path, base: HashedFile, digests: list[bytes], tmp_path: Path
) -> None:
    path = noted(memory, base)
    shutil.move(path.parent, tmp_path / NOTES)
    (memory / NOTES).symlink_to(tmp_path / NOTES)
    assert again(memory, base) is None


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=70)
)


@given(
    st.one_of(
        _VALUES,
        st.dictionaries(
            st.sampled_from(["size", "sha256", "verity", "more"]), _VALUES
        ),
    )
)
def test_any_note(value: object) -> None:
    """A note, or a refusal; nothing else is raised."""
    note = None
    with contextlib.suppress(InputError):
        note = Note.parse(value)
    assert note is None or len(note.sha256) == len(note.verity) == 64
