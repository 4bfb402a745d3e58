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
"""What a tenant's plain image file is, before anything opens it.

The file may come from anywhere.  A disk format can name other files (a
backing file, a data file, an extent), and a tool that opens it would read
those into the encrypted image: such images are refused here, from their
own bytes where the format is ours to read, before ``qemu-img`` sees them.

Sources: QEMU docs/interop/qcow2.rst (header); VMware Virtual Disk Format
5.0 (extent descriptions).
"""

import json
import os
import stat
import struct
import subprocess
from dataclasses import dataclass
from typing import Any

from mh_core.errors import InputError, Unavailable
from mh_core.image import identify

EVENT = "client.image"
#: Our name of a format to QEMU's driver.
DRIVERS = {
    "raw": "raw",
    "qcow2": "qcow2",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "vhd": "vpc",
    "vhdx": "vhdx",
}
SECTOR = 512
#: Seconds that ``qemu-img info`` may take.
INFO_TIMEOUT = 60
_VMDK_ALONE = ("monolithicSparse", "streamOptimized")


@dataclass(frozen=True)
class Source:
    """A plain image that may be encrypted.

    :param driver: QEMU's name of the format, always given to QEMU.
    :param virtual_size: bytes the guest will see, a multiple of 512.
    """

    driver: str
    virtual_size: int


def _refuse(cause: str, message: str) -> InputError:
    return InputError(f"{EVENT}.{cause}", message)


def inspect(fd: int, form: str | None = None) -> Source:
    """Look at an open file.

    :param fd: open for reading; this descriptor is what is encrypted
        afterwards, so that nobody swaps the file in between.
    :param form: one of :data:`DRIVERS` to say what the file is; by default
        its magic bytes decide.
    :raises InputError: ``client.image.file``, ``.format``, ``.backing``,
        ``.data-file``, ``.encrypted``, ``.extents``.
    :raises Unavailable: ``client.image.qemu-img``: not installed.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        raise _refuse("file", "a regular file that is not empty is expected")
    head = os.pread(fd, identify.HEAD_SIZE, 0)
    kind = form or identify.kind(head)
    if kind == "luks":
        raise _refuse(
            "encrypted", "the image is encrypted already (LUKS); decrypt it"
        )
    if kind not in DRIVERS:
        raise _refuse(
            "format",
            f"images of type {kind!r} are not taken; convert it with "
            "'qemu-img convert -O qcow2', or name its format",
        )
    if kind == "raw":
        size = -(-status.st_size // SECTOR) * SECTOR
        return Source("raw", size)
    if kind == "qcow2":
        _check_qcow2(head)
    return _check_info(DRIVERS[kind], _info(fd, DRIVERS[kind]), fd)


def _check_qcow2(head: bytes) -> None:
    """Versions 2 and 3, from the bytes alone."""
    if len(head) < 72 or head[:4] != b"QFI\xfb":
        raise _refuse("format", "not a qcow2 image")
    version, backing = struct.unpack_from(">IQ", head, 4)
    (crypt,) = struct.unpack_from(">I", head, 32)
    if version not in (2, 3) or (version == 3 and len(head) < 104):
        raise _refuse("format", "a qcow2 version that is not known")
    if backing:
        raise _refuse(
            "backing",
            "the image needs a backing file; flatten it first with "
            "'qemu-img convert -O qcow2'",
        )
    if crypt:
        raise _refuse("encrypted", "the image is encrypted already")
    if version == 3 and struct.unpack_from(">Q", head, 72)[0] & 1 << 2:
        raise _refuse("data-file", "the image keeps its data in another file")


def tool_environment() -> dict[str, str]:
    """What a tool needs; the caller's passwords and tokens stay here."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _info(fd: int, driver: str) -> dict[str, Any]:
    argv = [
        "qemu-img", "info", "--output=json", "-U", "--image-opts",
        f"driver={driver},file.driver=file,file.filename=/dev/fd/{fd}",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            argv,
            pass_fds=(fd,),
            env=tool_environment(),
            capture_output=True,
            timeout=INFO_TIMEOUT,
            check=False,
        )
    except FileNotFoundError as exc:
        raise Unavailable(
            EVENT + ".qemu-img", "qemu-img is not installed (qemu-utils)"
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise _refuse("format", "the image takes too long to open") from exc
    try:
        found = json.loads(done.stdout) if not done.returncode else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _refuse("format", f"not an image of type {driver}")
    return found


def _check_info(driver: str, info: dict[str, Any], fd: int) -> Source:
    size = info.get("virtual-size")
    if not isinstance(size, int) or size <= 0:
        raise _refuse("format", "the image has no size")
    if "backing-filename" in info or "full-backing-filename" in info:
        raise _refuse("backing", "the image needs a backing file")
    if info.get("encrypted"):
        raise _refuse("encrypted", "the image is encrypted already")
    specific = info.get("format-specific")
    data = specific.get("data", {}) if isinstance(specific, dict) else {}
    if "data-file" in data:
        raise _refuse("data-file", "the image keeps its data in another file")
    if driver == "vmdk":
        extents = data.get("extents")
        own = {f"/dev/fd/{fd}"}
        if (
            data.get("create-type") not in _VMDK_ALONE
            or not isinstance(extents, list)
            or {str(e.get("filename")) for e in extents} != own
        ):
            raise _refuse("extents", "the image keeps its data in other files")
    return Source(driver, -(-size // SECTOR) * SECTOR)
