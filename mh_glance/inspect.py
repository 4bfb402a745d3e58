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
own bytes, by ours and by the inspector that nova and Glance use, before
``qemu-img`` sees them; and it is told the format, and never probes.

Sources: QEMU docs/interop/qcow2.rst (header); VMware Virtual Disk Format
5.0 (extent descriptions); oslo_utils.imageutils.format_inspector.
"""

import io
import json
import os
import stat
import struct
import subprocess
from dataclasses import dataclass
from typing import Any

from oslo_utils.imageutils import format_inspector

from mh_core.errors import InputError, Unavailable
from mh_core.image import identify, ova

EVENT = "client.image"
#: Our name of a format to QEMU's driver.
DRIVERS = {
    "raw": "raw",
    "qcow2": "qcow2",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "vhd": "vpc",
    "vhdx": "vhdx",
    "iso": "raw",
    "ami": "raw",
}
#: What may be named beside these: a plain OVA, and LUKS1 under the very key.
FORMS = (*DRIVERS, "ova", "luks")
SECTOR = 512
#: Seconds that ``qemu-img info`` may take.
INFO_TIMEOUT = 60
_VMDK_ALONE = ("monolithicSparse", "streamOptimized")
_CHUNK = 65536
#: Content of a disk that starts like this is a file, not a disk.
_BARE = ("raw", "iso")
#: The kind of VHD in which the disk stands as it is.
_FIXED = 2


@dataclass(frozen=True)
class Source:
    """A plain image that may be encrypted.

    :param driver: QEMU's name of the format, always given to QEMU.
    :param virtual_size: bytes the guest will see, a multiple of 512.
    :param part: (offset, size) of the disk within the file, in bytes; None:
        it is the file.
    :param note: what a tenant should know about it, or empty.
    """

    driver: str
    virtual_size: int
    part: tuple[int, int] | None = None
    note: str = ""

    def options(self, fd: int) -> str:
        """For ``--image-opts``."""
        return _options(self.driver, fd, self.part)


def _options(driver: str, fd: int, part: tuple[int, int] | None) -> str:
    if part is None:
        return f"driver={driver},file.driver=file,file.filename=/dev/fd/{fd}"
    return (
        f"driver={driver},file.driver=raw,file.offset={part[0]},"
        f"file.size={part[1]},file.file.driver=file,"
        f"file.file.filename=/dev/fd/{fd}"
    )


def _refuse(cause: str, message: str) -> InputError:
    return InputError(f"{EVENT}.{cause}", message)


def _note(form: str, head: bytes) -> str:
    """Raw content that a BIOS or UEFI would not start."""
    if form == "iso" and head[510:512] != b"\x55\xaa":
        return (
            "the ISO is not a hybrid one: it is given to servers as their "
            "disk, and will not boot from it"
        )
    if form == "ami" and head[510:512] != b"\x55\xaa":
        return (
            "the image is a file system without a boot sector: servers have "
            "it as their disk, but boot no kernel image beside it"
        )
    return ""


def inspect(fd: int, form: str | None = None) -> Source:
    """Look at an open file.

    :param fd: open for reading; this descriptor is what is encrypted
        afterwards, so that nobody swaps the file in between.
    :param form: one of :data:`DRIVERS`, or ova, to say what the file is; by
        default its content decides.
    :raises InputError: ``client.image.file``, ``.format``, ``.backing``,
        ``.data-file``, ``.encrypted``, ``.extents``, ``.content``,
        ``.ova``.
    :raises Unavailable: ``client.image.qemu-img``: not installed.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        raise _refuse("file", "a regular file that is not empty is expected")
    head = os.pread(fd, identify.HEAD_SIZE, 0)
    if form == "ova" or (form is None and head[257:262] == b"ustar"):
        return _inspect_ova(fd, status.st_size)
    return _inspect_disk(fd, form, None, status.st_size)


def _inspect_ova(fd: int, size: int) -> Source:
    """The one disk of a plain OVA, where it lies in the tar file."""
    try:
        disks = ova.disks(ova.members(fd, size))
    except InputError as exc:
        raise _refuse("ova", f"not an OVA that is taken: {exc}") from exc
    if len(disks) != 1 or not disks[0].size:
        raise _refuse("ova", "an OVA with exactly one disk is taken")
    part = (disks[0].offset, disks[0].size)
    return _inspect_disk(fd, None, part, part[1])


