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
"""Where what is written ends: in memory, encrypted, or in the clear.

Read from the kernel's own account (statfs, ``/proc``, ``/sys``, fscrypt).
What it does not say for sure counts as in the clear.
"""

import ctypes
import enum
import os
import re
import stat
from pathlib import Path

from mh_nova.agent import fscrypt

#: statfs(2), f_type.
_IN_MEMORY = (0x01021994, 0x858458F6)  # tmpfs, ramfs
#: Layers of block devices that are followed.
_DEPTH = 8


class Kind(enum.Enum):
    MEMORY = "memory"
    FSCRYPT = "fscrypt"
    DM_CRYPT = "dm-crypt"
    CLEAR = "clear"

    @property
    def safe(self) -> bool:
        """Whoever takes the disk away cannot read it."""
        return self is not Kind.CLEAR


def file_system(path: str) -> int:
    """f_type of the file system a path is on.

    :raises OSError: the path is not there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # struct statfs starts with __fsword_t f_type; 256 bytes hold it whole.
    buffer = ctypes.create_string_buffer(256)
    if libc.statfs(os.fsencode(path), buffer):
        raise OSError(ctypes.get_errno(), "statfs", path)
    size = ctypes.sizeof(ctypes.c_long)
    kind = int.from_bytes(buffer.raw[:size], "little", signed=False)
    return kind & 0xFFFFFFFF


def in_memory(path: str) -> bool:
    """:raises OSError: the path is not there."""
    return file_system(path) in _IN_MEMORY


class Storage:
    """
    :param root: of the host's file system, for ``/proc`` and ``/sys``.
    """

    def __init__(self, root: str = "/") -> None:
        self._root = Path(root)

    def kind(self, path: str) -> Kind:
        """Of what is written into a directory.

        An fscrypt directory whose key is not there counts as clear: nothing
        can be written into it.

        :raises OSError: the path is not there.
        """
        if in_memory(path):
            return Kind.MEMORY
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            policy = fscrypt.policy(fd)
            if policy is not None:
                usable = policy.strong and fscrypt.usable(
                    fd, policy.identifier
                )
                return Kind.FSCRYPT if usable else Kind.CLEAR
            device = os.fstat(fd).st_dev
        finally:
            os.close(fd)
        return self._device(os.major(device), os.minor(device))

    def _device(self, major: int, minor: int) -> Kind:
        path = self._root / f"sys/dev/block/{major}:{minor}"
        # number 0: a file system that says nothing of its devices
        if major and self._encrypted(path, _DEPTH):
            return Kind.DM_CRYPT
        return Kind.CLEAR

    def _encrypted(self, device: Path, depth: int) -> bool:
        """dm-crypt, or nothing but dm-crypt below."""
        uuid = _word(device / "dm/uuid")
        if uuid.startswith("CRYPT-"):
            return True
        if depth == 0:
            return False
        try:
            if (device / "partition").exists():
                return self._encrypted(device.resolve().parent, depth - 1)
            below = [
                entry.resolve() for entry in (device / "slaves").iterdir()
            ]
        except OSError:
            return False
        return bool(below) and all(
            self._encrypted(one, depth - 1) for one in below
        )

    def open_swaps(self) -> list[str]:
        """Swap areas that are neither encrypted nor in memory, by name.

        :raises OSError: the kernel's list cannot be read.
        """
        data = (self._root / "proc/swaps").read_bytes()
        lines = os.fsdecode(data).split("\n")
        # the first line is the heading
        return [
            name
            for name in (line.split()[0] for line in lines[1:] if line.strip())
            if not self._swap_is_safe(name)
        ]

    def _swap_is_safe(self, name: str) -> bool:
        # the kernel writes blanks in names as octal escapes
        path = re.sub(
            r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name
        )
        try:
            status = os.stat(self._root / path.lstrip("/"))
        except (OSError, ValueError):
            return False
        if stat.S_ISBLK(status.st_mode):
            major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
            where = self._root / f"sys/dev/block/{major}:{minor}"
            if self._zram(where):
                return True
        else:
            # fscrypt refuses swap files
            major, minor = os.major(status.st_dev), os.minor(status.st_dev)
        return self._device(major, minor) is Kind.DM_CRYPT

    @staticmethod
    def _zram(device: Path) -> bool:
        """Compressed memory, none of which is written back to a disk."""
        try:
            if not device.resolve().name.startswith("zram"):
                return False
        except OSError:
            return False
        backing = device / "backing_dev"
        return not backing.exists() or _word(backing) == "none"


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeError):
        return ""
