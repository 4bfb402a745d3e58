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
"""Images that name other files are refused before a tool opens them."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mh_core.errors import InputError
from mh_glance import inspect
from mh_glance.inspect import Source


@pytest.fixture(autouse=True)
def no_tool(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Any tool that is run here is recorded."""
    run: list[str] = []

    def info(fd: int, driver: str, part: object) -> dict[str, object]:
        run.append(driver)
        return {"virtual-size": 1000}

    monkeypatch.setattr(inspect, "_info", info)
    return run


def look(data: bytes, folder: Path, form: str | None = None) -> Source:
    path = folder / "image"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return inspect.inspect(fd, form)
    finally:
        os.close(fd)


def qcow2(
    version: int = 3, backing: int = 0, crypt: int = 0, features: int = 0
) -> bytes:
    head = bytearray(4096)
    struct.pack_into(">4sIQ", head, 0, b"QFI\xfb", version, backing)
    struct.pack_into(">I", head, 32, crypt)
    struct.pack_into(">Q", head, 72, features)
    return bytes(head)


def vmdk(*lines: str) -> bytes:
    """A sparse extent whose embedded descriptor says these lines."""
    text = "\n".join(("# Disk DescriptorFile", "version=1", *lines, ""))
    head = struct.pack(
        "<4sIIQQQQIQQQ", b"KDMV", 1, 3, 128, 128, 1, 20, 512, 0, 0, 128
    )
    return head.ljust(512, b"\0") + text.encode().ljust(20 * 512, b"\0")


def polyglot() -> bytes:
    data = bytearray(0x8001 + 2048)
    data[0x8001:0x8006] = b"CD001"
    data[0x40:0x44] = b"\x7f\x10\xda\xbe"
    return bytes(data)


def tar(*names: bytes, kind: bytes = b"0") -> bytes:
    """By hand: the writer of ours would refuse most of these."""
    out = b""
    for name in names:
        block = bytearray(512)
        block[: len(name)] = name
        block[100:108] = b"0000644\0"
        block[124:136] = b"%011o\0" % 512
        block[156:157] = kind
        block[257:265] = b"ustar\00000"
        total = sum(block) + 8 * 32
        block[148:156] = b"%06o\0 " % total
        out += bytes(block) + b"x" * 512
    return out + bytes(1024)


def test_an_iso_and_a_file_system_are_raw(tmp_path: Path) -> None:
    iso = bytes(0x8001) + b"CD001" + bytes(2048)
    found = look(iso, tmp_path)
    assert (found.driver, found.virtual_size) == ("raw", 34816 + 512)
    assert "will not boot" in found.note
    hybrid = b"\x90" * 510 + b"\x55\xaa" + iso[512:]
    assert look(hybrid, tmp_path).note == ""
    ext4 = bytes(1080) + b"\x53\xef" + bytes(4096 - 1082)
    found = look(ext4, tmp_path, "ami")
    assert (found.driver, found.virtual_size) == ("raw", 4096)
    assert "boot sector" in found.note


def test_no_file_within_a_file(tmp_path: Path) -> None:
    """Content that is said to be raw is no other image."""
    for data in (qcow2(), vmdk("x"), b"LUKS\xba\xbe" + bytes(600)):
        for form in ("raw", "ami", "iso"):
            with pytest.raises(InputError) as caught:
                look(data, tmp_path, form)
            assert caught.value.event in (
                "client.image.content",
                "client.image.encrypted",
            )


def test_the_disk_of_a_plain_ova(tmp_path: Path, no_tool: list[str]) -> None:
    data = tar(b"a.ovf", b"a.mf", b"a.img")
    found = look(data, tmp_path)
    assert found == Source("raw", 512, (5 * 512, 512))
    assert not no_tool
    assert found.options(7) == (
        "driver=raw,file.driver=raw,file.offset=2560,file.size=512,"
        "file.file.driver=file,file.file.filename=/dev/fd/7"
    )


def test_raw_is_rounded_up_to_sectors(tmp_path: Path) -> None:
    assert look(b"x" * 513, tmp_path) == Source("raw", 1024)
    assert look(b"x" * 4096, tmp_path, "raw") == Source("raw", 4096)


def test_qcow2_is_looked_into(tmp_path: Path, no_tool: list[str]) -> None:
    for version in (2, 3):
        assert look(qcow2(version), tmp_path) == Source("qcow2", 1024)
    assert no_tool == ["qcow2", "qcow2"]


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "file"),
        (qcow2(backing=512), "backing"),
        (qcow2(2, backing=512), "backing"),
        (qcow2(crypt=2), "encrypted"),
        (qcow2(crypt=1), "encrypted"),
        (qcow2(features=1 << 2), "data-file"),
        (qcow2(1), "format"),
        (qcow2(4), "format"),
        (qcow2()[:60], "format"),
        (b"LUKS\xba\xbe" + bytes(600), "encrypted"),
        (b"QED\0" + bytes(600), "format"),
        (vmdk("createType=monolithicFlat", 'RW 8 FLAT "a" 0'), "extents"),
        (vmdk("createType=twoGbMaxExtentSparse"), "extents"),
        (vmdk("createType=monolithicSparse", 'RW 8 FLAT "/x"'), "extents"),
        (vmdk("createType=vmfsSparse", 'RW 8 VMFSSPARSE "x"'), "extents"),
        (b"# Disk DescriptorFile\n" + bytes(600), "extents"),
        (b"COWD" + bytes(600), "extents"),
        # a polyglot: what one tool takes for an ISO, another takes for VDI
        (polyglot(), "format"),
        (tar(b"a.ovf"), "ova"),
        (tar(b"a.vmdk", b"b.vmdk"), "ova"),
        (tar(b"../a.vmdk"), "ova"),
        (tar(b"a.vmdk", kind=b"2"), "ova"),
        (tar(b"a.vmdk")[:1000], "ova"),
    ],
)
def test_refused(
    tmp_path: Path, no_tool: list[str], data: bytes, cause: str
) -> None:
    with pytest.raises(InputError) as caught:
        look(data, tmp_path)
    assert caught.value.event == "client.image." + cause
    assert not no_tool


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(InputError) as caught:
            inspect.inspect(fd)
    finally:
        os.close(fd)
    assert caught.value.event == "client.image.file"


@settings(max_examples=60, deadline=None)
@given(
    head=st.sampled_from([b"", b"QFI\xfb", b"KDMV", b"conectix", b"LUKS"]),
    rest=st.binary(max_size=200),
)
def test_any_file(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, rest: bytes
) -> None:
    event = "client.image."
    try:
        look(head + rest, tmp_path_factory.getbasetemp())
    except InputError as exc:
        event = exc.event
    assert event.startswith("client.image.")
