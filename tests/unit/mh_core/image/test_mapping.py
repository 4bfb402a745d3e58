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

import os
import struct
import tempfile
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mh_core import errors
from mh_core.image import mapping, overlay, qcow2

CLUSTER = 65536
USED = 1 << 63


@pytest.fixture
def image():
    """(descriptor, header, offset of an L2 table in use)."""
    with tempfile.TemporaryFile() as file:
        fd = file.fileno()
        overlay.write(fd, 4 << 30, b"k" * 32, uuid.uuid4(), os.urandom, None)
        header = qcow2.read_header(fd)
        table = os.fstat(fd).st_size
        os.ftruncate(fd, table + 2 * CLUSTER)
        os.pwrite(fd, struct.pack(">Q", USED | table), header.l1_offset)
        yield fd, header, table


@pytest.fixture
def overlaid():
    """The same, of an overlay: its entries have subclusters."""
    with tempfile.TemporaryFile() as file:
        fd = file.fileno()
        backing = ("/base", "qcow2")
        overlay.write(
            fd, 4 << 30, b"k" * 32, uuid.uuid4(), os.urandom, backing
        )
        header = qcow2.read_header(fd)
        table = os.fstat(fd).st_size
        os.ftruncate(fd, table + 2 * CLUSTER)
        os.pwrite(fd, struct.pack(">Q", USED | table), header.l1_offset)
        yield fd, header, table


def event(fd, header):
    with pytest.raises(errors.MHError) as caught:
        mapping.check(fd, header)
    return caught.value.event


def put(fd, offset, number):
    os.pwrite(fd, struct.pack(">Q", number), offset)


def test_allowed(image):
    fd, header, table = image
    mapping.check(fd, header)
    for entry in (USED | table + CLUSTER, 1, (USED | table + CLUSTER) + 1):
        put(fd, table + 8 * 77, entry)
        mapping.check(fd, header)


@pytest.mark.parametrize("index", [0, 1, 8191])
def test_compressed(image, index):
    fd, header, table = image
    put(fd, table + 8 * index, 1 << 62 | table + CLUSTER)
    assert event(fd, header) == "core.image.qcow2.compressed"


def test_reserved_bit_of_a_cluster(image):
    fd, header, table = image
    put(fd, table + 8, 1 << 56)
    assert event(fd, header) == "core.image.qcow2.mapping"


def test_subclusters(overlaid):
    fd, header, table = overlaid
    mapping.check(fd, header)
    for bitmap in (0, (1 << 32) - 1, 0xFFFF << 48 | 0xFFFF):
        put(fd, table + 16 * 77, USED | table + CLUSTER)
        put(fd, table + 16 * 77 + 8, bitmap)
        mapping.check(fd, header)


def test_a_bitmap_is_no_entry(overlaid):
    """Bit 62 in it says that a subcluster is zeros."""
    fd, header, table = overlaid
    put(fd, table + 16 * 5 + 8, 1 << 62 | 1 << 56)
    mapping.check(fd, header)


@pytest.mark.parametrize("index", [0, 1, 4095])
def test_compressed_with_subclusters(overlaid, index):
    fd, header, table = overlaid
    put(fd, table + 16 * index, 1 << 62 | table + CLUSTER)
    assert event(fd, header) == "core.image.qcow2.compressed"


@pytest.mark.parametrize("bit", [0, 17, 31])
@pytest.mark.parametrize("index", [0, 4095])
def test_a_subcluster_is_there_or_zeros(overlaid, index, bit):
    fd, header, table = overlaid
    put(fd, table + 16 * index + 8, 1 << bit | 1 << (32 + bit))
    assert event(fd, header) == "core.image.qcow2.mapping"


@pytest.mark.parametrize(
    "entry",
    [
        USED | 1 << 40,
        USED | CLUSTER + 512,
        1 << 62 | CLUSTER,
        1,
        (1 << 64) - 1,
    ],
)
def test_bad_l1_entry(image, entry):
    fd, header, _ = image
    put(fd, header.l1_offset + 8, entry)
    assert event(fd, header) == "core.image.qcow2.mapping"


def test_table_used_twice(image):
    fd, header, table = image
    put(fd, header.l1_offset + 8, USED | table)
    assert event(fd, header) == "core.image.qcow2.mapping"


def test_file_cut_after_the_header_was_read(image):
    fd, header, table = image
    os.ftruncate(fd, table + 8)
    assert event(fd, header) == "core.image.qcow2.mapping"
    os.ftruncate(fd, header.l1_offset)
    assert event(fd, header) == "core.image.qcow2.mapping"


@settings(max_examples=50)
@given(st.binary(min_size=64, max_size=64), st.binary(max_size=64))
def test_any_tables(l1, l2):
    with tempfile.TemporaryFile() as file:
        fd = file.fileno()
        overlay.write(fd, 4 << 30, b"k" * 32, uuid.uuid4(), os.urandom, None)
        header = qcow2.read_header(fd)
        os.pwrite(fd, l1, header.l1_offset)
        os.pwrite(fd, l2, 0)
        try:
            mapping.check(fd, header)
        except errors.MHError:
            pass
