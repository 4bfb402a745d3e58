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
"""Each edit is what it claims to QEMU, is refused by us, and undone."""

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mh_core.errors import MHError
from mh_core.image import luks1, mapping, overlay, qcow2
from tests.minicloud.foul import Undo
from tests.minicloud.foul import qcow2 as foul

SIZE = 1 << 20
KEY = bytes(range(1, 33))
BASE = "/var/lib/nova/instances/_base/0123_36"


@pytest.fixture(params=[None, (BASE, "qcow2")], ids=["alone", "over-base"])
def backing(request: pytest.FixtureRequest) -> tuple[str, str] | None:
    found: tuple[str, str] | None = request.param
    return found


@pytest.fixture
def disk(tmp_path: Path, backing: tuple[str, str] | None) -> Path:
    path = tmp_path / "disk"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    overlay.write(fd, SIZE, KEY, uuid.uuid4(), os.urandom, backing)
    os.close(fd)
    return path


def judge(path: Path, backing: tuple[str, str] | None) -> None:
    """What the agent looks at before each use."""
    fd = os.open(path, os.O_RDONLY)
    try:
        header, _luks = qcow2.inspect(fd)
        qcow2.check(header, backing=backing, virtual_size=SIZE)
        mapping.check(fd, header)
    finally:
        os.close(fd)


EDITS: dict[str, tuple[Callable[[Path], Undo], str]] = {
    "data file": (
        lambda path: foul.data_file(path, "/etc/passwd"),
        "core.image.qcow2.data-file",
    ),
    "other backing": (
        lambda path: foul.backing(path, "/etc/passwd"),
        "core.image.qcow2.backing",
    ),
    "plain": (foul.plain, "core.image.qcow2.crypt-method"),
    "plain, pointer": (
        lambda path: foul.plain(path, keep_pointer=True),
        "core.image.qcow2.extensions",
    ),
    "snapshot": (foul.snapshot, "core.image.qcow2.snapshots"),
    "iterations": (foul.iterations, "core.image.luks.iterations"),
    "compressed": (
        lambda path: foul.compressed(path, b"forged"),
        "core.image.qcow2.compressed",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_refused_and_undone(
    disk: Path, backing: tuple[str, str] | None, name: str
) -> None:
    before = disk.read_bytes()
    judge(disk, backing)
    edit, event = EDITS[name]
    undo = edit(disk)
    with pytest.raises(MHError) as caught:
        judge(disk, backing)
    assert caught.value.event == event
    undo()
    assert disk.read_bytes() == before
    judge(disk, backing)


def test_no_backing(disk: Path, backing: tuple[str, str] | None) -> None:
    undo = foul.backing(disk, None)
    if backing:
        # an overlay has subclusters, which nothing else may have
        with pytest.raises(MHError, match=r"qcow2\.features"):
            judge(disk, None)
        with pytest.raises(MHError, match=r"qcow2\.backing"):
            judge(disk, backing)
    else:
        judge(disk, None)
    undo()
    judge(disk, backing)


needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="qemu-img is not there"
)
alone = pytest.mark.parametrize("backing", [None], indirect=True)


def info(path: Path) -> dict[str, Any]:
    done = subprocess.run(
        ["qemu-img", "info", "--output=json", "-f", "qcow2", path],
        check=True,
        capture_output=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@needs_qemu
@alone
def test_qemu_believes_the_headers(disk: Path, tmp_path: Path) -> None:
    assert info(disk)["encrypted"]
    undo = foul.plain(disk)
    assert not info(disk).get("encrypted")
    undo()
    undo = foul.snapshot(disk)
    assert [one["name"] for one in info(disk)["snapshots"]] == ["foul"]
    undo()
    undo = foul.backing(disk, "/etc/passwd")
    assert info(disk)["backing-filename"] == "/etc/passwd"
    undo()
    other = tmp_path / "data"
    other.touch()
    foul.data_file(disk, str(other))
    assert info(disk)["format-specific"]["data"]["data-file"] == str(other)


@needs_qemu
@alone
@pytest.mark.parametrize("used", [False, True])
def test_qemu_reads_what_was_forged(disk: Path, used: bool) -> None:
    secret = "secret,id=k,data=" + luks1.passphrase(KEY).decode()
    options = f"driver=qcow2,encrypt.key-secret=k,file.filename={disk}"

    def io(command: str) -> str:
        done = subprocess.run(
            ["qemu-io", "--object", secret, "--image-opts", options]
            + ["-c", command],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    if used:
        io("write -P 0x61 0 128k")
    undo = foul.compressed(disk, b"forged without any key")
    assert "forged.without.a" in io("read -v 0 64")
    undo()
    if used:
        assert "verification failed" not in io("read -P 0x61 0 128k")
    else:
        assert "verification failed" not in io("read -P 0 0 128k")