def _inspect_disk(
    fd: int, form: str | None, part: tuple[int, int] | None, length: int
) -> Source:
    start = 0 if part is None else part[0]
    head = os.pread(fd, min(identify.HEAD_SIZE, length), start)
    found = identify.kind(head)
    if form in (None, "vhd") and found in _BARE:
        fixed = _fixed_vhd(fd, start, length)
        if fixed is not None:
            return Source("raw", fixed, (start, fixed))
    kind = form or found
    if "luks" in (kind, found):
        raise _refuse(
            "encrypted", "the image is encrypted already (LUKS); decrypt it"
        )
    if kind not in DRIVERS:
        raise _refuse(
            "format",
            f"images of type {kind!r} are not taken; convert it with "
            "'qemu-img convert -O qcow2', or name its format",
        )
    driver = DRIVERS[kind]
    if driver == "raw":
        if found not in _BARE:
            # hosts would refuse it: a guest cannot use it as a disk either
            raise _refuse(
                "content", f"the content is a {found} file, not a disk"
            )
        size = -(-length // SECTOR) * SECTOR
        return Source("raw", size, part, _note(kind, head))
    if kind == "qcow2":
        _check_qcow2(head)
    _check_safety(fd, kind, start, length)
    return _check_info(driver, _info(fd, driver, part), fd, part)


def _fixed_vhd(fd: int, start: int, length: int) -> int | None:
    """Bytes of the disk in a fixed VHD: all but its footer, by which alone
    it is one.  None: it is none.

    Source: Microsoft, Virtual Hard Disk Image Format Specification 1.0,
    "Hard Disk Footer Format".
    """
    disk = length - SECTOR
    footer = os.pread(fd, SECTOR, start + disk) if disk > 0 else b""
    if len(footer) != SECTOR or footer[:8] != b"conectix":
        return None
    size, _, kind, checksum = struct.unpack_from(">QIII", footer, 48)
    total = ~sum(footer[:64] + footer[68:]) & 0xFFFFFFFF
    if (size, kind, checksum) != (disk, _FIXED, total) or size % SECTOR:
        return None
    return disk


class _Stretch(io.RawIOBase):
    """A stretch of a file, read from its start."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._at, self._end = fd, offset, offset + size

    def read(self, size: int = -1) -> bytes:
        left = self._end - self._at
        size = left if size < 0 else min(size, left)
        data = os.pread(self._fd, size, self._at)
        self._at += len(data)
        return data


def _check_safety(fd: int, kind: str, offset: int, length: int) -> None:
    """As nova and Glance: it is of this format alone, and names no file."""
    reader = format_inspector.InspectWrapper(_Stretch(fd, offset, length))
    try:
        while reader.read(_CHUNK) and not reader.formats:
            pass
    finally:
        reader.close()
    cause = "extents" if kind == "vmdk" else "format"
    try:
        found = reader.format
        if str(found) != kind:
            raise _refuse(cause, f"not a {kind} image that stands alone")
        found.safety_check()
    except format_inspector.ImageFormatError as exc:
        raise _refuse(cause, f"not a {kind} image alone: {exc}") from exc
    except format_inspector.SafetyCheckFailed as exc:
        raise _refuse(cause, f"the image is not safe to open: {exc}") from exc


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


def _info(
    fd: int, driver: str, part: tuple[int, int] | None
) -> dict[str, Any]:
    argv = [
        "qemu-img", "info", "--output=json", "-U", "--image-opts",
        _options(driver, fd, part),
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


def _check_info(
    driver: str,
    info: dict[str, Any],
    fd: int,
    part: tuple[int, int] | None = None,
) -> Source:
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
            or len(extents) != 1
            # QEMU's name of a stretch of a file is a whole description
            or (part is None and str(extents[0].get("filename")) not in own)
        ):
            raise _refuse("extents", "the image keeps its data in other files")
    return Source(driver, -(-size // SECTOR) * SECTOR, part)
