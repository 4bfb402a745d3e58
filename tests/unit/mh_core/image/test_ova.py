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
"""The tar reader against Python's own tarfile, and against anything."""

import io
import os
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mh_core.errors import InputError
from mh_core.image import ova

FILES = {"a.ovf": b"<x/>", "a.mf": b"", "disk-1.qcow2": b"q" * 1500}


def memory(data: bytes) -> int:
    fd = os.memfd_create("tar")
    os.write(fd, data)
    return fd


def members(data: bytes) -> tuple[ova.Member, ...]:
    fd = memory(data)
    try:
        return ova.members(fd, len(data))
    finally:
        os.close(fd)


def written() -> bytes:
    out = b""
    for name, data in FILES.items():
        out += ova.header(name, len(data)) + data + ova.padding(len(data))
    return out + ova.END


def test_what_we_write_tarfile_reads() -> None:
    with tarfile.open(fileobj=io.BytesIO(written())) as tar:
        read = {}
        for one in tar.getmembers():
            stream = tar.extractfile(one)
            assert stream is not None
            read[one.name] = stream.read()
    assert read == FILES


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_what_tarfile_writes_we_read(form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = out.getvalue()
    found = members(data)
    assert {
        one.name: data[one.offset : one.offset + one.size] for one in found
    } == FILES
    assert [one.name for one in ova.disks(found)] == ["disk-1.qcow2"]
    assert members(written()) == found


def _info(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("disk")
        change(info)
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    return out.getvalue()


def _set(**values: object) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        for name, value in values.items():
            setattr(info, name, value)

    return change


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(511),
        written()[:-1024],
        written()[:3000],
        written().replace(b"disk-1", b"disk-2", 1),
        _info(_set(type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        _info(_set(type=tarfile.LNKTYPE, linkname="a")),
        _info(_set(type=tarfile.DIRTYPE)),
        _info(_set(type=tarfile.FIFOTYPE)),
        _info(_set(name="../disk")),
        _info(_set(name="/disk")),
        _info(_set(name="x" * 150)),
        _info(_set(name=".disk")),
        _info(_set(pax_headers={"size": "99999"})),
        ova.header("disk", 1 << 30) + bytes(2048),
        b"".join(ova.header(f"f{i}", 0) for i in range(17)) + ova.END,
        2 * ova.header("twice", 0) + ova.END,
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        members(data)
    assert caught.value.event == "core.image.ova"


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 1500),
    st.binary(min_size=1, max_size=40),
)
def test_any_change_is_read_or_refused(at: int, change: bytes) -> None:
    data = bytearray(written())
    data[at : at + len(change)] = change
    try:
        found = members(bytes(data))
    except InputError as exc:
        found = ()
        event = exc.event
    else:
        event = "core.image.ova"
    assert event == "core.image.ova"
    for one in found:
        assert 0 <= one.offset <= one.offset + one.size <= len(data)


def test_hashes() -> None:
    digest = "ab" * 32
    assert ova.hashes(f"SHA256(a.ovf)= {digest}\n".encode()) == {
        "a.ovf": digest
    }
    for bad in (
        b"SHA1(a)= " + digest.encode(),
        b"SHA256(a)= " + digest.encode() + b"0",
        f"SHA256(a)= {digest}\nSHA256(a)= {digest}\n".encode(),
        b"\xff",
    ):
        with pytest.raises(InputError):
            ova.hashes(bad)
