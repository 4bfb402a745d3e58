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
"""What is asked of a disk: listed modules, the boot-critical set, all.

A module is ``<volume>:<path>``: the SHA-256 of a file's content (links are
followed within the volume), with a ``/`` at the end the digest of a
directory (see :mod:`.tree`), or ``<volume>:@<area>``: ``@table`` and
``@boot-area`` of a disk, ``@boot-area`` of a volume, or ``@raw``, all of a
volume's bytes.
"""

import fnmatch
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from mh_reader.inside import table, tree
from mh_reader.inside.blocks import BLOCK, Disk, Part, Refused, Volume
from mh_reader.inside.files import Budget, Entry, System
from mh_reader.inside.kinds import boot_area

_GAP = 64 << 20
_MOST_NAMES = 4096
#: Directories that are boot loaders', kernels' and their configuration's.
_BOOT_FOLDERS = (
    *("boot", "efi", "loader", "grub", "grub2", "syslinux", "extlinux"),
    *("isolinux", "bls"),
)
#: In the root of a file system, as fnmatch patterns on lower case.
_BOOT_FILES = (
    *("vmlinu[xz]*", "bzimage*", "kernel*", "initrd*", "initramfs*"),
    *("system.map*", "config-*", "*.efi", "ldlinux.*", "*.c32"),
    *("syslinux.cfg", "extlinux.conf", "grub.cfg", "grubenv", "menu.lst"),
    *("bootmgr", "bootnxt", "ntldr", "boot.ini"),
)
#: Of Windows, where it is.
_BOOT_PATHS = (
    "/Windows/System32/winload.exe",
    "/Windows/System32/winload.efi",
    "/Windows/System32/ntoskrnl.exe",
    "/Windows/System32/hal.dll",
    "/Windows/System32/ci.dll",
)


