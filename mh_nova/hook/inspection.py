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

"""What came from the image service, looked at as nova looks at plain images.

Before any key: a file that names others (backing file, data file, extents)
or is not what its properties say is refused here. The agent judges it again,
more strictly, and looks inside once it has the key.
"""

import io
import os

from nova import exception
from nova.virt import images
from oslo_utils.imageutils import format_inspector

from mh_core.errors import Denied, InputError
from mh_core.image import ova

EVENT = "hook.image.inspection"
_CHUNK = 4096


class _Part(io.RawIOBase):
    """A stretch of a file, from its start to its end."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd = fd
        self._at = offset
        self._end = offset + size

    def read(self, size: int = -1) -> bytes:
        left = self._end - self._at
        data = os.pread(
            self._fd, left if size < 0 else min(size, left), self._at
        )
        self._at += len(data)
        return data


def inspect(form: str, image: str, path: str) -> None:
    """
    :param form: of ``properties.FORMATS``.
    :param image: Glance id.
    :param path: what was downloaded.
    :raises nova.exception.ImageUnacceptable: as nova's own inspection.
    :raises Denied: ``hook.image.inspection``: not an OVA with one disk.
    """
    if form != "ova":
        images.do_image_deep_inspection({"disk_format": form}, image, path)
        return
    with open(path, "rb") as file:
        fd = file.fileno()
        try:
            disks = ova.disks(ova.members(fd, os.fstat(fd).st_size))
        except InputError as exc:
            raise Denied(EVENT, exc.message) from exc
        if len(disks) != 1:
            raise Denied(EVENT, "an OVA of ours has one disk")
        _check(fd, disks[0], image)


def _check(fd: int, disk: ova.Member, image: str) -> None:
    """A disk in an OVA, with the inspector that nova uses."""
    reader = format_inspector.InspectWrapper(_Part(fd, disk.offset, disk.size))
    try:
        while reader.read(_CHUNK) and not reader.formats:
            pass
    finally:
        reader.close()
    try:
        found = reader.format
        if str(found) != "qcow2":
            raise format_inspector.ImageFormatError("not a qcow2 disk")
        found.safety_check()
    except (
        format_inspector.ImageFormatError,
        format_inspector.SafetyCheckFailed,
    ) as exc:
        raise exception.ImageUnacceptable(
            image_id=image, reason="the disk in the OVA is not acceptable"
        ) from exc
