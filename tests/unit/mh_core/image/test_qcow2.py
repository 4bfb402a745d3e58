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

import dataclasses
import os
import tempfile
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mh_core import errors
from mh_core.image import identify, luks1, overlay, qcow2

KEY = bytes(range(32))
UUID = uuid.UUID("6f9ff7b7-8b1c-4c2e-9d0a-6a6a5d2f0f11")
BASE = ("/var/lib/instances/_base/base", "qcow2")
GIB = 1 << 30
SUBCLUSTERS = 1 << 4


def written(**changes):
    arguments = {
        "virtual_size": GIB,
        "key": KEY,
        "luks_uuid": UUID,
        "random": os.urandom,
        "backing": BASE,
    }
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        overlay.write(file.fileno(), **arguments | changes)
    except errors.MHError:
        file.close()
        raise
    return file


def event(call, *args, **kwargs):
    with pytest.raises(errors.MHError) as caught:
        call(*args, **kwargs)
    return caught.value.event


@pytest.fixture(scope="module")
def image():
    with written() as file:
        yield file


@pytest.mark.parametrize("backing", [None, BASE, ("/b", "luks")])
@pytest.mark.parametrize("mode", ["xts-plain64", "cbc-essiv:sha256"])
@pytest.mark.parametrize("size", [512, GIB, 5 * GIB + 512, 1 << 50])
def test_round_trip(backing, mode, size):
    with written(backing=backing, cipher_mode=mode, virtual_size=size) as file:
        fd = file.fileno()
        header, luks = qcow2.inspect(fd)
        qcow2.check(header, backing=backing, virtual_size=size)
        qcow2.check(header, backing=backing, max_virtual_size=size)
        assert luks.uuid == UUID
        assert luks.cipher_mode == mode
        luks1.unlock(qcow2.read_luks(fd, header), luks1.passphrase(KEY))
        assert identify.kind(os.pread(fd, identify.HEAD_SIZE, 0)) == "qcow2"


def test_the_largest():
    with written(backing=None, virtual_size=1 << 51) as file:
        qcow2.inspect(file.fileno())


def test_subclusters_over_a_backing_file_only(image):
    """In what stands alone they would be a forgery; an overlay of before,
    which has none, stays good."""
    fd = image.fileno()
    header = qcow2.read_header(fd)
    assert header.incompatible_features == SUBCLUSTERS
    with written(backing=None) as alone:
        other = qcow2.read_header(alone.fileno())
    assert other.incompatible_features == 0
    other = dataclasses.replace(other, incompatible_features=SUBCLUSTERS)
    wrong = "core.image.qcow2.features"
    assert event(qcow2.check, other, backing=None) == wrong
    before = dataclasses.replace(header, incompatible_features=0)
    qcow2.check(before, backing=BASE)
    for bit in (0, 1, 5, 63):
        more = dataclasses.replace(
            header, incompatible_features=SUBCLUSTERS | 1 << bit
        )
        assert event(qcow2.check, more, backing=BASE) == wrong


def test_subclusters_are_not_smaller_than_sectors(image):
    data = bytearray(os.pread(image.fileno(), 1 << 20, 0))
    data[20:24] = (13).to_bytes(4, "big")
    assert event(qcow2.parse, bytes(data), 1 << 40) == (
        "core.image.qcow2.header"
    )


def test_check_sizes(image):
    header = qcow2.read_header(image.fileno())
    wrong = "core.image.qcow2.virtual-size"
    for bound in ({"virtual_size": GIB + 512}, {"max_virtual_size": GIB - 1}):
        assert event(qcow2.check, header, backing=BASE, **bound) == wrong


@pytest.mark.parametrize(
    ("changes", "expect"),
    [
        ({"virtual_size": 0}, "overlay.size"),
        ({"virtual_size": -512}, "overlay.size"),
        ({"virtual_size": 513}, "overlay.size"),
        ({"virtual_size": (1 << 50) + 512}, "overlay.size"),
        ({"backing": None, "virtual_size": (1 << 51) + 512}, "overlay.size"),
        ({"content": b"x"}, "overlay.content"),
        ({"backing": ("base", "qcow2")}, "overlay.backing"),
        ({"backing": ("", "qcow2")}, "overlay.backing"),
        ({"backing": ("/b", "raw")}, "overlay.backing"),
        ({"backing": ("/b\n", "qcow2")}, "overlay.backing"),
        ({"backing": ("/\udc80", "qcow2")}, "overlay.backing"),
        ({"backing": ("/" + "b" * 1023, "qcow2")}, "overlay.backing"),
        ({"key": bytes(32)}, "luks.key"),
        ({"cipher_mode": "ecb"}, "luks.cipher"),
    ],
)
def test_write_refuses(changes, expect):
    assert event(written, **changes) == f"core.image.{expect}"


def test_longest_backing_path():
    pair = ("/" + "b" * 1022, "qcow2")
    with written(backing=pair) as file:
        header = qcow2.read_header(file.fileno())
        qcow2.check(header, backing=pair)