class Work:
    """
    :param modules: library name to module: ``ext``, ``xfs``, ``fat``,
        ``ntfs``, ``gpt``, ``lvm``.
    """

    def __init__(
        self, disk: Disk, modules: Mapping[str, Any], budget: Budget
    ) -> None:
        self._disk = disk
        self._modules = modules
        self._budget = budget
        self._table = table.read(disk, modules["gpt"], modules["lvm"])
        self._systems: dict[str, System | None] = {}

    def run(self, measure: str, names: list[str]) -> dict[str, str]:
        """Module to SHA-256 (hex).

        :param names: of ``modules``: full names, or paths, which then must
            be on exactly one volume.
        """
        if measure == "modules":
            found = dict(self._module(name) for name in names)
        elif measure == "boot":
            found = dict(self._boot())
        else:
            found = dict(self._all())
        if not found:
            raise Refused("there is nothing to measure")
        return found

    # -- volumes ---------------------------------------------------------

    def _place(self, name: str) -> table.Place:
        for place in self._table.places:
            if place.name == name:
                return place
        raise Refused(f"{name}: the disk has no such volume")

    def _system(self, place: table.Place) -> System | None:
        if not place.kind:
            return None
        if place.name not in self._systems:
            self._systems[place.name] = System(
                place.kind,
                self._modules[place.kind],
                place.data,
                self._budget,
            )
        return self._systems[place.name]

    def _raw(self, data: Part | Volume, start: int, size: int) -> str:
        self._budget.data(size)
        digest = hashlib.sha256()
        done = 0
        while done < size:
            part = data.at(start + done, min(BLOCK, size - done))
            if not part:
                raise Refused("a volume ends before its size")
            digest.update(part)
            done += len(part)
        return digest.hexdigest()

    # -- listed modules --------------------------------------------------

    def _module(self, name: str) -> tuple[str, str]:
        if name.startswith("/"):
            name = self._resolve(name)
        volume, _, path = name.partition(":")
        if path.startswith("@"):
            return name, self._area(volume, path)
        place = self._place(volume)
        entry = self._entry(place, path)
        if entry is None:
            raise Refused(f"{name}: is not there")
        if path.endswith("/"):
            if entry.kind != "d":
                raise Refused(f"{name}: is no directory")
            return name, tree.digest(entry)
        if entry.kind != "f":
            raise Refused(f"{name}: is no regular file")
        return name, entry.digest().hex()

    def _entry(self, place: table.Place, path: str) -> Entry | None:
        system = self._system(place)
        return None if system is None else system.find(path)

    def _resolve(self, path: str) -> str:
        volumes = [
            place.name
            for place in self._table.places
            if self._entry(place, path) is not None
        ]
        if len(volumes) != 1:
            where = ", ".join(volumes) or "no volume"
            raise Refused(f"{path}: is on {where}; name it <volume>:<path>")
        return f"{volumes[0]}:{path}"

    def _area(self, volume: str, area: str) -> str:
        whole = Part(self._disk, 0, self._disk.size)
        if volume == "disk" and self._table.label:
            if area == "@boot-area":
                # the code of the first sector, and the gap: the table
                # between them has a name of its own
                return self._raw(whole, 0, 440)
            if area == "@table" and self._table.gap <= _GAP:
                return self._raw(whole, 440, self._table.gap - 440)
        else:
            place = self._place(volume)
            if area == "@raw":
                return self._raw(place.data, 0, place.data.get_size())
            size = boot_area(place.kind, place.data)
            if area == "@boot-area" and size:
                return self._raw(place.data, 0, size)
        raise Refused(f"{volume}:{area}: there is no such area")

    # -- the boot-critical set -------------------------------------------

    def _boot(self) -> Iterator[tuple[str, str]]:
        count = 0
        for name in self._boot_names():
            count += 1
            if count > _MOST_NAMES:
                raise Refused("too many files to boot from")
            yield self._module(name)

    def _areas(self) -> Iterator[str]:
        if self._table.label:
            yield from ("disk:@boot-area", "disk:@table")
        for place in self._table.places:
            if place.boot:
                yield f"{place.name}:@raw"
            elif boot_area(place.kind, place.data):
                yield f"{place.name}:@boot-area"

    def _boot_names(self) -> Iterator[str]:
        yield from self._areas()
        for place in self._table.places:
            system = self._system(place)
            if system is None:
                continue
            for entry in system.root.children():
                low = entry.name.lower()
                if entry.kind == "d" and low in _BOOT_FOLDERS:
                    yield from _inside(f"{place.name}:/", entry)
                elif any(
                    fnmatch.fnmatchcase(low, one) for one in _BOOT_FILES
                ) and (
                    entry.kind == "f"
                    or _leads_to_file(f"/{entry.name}", entry)
                ):
                    yield f"{place.name}:/{entry.name}"
            if system.kind == "ntfs":
                for path in _BOOT_PATHS:
                    if system.find(path) is not None:
                        yield f"{place.name}:{path}"

    # -- all -------------------------------------------------------------

    def _all(self) -> Iterator[tuple[str, str]]:
        for name in self._areas():
            yield self._module(name)
        for place in self._table.places:
            if self._system(place) is not None:
                yield self._module(f"{place.name}:/")
            elif not place.boot:
                yield self._module(f"{place.name}:@raw")


def _inside(start: str, folder: Entry) -> Iterator[str]:
    """Of ``/boot`` the files by name and each directory as a whole; of
    other folders the whole."""
    top = f"{start}{folder.name}/"
    if folder.name.lower() != "boot":
        yield top
        return
    for entry in folder.children():
        if entry.kind == "f" or _leads_to_file(f"/boot/{entry.name}", entry):
            yield top + entry.name
        elif entry.kind == "d":
            yield f"{top}{entry.name}/"


def _leads_to_file(path: str, entry: Entry) -> bool:
    if entry.kind != "l":
        return False
    found = entry.system.find(path)
    return found is not None and found.kind == "f"
