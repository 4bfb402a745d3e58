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
"""Encrypted disks of both formats, and what is inside them."""

import os
import struct
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mh_core.errors import InputError, MHError, VerificationError
from mh_core.image import afsplit, disk, luks1, overlay

KEY = bytes(range(32))
PASSPHRASE = luks1.passphrase(KEY)
SIZE = 1 << 20
MODES = ("xts-plain64", "cbc-essiv:sha256")


def raw_luks(path: Path, content: bytes, mode: str = MODES[0]) -> int:
    area, master = luks1.build(PASSPHRASE, uuid.uuid4(), os.urandom, mode)
    body = content.ljust(-(-len(content) // 512) * 512, b"\0")
    path.write_bytes(area + afsplit.encrypt(mode, master, body))
    return os.open(path, os.O_RDWR)


def look(fd: int, driver: str, size: int | None = None) -> str:
    try:
        found = disk.check(fd, driver, size)
        master = disk.unlock(fd, found, PASSPHRASE)
        return disk.check_content(fd, found, master)
    finally:
        os.close(fd)


@pytest.mark.parametrize("mode", MODES)
def test_raw_luks(tmp_path: Path, mode: str) -> None:
    content = os.urandom(SIZE)
    fd = raw_luks(tmp_path / "disk", content, mode)
    found = disk.check(fd, "luks", SIZE)
    master = disk.unlock(fd, found, PASSPHRASE)
    head = disk.head(fd, found, master)
    assert content.startswith(head)
    assert len(head) >= 0x8006
    assert look(fd, "luks", SIZE) == "raw"


def test_an_empty_qcow2_reads_as_zeros(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    overlay.write(fd, SIZE, KEY, uuid.uuid4(), os.urandom, None)
    found = disk.check(fd, "qcow2", SIZE)
    master = disk.unlock(fd, found, PASSPHRASE)
    assert not any(disk.head(fd, found, master))
    assert look(fd, "qcow2") == "raw"


@pytest.mark.parametrize(
    ("magic", "kind"),
    [
        (b"QFI\xfb", "qcow2"),
        (b"LUKS\xba\xbe", "luks"),
        (b"KDMV", "vmdk"),
        (b"conectix", "vhd"),
        (b"QED\0", "qed"),
        (bytes(0x40) + b"\x7f\x10\xda\xbe", "vdi"),
    ],
)
def test_a_file_within(tmp_path: Path, magic: bytes, kind: str) -> None:
    fd = raw_luks(tmp_path / "disk", magic + bytes(4096))
    with pytest.raises(VerificationError) as caught:
        look(fd, "luks")
    assert caught.value.event == "core.image.disk.content"
    assert kind in caught.value.message


def test_an_iso_within(tmp_path: Path) -> None:
    content = bytes(0x8001) + b"CD001" + bytes(2048)
    assert look(raw_luks(tmp_path / "disk", content), "luks") == "iso"


def test_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"

    def event(driver: str, size: int | None = None) -> str:
        with pytest.raises(MHError) as caught:
            look(os.open(path, os.O_RDWR), driver, size)
        return caught.value.event

    os.close(raw_luks(path, bytes(4096)))
    assert event("luks", 8192) == "core.image.disk.virtual-size"
    assert event("qcow2") == "core.image.qcow2.magic"
    assert event("raw") == "core.image.disk.driver"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert event("luks") == "core.image.luks.payload"
    path.write_bytes(data[:-4096])
    assert event("luks") == "core.image.luks.payload"
    path.write_bytes(data[:592])
    assert event("luks") == "core.image.luks.payload"
    path.write_bytes(data[:4] + b"\0" + data[5:])
    assert event("luks") == "core.image.luks.magic"


def test_the_time_to_open_is_bounded(tmp_path: Path) -> None:
    """Each slot is allowed, all of them together are not."""
    path = tmp_path / "disk"
    os.close(raw_luks(path, bytes(512)))
    data = bytearray(path.read_bytes())
    for slot in range(8):
        at = 208 + 48 * slot
        struct.pack_into(">II", data, at, 0x00AC71F3, 2_000_000)
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(InputError) as caught:
        disk.check(fd, "luks", 512)
    assert caught.value.event == "core.image.luks.iterations"
    assert disk.check(fd, "luks", 512, 20_000_000)
    os.close(fd)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_header(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    os.close(raw_luks(path, bytes(512)))
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, 700))
    change = data.draw(st.binary(min_size=1, max_size=24))
    whole[at : at + len(change)] = change
    path.write_bytes(whole)
    fd = os.open(path, os.O_RDONLY)
    event = "core.image."
    try:
        disk.check(fd, "luks", 512)
    except (InputError, VerificationError) as exc:
        event = exc.event
    finally:
        os.close(fd)
    assert event.startswith("core.image.")
