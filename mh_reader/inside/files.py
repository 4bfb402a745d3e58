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
"""One face for four libraries that read file systems.

ext2/3/4, XFS, FAT and NTFS are read by libfsext, libfsxfs, libfsfat and
libfsntfs.  They are asked for as little as will do: names, kinds, sizes and
content.
"""

import hashlib
import stat
from collections.abc import Callable, Iterator
from typing import Any

from mh_reader.inside.blocks import Part, Refused, Volume

_CHUNK = 1 << 20
_LINKS = 40
_MOST_IN_ONE = 1 << 20
_DIRECTORY, _REPARSE = 0x10, 0x400
_KINDS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
}


class Budget:
    """What one measurement may read in all.

    :param data: bytes.
    :param entries: names.
    """

    def __init__(self, data: int, entries: int) -> None:
        self._data = data
        self._entries = entries

    def data(self, count: int) -> None:
        self._data -= count
        if self._data < 0:
            raise Refused("more to read than a disk of this size can hold")

    def entry(self) -> None:
        self._entries -= 1
        if self._entries < 0:
            raise Refused("too many files")


class Entry:
    """A file, directory or link.

    :param kind: one letter of ``fdlcbps``, as find(1) prints it.
    """

    def __init__(self, system: "System", entry: Any, name: str) -> None:
        self.system = system
        self.name = name
        self._e = entry
        self.mode = self.owner = self.group = self.device = 0
        if system.unix:
            self.mode = int(entry.file_mode)
            kind = _KINDS.get(stat.S_IFMT(self.mode))
            if kind is None:
                raise Refused("a file of no known kind")
            self.kind = kind
            self.owner = int(entry.owner_identifier)
            self.group = int(entry.group_identifier)
            if kind in "cb":
                number = entry.device_number
                # two numbers, or one; none where the library has none
                parts = number if isinstance(number, tuple) else (number or 0,)
                for part in parts:
                    self.device = self.device << 32 | int(part)
        else:
            # the root directory has no entry that says what it is
            self.kind = system.foreign_kind(entry) if name else "d"

    @property
    def size(self) -> int:
        return int(self._e.size or 0) if self.kind == "f" else 0

    def target(self) -> str:
        """Of a symbolic link."""
        target = self._e.symbolic_link_target
        if target is None:
            raise Refused("a symbolic link leads nowhere")
        return str(target)

    def children(self) -> list["Entry"]:
        """In the order of their names' bytes; none twice."""
        count = int(self._e.number_of_sub_file_entries)
        if count > _MOST_IN_ONE:
            raise Refused("a directory is too large")
        found: dict[bytes, Entry] = {}
        for one in self._e.sub_file_entries:
            self.system.budget.entry()
            name = str(one.name)
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise Refused("a file has a name that is none")
            key = name.encode("utf-8", "surrogatepass")
            if key in found:
                raise Refused("two files of one name")
            if not self.system.hidden(self._e, name):
                found[key] = Entry(self.system, one, name)
        return [found[key] for key in sorted(found)]

    def child(self, name: str) -> "Entry | None":
        fold: Callable[[str], str] = (
            (lambda text: text) if self.system.unix else str.casefold
        )
        for one in self._e.sub_file_entries:
            self.system.budget.entry()
            if fold(str(one.name)) == fold(name):
                return Entry(self.system, one, str(one.name))
        return None

    def streams(self) -> Iterator[tuple[str, Any]]:
        """NTFS: named streams beside the content."""
        if self.system.kind == "ntfs":
            count = int(self._e.number_of_alternate_data_streams)
            for index in range(min(count, 4096)):
                one = self._e.get_alternate_data_stream(index)
                yield str(one.name), one

    def digest(self) -> bytes:
        """SHA-256 of the content of a regular file."""
        if not self.size:
            return hashlib.sha256().digest()
        return self.system.hash(self._e, self.size)


class System:
    """A file system that was opened.

    :param module: the library for ``kind``.
    """

    def __init__(
        self, kind: str, module: Any, data: Part | Volume, budget: Budget
    ) -> None:
        self.kind = kind
        self.unix = kind in ("ext", "xfs")
        self.budget = budget
        self._volume = module.volume()
        self._volume.open_file_object(data)
        self.root = Entry(self, self._volume.get_root_directory(), "")

    def foreign_kind(self, entry: Any) -> str:
        flags = int(entry.file_attribute_flags)
        if self.kind == "fat":
            return "d" if flags & _DIRECTORY else "f"
        if flags & _REPARSE and entry.symbolic_link_target is not None:
            return "l"
        return "d" if entry.has_directory_entries_index() else "f"

    def hidden(self, parent: Any, name: str) -> bool:
        """NTFS's own files, in the root and in ``$Extend``."""
        if self.kind != "ntfs" or not name.startswith("$"):
            return False
        return int(parent.file_reference) & 0xFFFFFFFFFFFF in (5, 11)

    def hash(self, stream: Any, size: int) -> bytes:
        self.budget.data(size)
        digest = hashlib.sha256()
        stream.seek(0)
        left = size
        while left:
            part = stream.read(min(left, _CHUNK))
            if not part:
                raise Refused("a file ends before its size")
            digest.update(part)
            left -= len(part)
        return digest.digest()

    def find(self, path: str) -> Entry | None:
        """Follows symbolic links, within this file system."""
        trail = [self.root]
        wanted = _words(path)
        links = 0
        while wanted:
            word = wanted.pop(0)
            if word == "..":
                trail = trail[:-1] or [self.root]
                continue
            if trail[-1].kind != "d":
                return None
            found = trail[-1].child(word)
            if found is None:
                return None
            if found.kind != "l":
                trail.append(found)
                continue
            links += 1
            if links > _LINKS:
                raise Refused("too many symbolic links")
            target = found.target()
            if target.startswith("/"):
                trail = [self.root]
            wanted = _words(target) + wanted
        return trail[-1]


def _words(path: str) -> list[str]:
    if len(path) > 4096:
        raise Refused("a path is too long")
    return [word for word in path.split("/") if word not in ("", ".")]
