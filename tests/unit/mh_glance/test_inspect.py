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

    def info(fd: int, driver: str) -> dict[str, object]:
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


def test_raw_is_rounded_up_to_sectors(tmp_path: Path) -> None:
    assert look(b"x" * 513, tmp_path) == Source("raw", 1024)
    assert look(qcow2(), tmp_path, "raw") == Source("raw", 4096)


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
        (bytes(0x8001) + b"CD001" + bytes(9), "format"),
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
