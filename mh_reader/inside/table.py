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
"""Partitions and logical volumes of a disk.

Names: ``disk`` is the whole of a disk without a partition table, ``p<n>``
partition n as the guest numbers it, ``<group>/<volume>`` a logical volume.

Sources: UEFI 2.10, section 5 (MBR and GPT); lvm2's format of a physical
volume's label.  GPT and LVM are read by libvsgpt and libvslvm.
"""

import re
import struct
from dataclasses import dataclass
from typing import Any

from mh_reader.inside.blocks import Disk, Part, Refused, Volume
from mh_reader.inside.kinds import kind_of

SECTOR = 512
_MOST = 256
#: Of GPT and MBR: partitions that hold a boot loader and no file system.
_BOOT_TYPES = (
    "21686148-6449-6e6f-744e-656564454649",
    "9e1a2d38-c612-4316-aa26-8b49521e5a8b",
)
_BOOT_KIND = 0x41
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_LVM_NAME = re.compile(r"[A-Za-z0-9+_][A-Za-z0-9+_.-]{0,127}")


@dataclass(frozen=True)
class Place:
    """A partition or logical volume, or a disk without partitions.

    :param boot: holds a boot loader and no file system.
    :param kind: see :func:`.kinds.kind_of`; empty: none we know.
    """

    name: str
    data: Part | Volume
    boot: bool
    kind: str


@dataclass(frozen=True)
class Table:
    """What a disk is divided into.

    :param label: ``gpt``, ``mbr``, or empty: no partition table.
    :param gap: bytes of the table and of what lies before the first
        partition.
    """

    label: str
    gap: int
    places: tuple[Place, ...]


def read(disk: Disk, gpt: Any, lvm: Any) -> Table:
    """
    :param gpt: the module ``pyvsgpt``.
    :param lvm: the module ``pyvslvm``.
    :raises Refused: a table that contradicts itself.
    """
    whole = Part(disk, 0, disk.size)
    head = disk.at(0, 2 * SECTOR)
    label = ""
    ranges: list[tuple[str, int, int, bool]] = []
    if head[SECTOR : SECTOR + 8] == b"EFI PART":
        label, ranges = "gpt", _gpt(disk, gpt)
    elif kind_of(whole) not in ("fat", "ntfs"):
        ranges = _mbr(disk)
        label = "mbr" if ranges else ""
    if not label:
        ranges = [("disk", 0, disk.size, False)]
    places: list[Place] = []
    for name, start, size, boot in ranges:
        part = Part(disk, start, size)
        kind = "" if boot else kind_of(part)
        if kind == "lvm":
            places += _logical(part, lvm)
        else:
            places.append(Place(name, part, boot, kind))
    names = [place.name for place in places]
    if len(set(names)) != len(names) or len(names) > _MOST:
        raise Refused("the disk's volumes do not have names of their own")
    gap = min(start for _n, start, _s, _b in ranges) if label else 0
    return Table(label, gap, tuple(places))


def _gpt(disk: Disk, gpt: Any) -> list[tuple[str, int, int, bool]]:
    volume = gpt.volume()
    volume.open_file_object(Part(disk, 0, disk.size))
    if volume.bytes_per_sector != SECTOR:
        raise Refused("a partition table of another sector size")
    count = volume.number_of_partitions
    if not 0 < count <= _MOST:
        raise Refused("a partition table without partitions")
    out = []
    for index in range(count):
        one = volume.get_partition(index)
        boot = str(one.type_identifier).lower() in _BOOT_TYPES
        out.append(
            (f"p{one.entry_index + 1}", one.volume_offset, one.size, boot)
        )
    return _apart(out)


def _entries(sector: bytes) -> list[tuple[int, int, int, int]]:
    """(slot, kind, first sector, sectors) of a table's used entries."""
    out = []
    for slot in range(4):
        entry = sector[446 + 16 * slot : 462 + 16 * slot]
        start, count = struct.unpack_from("<II", entry, 8)
        if entry[0] not in (0, 0x80):
            return []
        if entry[4] and count:
            out.append((slot + 1, entry[4], start, count))
    return out


def _mbr(disk: Disk) -> list[tuple[str, int, int, bool]]:
    sector = disk.at(0, SECTOR)
    if len(sector) < SECTOR or sector[510:] != b"\x55\xaa":
        return []
    out = []
    entries = _entries(sector)
    if any(kind == _PROTECTIVE for _s, kind, _b, _c in entries):
        raise Refused("the partition table (GPT) is damaged")
    for slot, kind, start, count in entries:
        if kind in _EXTENDED:
            out += _chain(disk, start, count)
            continue
        out.append(
            (f"p{slot}", start * SECTOR, count * SECTOR, kind == _BOOT_KIND)
        )
    return _apart(out) if out else []


def _chain(
    disk: Disk, base: int, room: int
) -> list[tuple[str, int, int, bool]]:
    """Logical partitions; each table may only point further on."""
    out: list[tuple[str, int, int, bool]] = []
    at = base
    while len(out) < _MOST:
        sector = disk.at(at * SECTOR, SECTOR)
        if len(sector) < SECTOR or sector[510:] != b"\x55\xaa":
            raise Refused("the chain of logical partitions is broken")
        following = 0
        for _slot, kind, start, count in _entries(sector):
            if kind in _EXTENDED:
                following = base + start
            else:
                out.append(
                    (
                        f"p{5 + len(out)}",
                        (at + start) * SECTOR,
                        count * SECTOR,
                        kind == _BOOT_KIND,
                    )
                )
        if not following:
            return out
        if not at < following < base + room:
            raise Refused("the chain of logical partitions is a loop")
        at = following
    raise Refused("too many logical partitions")


def _apart(
    ranges: list[tuple[str, int, int, bool]],
) -> list[tuple[str, int, int, bool]]:
    end = SECTOR
    for _name, start, size, _boot in sorted(ranges, key=lambda one: one[1]):
        if start < end or size <= 0:
            raise Refused("partitions overlap")
        end = start + size
    return sorted(ranges, key=lambda one: int(one[0][1:]))


def _logical(part: Part, lvm: Any) -> list[Place]:
    handle = lvm.handle()
    handle.open_file_object(part)
    handle.open_physical_volume_files_as_file_objects([part])
    group = handle.get_volume_group()
    if group.number_of_physical_volumes != 1:
        raise Refused("a volume group of several physical volumes")
    out = []
    count = group.number_of_logical_volumes
    if count > _MOST:
        raise Refused("too many logical volumes")
    for index in range(count):
        one = group.get_logical_volume(index)
        for name in (group.name, one.name):
            if not _LVM_NAME.fullmatch(str(name)):
                raise Refused("a logical volume has no proper name")
        data = Volume(one, one.size)
        # the library's objects do not keep their parents alive
        data.keep = (handle, group)  # type: ignore[attr-defined]
        kind = kind_of(data)
        out.append(
            Place(
                f"{group.name}/{one.name}",
                data,
                False,
                "" if kind == "lvm" else kind,
            )
        )
    return sorted(out, key=lambda place: place.name)
