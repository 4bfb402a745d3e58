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
"""The images of the tests, started by QEMU alone."""

from __future__ import annotations

import pathlib
import subprocess
import time

import pytest

from tests.minicloud import bootimage, debian_image, layout


def _serial(
    disk: pathlib.Path,
    wanted: str,
    folder: pathlib.Path,
    *,
    disk_format: str = "raw",
    memory: int = 64,
    timeout: float = 90,
) -> str:
    """Boot a disk until the serial port shows something."""
    log = folder / "serial"
    drive = f"file={disk},format={disk_format},if=virtio"
    machine = ("-accel", "tcg", "-nodefaults", "-display", "none")
    with subprocess.Popen(
        [
            *("qemu-system-x86_64", *machine, "-m", str(memory)),
            *("-drive", drive, "-serial", f"file:{log}"),
        ]
    ) as guest:
        end = time.monotonic() + timeout
        text = ""
        while time.monotonic() < end and guest.poll() is None:
            text = log.read_text(errors="replace") if log.exists() else ""
            if wanted in text:
                break
            time.sleep(0.1)
        guest.terminate()
    assert wanted in text, text[-500:]
    return text


@pytest.mark.parametrize("size", [1 << 20, 3 << 20])
def test_the_boot_image_prints_its_token(
    tmp_path: pathlib.Path, size: int
) -> None:
    disk = bootimage.write(
        tmp_path / "disk", b"token-0123456789", size, marker=b"a marker"
    )
    content = disk.read_bytes()
    assert len(content) == size
    assert bootimage.GREETING.strip() not in content
    assert b"a marker" in content
    text = _serial(disk, "token=token-0123456789", tmp_path)
    assert bootimage.GREETING.decode().strip() in text


def test_a_filled_boot_image_boots(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"some content\n" * 1000)
    disk = bootimage.write(tmp_path / "disk", b"token-f", 4 << 20, fill=source)
    assert disk.stat().st_blocks * 512 >= 4 << 20
    assert disk.read_bytes()[1 << 20 :].startswith(b"some content\n")
    _serial(disk, "token=token-f", tmp_path)


@pytest.mark.parametrize("token", [b"", b"x" * 512, b"a\0b"])
def test_a_bad_token_is_refused(token: bytes) -> None:
    with pytest.raises(ValueError, match="token"):
        bootimage.build(token)


def test_debian_boots_and_counts_its_boots(tmp_path: pathlib.Path) -> None:
    disk = debian_image.build(layout.RUN / "debian", b"a marker")
    try:
        for boot in (1, 2):
            text = _serial(
                disk.path,
                f"token={disk.token} boot={boot} Debian GNU/Linux 12",
                tmp_path,
                disk_format="qcow2",
                memory=192,
            )
            assert debian_image.GREETING in text
    finally:
        disk.path.unlink()
