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
"""Growing an encrypted image by its header."""

import os
import struct
import tempfile
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mh_core import errors
from mh_core.image import grow, mapping, overlay, qcow2

GIB = 1 << 30
TIB = 1 << 40
BACKING = ("/var/lib/nova/instances/_base/x_36", "qcow2")


@pytest.fixture
def fd() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        write(file.fileno(), GIB)
        yield file.fileno()


def write(
    fd: int, size: int, backing: tuple[str, str] | None = BACKING
) -> None:
    overlay.write(fd, size, b"k" * 32, uuid.uuid4(), os.urandom, backing)


def event(fd: int, size: int) -> str:
    before = os.pread(fd, 1 << 20, 0)
    with pytest.raises(errors.InputError) as caught:
        grow.grow(fd, qcow2.read_header(fd), size)
    assert os.pread(fd, 1 << 20, 0) == before
    return caught.value.event


@given(
    st.integers(1, 8 * TIB // 512),
    st.integers(1, 9 * TIB // 512),
    st.sampled_from([BACKING, None]),
)
@settings(max_examples=60, deadline=None)
def test_any_growth(
    first: int, second: int, backing: tuple[str, str] | None
) -> None:
    """Two fields change, or nothing does; what the parser accepts, always."""
    table = (4 if backing is None else 2) * TIB
    with tempfile.TemporaryFile() as file:
        fd = file.fileno()
        write(fd, first * 512, backing)
        old = qcow2.read_header(fd)
        before = os.pread(fd, 1 << 20, 0)
        most = -(-first * 512 // table) * table
        assert grow.limit(old) == most
        if not first <= second <= most // 512:
            cause = "shrink" if second < first else "room"
            assert event(fd, second * 512) == f"core.image.grow.{cause}"
            return
        grow.grow(fd, old, second * 512)
        new = qcow2.read_header(fd)
        qcow2.check(new, backing=backing, virtual_size=second * 512)
        mapping.check(fd, new)
        after = os.pread(fd, 1 << 20, 0)
        assert after[:24] + after[40:] == before[:24] + before[40:]
        assert after[32:36] == before[32:36]


def test_the_same_size_writes_nothing(fd: int) -> None:
    before = os.pread(fd, 1 << 20, 0)
    grow.grow(fd, qcow2.read_header(fd), GIB)
    assert os.pread(fd, 1 << 20, 0) == before


def test_never_smaller(fd: int) -> None:
    assert event(fd, GIB - 512) == "core.image.grow.shrink"


def test_not_a_sector(fd: int) -> None:
    assert event(fd, 2 * GIB + 1) == "core.image.grow.size"


def test_no_room(fd: int) -> None:
    assert event(fd, 2 * TIB + 512) == "core.image.grow.room"


def test_something_behind_the_table(fd: int) -> None:
    """It would become a mapping."""
    header = qcow2.read_header(fd)
    os.pwrite(
        fd, struct.pack(">Q", 1 << 63 | 1 << 20), header.l1_offset + 8 * 7
    )
    assert event(fd, 2 * GIB) == "core.image.grow.table"


def test_features(fd: int) -> None:
    os.pwrite(fd, struct.pack(">Q", 1), 72)
    assert event(fd, 2 * GIB) == "core.image.grow.size"


def test_a_file_cut_behind_the_table(fd: int) -> None:
    """As QEMU may leave it: it is made whole."""
    header = qcow2.read_header(fd)
    os.ftruncate(fd, header.l1_offset + 8 * header.l1_size)
    grow.grow(fd, header, 2 * GIB)
    assert os.fstat(fd).st_size == header.l1_offset + 65536
    mapping.check(fd, qcow2.read_header(fd))


def test_not_writable(fd: int) -> None:
    other = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        assert event(other, 2 * GIB) == "core.image.grow.file"
    finally:
        os.close(other)
