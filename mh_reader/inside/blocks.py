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
"""The disk, as the process that reads it sees it: blocks from a socket.

Nothing here can open anything.  A block is asked for by its number and comes
from the process that started this one, which has its own idea of how many
may be asked for.
"""

import os
import struct
from collections import OrderedDict
from typing import Protocol

#: Bytes of one block; the last one of a disk may be shorter.
BLOCK = 256 * 1024
#: Blocks that are remembered: 16 MiB.
_KEEP = 64


class Refused(Exception):
    """What is on the disk cannot be measured; the text is for people."""


class Stream(Protocol):
    """What the readers of file systems want of a file."""

    def read(self, count: int = -1) -> bytes: ...
    def seek(self, offset: int, whence: int = 0) -> int: ...
    def tell(self) -> int: ...
    def get_size(self) -> int: ...


def receive(fd: int, count: int) -> bytes:
    """Exactly ``count`` bytes; the process ends where there are none."""
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            os._exit(3)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def send(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Disk:
    """
    :param fd: socket to the parent.
    :param size: bytes of the disk, as the parent says.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def _block(self, number: int) -> bytes:
        data = self._kept.get(number)
        if data is not None:
            self._kept.move_to_end(number)
            return data
        send(self._fd, b"R" + struct.pack(">Q", number))
        data = receive(self._fd, min(BLOCK, self.size - number * BLOCK))
        self._kept[number] = data
        if len(self._kept) > _KEEP:
            self._kept.popitem(last=False)
        return data

    def at(self, offset: int, count: int) -> bytes:
        """Bytes from ``offset``; fewer at the end of the disk."""
        if offset < 0:
            raise OSError("before the start of the disk")
        count = max(0, min(count, self.size - offset))
        parts = []
        while count:
            number, start = divmod(offset, BLOCK)
            part = self._block(number)[start : start + count]
            parts.append(part)
            offset += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Part:
    """A range of the disk, as a file (:class:`Stream`)."""

    def __init__(self, disk: Disk, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > disk.size:
            raise Refused("a partition is not on the disk")
        self._disk = disk
        self._offset = offset
        self._size = size
        self._at = 0

    def at(self, offset: int, count: int) -> bytes:
        if offset < 0:
            raise OSError("before the start of the partition")
        count = max(0, min(count, self._size - offset))
        return self._disk.at(self._offset + offset, count)

    def read(self, count: int = -1) -> bytes:
        data = self.at(self._at, self._size if count < 0 else count)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self._at, self._size)[whence]
        if start + offset < 0:
            raise OSError("before the start of the partition")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def get_size(self) -> int:
        return self._size


class Volume:
    """A logical volume, read through the LVM library, as a file."""

    def __init__(self, inner: Stream, size: int) -> None:
        self._inner = inner
        self._size = size

    def at(self, offset: int, count: int) -> bytes:
        self._inner.seek(offset)
        return self.read(count)

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._size - self._inner.tell())
        wanted = left if count < 0 else min(count, left)
        parts = []
        while wanted:
            part = self._inner.read(min(wanted, BLOCK))
            if not part:
                break
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._inner.seek(offset, whence) or self._inner.tell()

    def tell(self) -> int:
        return self._inner.tell()

    def get_size(self) -> int:
        return self._size
