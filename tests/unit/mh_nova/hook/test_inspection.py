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

"""Before any key: what came must be what its properties say."""

import os
import uuid
from pathlib import Path

import pytest
from nova import exception

from mh_core.errors import Denied
from mh_core.image import luks1, ova, overlay
from mh_nova.hook.inspection import inspect

IMAGE = "33333333-3333-4333-8333-333333333333"
KEY = bytes(range(32))


def qcow2(tmp_path: Path, backing: tuple[str, str] | None = None) -> bytes:
    path = tmp_path / f"q-{uuid.uuid4()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    overlay.write(fd, 1 << 20, KEY, uuid.uuid4(), os.urandom, backing)
    os.close(fd)
    return path.read_bytes()


def luks() -> bytes:
    area, _ = luks1.build(luks1.passphrase(KEY), uuid.uuid4(), os.urandom)
    return area + bytes(4096)


def tar(**files: bytes) -> bytes:
    out = b""
    for name, data in files.items():
        name = name.replace("_", ".")
        out += ova.header(name, len(data)) + data + ova.padding(len(data))
    return out + ova.END


def look(form: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(data)
    inspect(form, IMAGE, str(path))


def test_good(tmp_path: Path) -> None:
    look("qcow2", qcow2(tmp_path), tmp_path)
    look("luks", luks(), tmp_path)
    look("ova", tar(a_ovf=b"<x/>", a_mf=b"", d_q=qcow2(tmp_path)), tmp_path)


def test_another_form(tmp_path: Path) -> None:
    whole = tar(a_ovf=b"<x/>", d_q=qcow2(tmp_path))
    for form, data in (
        ("qcow2", luks()),
        ("luks", qcow2(tmp_path)),
        ("qcow2", whole),
        ("luks", whole),
        ("qcow2", os.urandom(4096)),
        ("ova", tar(a_ovf=b"<x/>", d_q=luks())),
        ("ova", tar(a_ovf=b"<x/>", d_q=os.urandom(4096))),
    ):
        with pytest.raises(exception.ImageUnacceptable):
            look(form, data, tmp_path)


def test_a_backing_file(tmp_path: Path) -> None:
    bad = qcow2(tmp_path, ("/etc/passwd", "qcow2"))
    for form, data in (("qcow2", bad), ("ova", tar(a_ovf=b"<x/>", d=bad))):
        with pytest.raises(exception.ImageUnacceptable):
            look(form, data, tmp_path)


@pytest.mark.parametrize("count", [0, 2])
def test_not_one_disk(tmp_path: Path, count: int) -> None:
    files = {f"d{i}": b"x" for i in range(count)}
    with pytest.raises(Denied) as caught:
        look("ova", tar(a_ovf=b"<x/>", **files), tmp_path)
    assert caught.value.event == "hook.image.inspection"


def test_no_tar_file(tmp_path: Path) -> None:
    with pytest.raises(Denied):
        look("ova", qcow2(tmp_path), tmp_path)
