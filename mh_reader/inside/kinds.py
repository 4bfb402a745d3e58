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
"""What a volume holds, by its own bytes.

Sources: ext4's disk layout (superblock at 1024, magic at 56), XFS's
superblock, Microsoft's FAT specification (BPB), NTFS's boot sector, lvm2's
label.
"""

import struct

from mh_reader.inside.blocks import Part, Volume

_SIZES = (512, 1024, 2048, 4096)


def kind_of(data: Part | Volume) -> str:
    """``ext``, ``xfs``, ``fat``, ``ntfs``, ``lvm``, or empty."""
    head = data.at(0, 4096)
    if len(head) < 2048:
        return ""
    if any(head[at : at + 8] == b"LABELONE" for at in range(0, 2048, 512)):
        return "lvm"
    if head[:4] == b"XFSB":
        return "xfs"
    if head[1080:1082] == b"\x53\xef":
        return "ext"
    if head[510:512] == b"\x55\xaa":
        if head[3:11] == b"NTFS    ":
            return "ntfs"
        if _fat(head):
            return "fat"
    return ""


def _fat(head: bytes) -> bool:
    (size,) = struct.unpack_from("<H", head, 11)
    cluster, (reserved, copies) = head[13], struct.unpack_from("<HB", head, 14)
    return (
        head[0] in (0xEB, 0xE9)
        and size in _SIZES
        and cluster in (1, 2, 4, 8, 16, 32, 64, 128)
        and reserved > 0
        and copies in (1, 2)
    )


def boot_area(kind: str, data: Part | Volume) -> int:
    """Bytes at a volume's start that a boot loader may live in."""
    if kind == "ext":
        return 1024
    if kind == "ntfs":
        return 8192
    if kind == "fat":
        head = data.at(0, 512)
        size, _cluster, reserved = struct.unpack_from("<HBH", head, 11)
        return min(int(size) * int(reserved), data.get_size())
    return 0
