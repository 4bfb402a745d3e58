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

"""Walk the cluster mapping of an encrypted image; refuse clear data.

QEMU does not decrypt a compressed cluster: it inflates what is there, also
where the image is encrypted. So whoever can edit the file while the guest is
off, without any key, could put chosen contents on the guest's disk. No tool
writes compressed clusters into an encrypted image, so one is a forgery. (A
cluster marked as zero or as unallocated cannot be told from a discard; that
stays possible. So it is with subclusters.)

Source: QEMU docs/interop/qcow2, sections "Cluster mapping" and "Extended L2
Entries".
"""

import os
import struct

from mh_core.errors import InputError, VerificationError
from mh_core.image.qcow2 import read_at
from mh_core.image.qcow2_header import (
    EXTENDED_ENTRY,
    INCOMPATIBLE_EXTENDED_L2,
    Qcow2Header,
)

_OFFSET = (1 << 56) - 512
_USED = 1 << 63
_COMPRESSED = 0x40
_RESERVED = 0x3F


def _tables(fd: int, header: Qcow2Header) -> list[int]:
    """Offsets of the L2 tables in use: aligned, within the file, distinct.

    Distinct, because otherwise a small file costs an unbounded time.
    """
    cluster = 1 << header.cluster_bits
    try:
        size = os.fstat(fd).st_size
    except OSError:
        raise InputError(
            "core.image.qcow2.read", "the image cannot be read"
        ) from None
    table = read_at(fd, header.l1_size * 8, header.l1_offset)
    if len(table) != header.l1_size * 8:
        raise InputError("core.image.qcow2.mapping", "the L1 table is cut off")
    found: dict[int, None] = {}
    for (entry,) in struct.iter_unpack(">Q", table):
        offset = entry & _OFFSET
        if entry & ~(_OFFSET | _USED):
            raise InputError(
                "core.image.qcow2.mapping", "an L1 entry has reserved bits"
            )
        if not offset:
            continue
        if offset % cluster or offset + cluster > size or offset in found:
            raise InputError(
                "core.image.qcow2.mapping",
                "an L2 table is misaligned, not within, or used twice",
            )
        found[offset] = None
    return list(found)


def _subclusters(table: bytes) -> None:
    """No subcluster is both there and zeros, which means nothing."""
    words = int.from_bytes(table, "big")
    there = bytes(12) + b"\xff" * 4
    mask = int.from_bytes(there * (len(table) // len(there)), "big")
    if words & words >> 32 & mask:
        raise InputError(
            "core.image.qcow2.mapping", "a subcluster is there and is zeros"
        )


def check(fd: int, header: Qcow2Header) -> None:
    """Every cluster of the image is one that QEMU decrypts.

    Reads 64 KiB for each 512 MiB in use with the usual cluster size (256 MiB
    with subclusters); an image that was just written has no table to read.

    :param fd: open for reading; the file that ``header`` was read from.
    :param header: one that passed ``qcow2.check``.
    :raises InputError: ``core.image.qcow2.mapping``,
        ``core.image.qcow2.read``.
    :raises VerificationError: ``core.image.qcow2.compressed``.
    """
    if header.incompatible_features & ~INCOMPATIBLE_EXTENDED_L2:
        raise VerificationError(
            "core.image.qcow2.features", "the image has features"
        )
    cluster = 1 << header.cluster_bits
    step = header.l2_entry
    entries = cluster // step
    compressed = int.from_bytes(bytes([_COMPRESSED]) * entries, "big")
    reserved = int.from_bytes(bytes([_RESERVED]) * entries, "big")
    for offset in _tables(fd, header):
        table = read_at(fd, cluster, offset)
        if len(table) != cluster:
            raise InputError(
                "core.image.qcow2.mapping", "an L2 table is cut off"
            )
        high = int.from_bytes(table[::step], "big")
        if high & compressed:
            raise VerificationError(
                "core.image.qcow2.compressed",
                "the image has a compressed cluster, which is not encrypted",
            )
        if high & reserved:
            raise InputError(
                "core.image.qcow2.mapping", "an L2 entry has reserved bits"
            )
        if step == EXTENDED_ENTRY:
            _subclusters(table)