def test_write_refuses_other_targets(image):
    pipe, end = os.pipe()
    closed = os.dup(end)
    os.close(closed)
    for fd in (image.fileno(), end, closed):
        found = event(overlay.write, fd, 512, KEY, UUID, os.urandom, None)
        assert found == "core.image.overlay.file"
    os.close(pipe)
    os.close(end)


def test_inspect_needs_a_file():
    fd = os.open("/dev/null", os.O_RDONLY)
    assert event(qcow2.inspect, fd) == "core.image.qcow2.magic"
    os.close(fd)
    assert event(qcow2.inspect, fd) == "core.image.qcow2.read"
    with tempfile.TemporaryFile("wb") as plain:
        plain.truncate(1 << 20)
        fd = os.open(f"/proc/self/fd/{plain.fileno()}", os.O_WRONLY)
        assert event(qcow2.inspect, fd) == "core.image.qcow2.read"
        os.close(fd)


def test_luks_header_of_another_length(image):
    with tempfile.TemporaryFile() as file:
        data = bytearray(os.pread(image.fileno(), 4 << 20, 0))
        luks = 65536
        data[luks + 104 : luks + 108] = (4041).to_bytes(4, "big")
        file.write(data)
        file.flush()
        found = event(qcow2.inspect, file.fileno())
        assert found == "core.image.luks.payload"


def test_overlay_key():
    root = bytes(range(1, 33))
    other = uuid.UUID(int=1)
    key = overlay.overlay_key(root, UUID, "disk", other)
    # HMAC-SHA256(root, info 01), by hand.
    info = bytes.fromhex(
        "0000000d"
        + b"mh/overlay/v1".hex()
        + "00000010"
        + UUID.hex
        + "00000004"
        + b"disk".hex()
        + "00000010"
        + other.hex
    )
    import hmac

    assert key == hmac.digest(root, info + b"\1", "sha256")
    keys = {
        key,
        overlay.overlay_key(root, UUID, "disk.swap", other),
        overlay.overlay_key(root, other, "disk", UUID),
        overlay.overlay_key(root[::-1], UUID, "disk", other),
    }
    assert len(keys) == 4
    for bad in (b"", bytes(32), root + b"x"):
        found = event(overlay.overlay_key, bad, UUID, "disk", other)
        assert found == "core.image.overlay.root"
    for name in ("", "x" * 256, "\udc80"):
        found = event(overlay.overlay_key, root, UUID, name, other)
        assert found == "core.image.overlay.disk"


@pytest.mark.parametrize(
    ("head", "expect"),
    [
        (b"", "raw"),
        (b"\0" * 600, "raw"),
        (b"QFI\xfb\0\0\0\1", "qcow2"),
        (b"LUKS\xba\xbe\0\2", "luks"),
        (b"KDMV", "vmdk"),
        (b"# Disk DescriptorFile\n", "vmdk"),
        (
            b"<<< QEMU VM Virtual Disk Image >>>\n".ljust(64)
            + b"\x7f\x10\xda\xbe",
            "vdi",
        ),  # noqa: E501
        (b"conectix", "vhd"),
        (b"vhdxfile", "vhdx"),
        (b"QED\0", "qed"),
        (bytes(0x8001) + b"CD001", "iso"),
        (bytes(0x8001) + b"CD00", "raw"),
    ],
)
def test_identify(head, expect):
    assert identify.kind(head) == expect


def bounded(data, file_size):
    """Only our errors; what is accepted lies within the file."""
    try:
        header = qcow2.parse(data, file_size)
        if header.crypt_method == 2:
            assert header.luks_offset + header.luks_length <= file_size
        assert header.l1_offset + header.l1_size * 8 <= file_size
        qcow2.check(header, backing=BASE)
    except errors.MHError:
        return
    assert header.crypt_method == 2
    assert header.incompatible_features in (0, SUBCLUSTERS)
    assert (header.backing_file, header.backing_format) == BASE


@given(st.binary(max_size=600), st.integers(0, 1 << 64))
def test_any_bytes(data, file_size):
    bounded(data, file_size)
    bounded(b"QFI\xfb\0\0\0\3" + data, file_size)


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(st.integers(0, 220), st.binary(min_size=1, max_size=8)),
        max_size=3,
    ),
    st.integers(0, 70000),
)
def test_mutated_header(image, edits, cut):
    data = bytearray(os.pread(image.fileno(), 70000, 0))
    for offset, piece in edits:
        data[offset : offset + len(piece)] = piece
    size = os.fstat(image.fileno()).st_size
    bounded(bytes(data), size)
    bounded(bytes(data[:cut]), size)


@settings(max_examples=20)
@given(
    st.integers(1, 1 << 40),
    st.text(
        st.characters(min_codepoint=32, exclude_categories=["Cs"]),
        max_size=200,
    ),
)
def test_write_then_parse(sectors, name):
    pair = ("/" + name, "qcow2")
    with written(virtual_size=sectors * 512, backing=pair) as file:
        header, _ = qcow2.inspect(file.fileno())
    qcow2.check(header, backing=pair, virtual_size=sectors * 512)
