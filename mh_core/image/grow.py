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

"""Make an encrypted qcow2 image larger, without a key.

The clusters of the new part are unallocated, so nothing is encrypted for it:
two fields of the header change, ``size`` and ``l1_size``.  The L1 table
keeps its place; it may grow into the rest of its last cluster, which belongs
to it alone and holds nothing.  With clusters of 64 KiB a table of one
cluster covers 4 TiB, or 2 TiB with subclusters, so an image that
``mh_core.image.overlay`` wrote can grow to the next multiple of that.

Source: QEMU docs/interop/qcow2 ("Header", "Host cluster management").
"""

import os
import struct

from mh_core.errors import InputError
from mh_core.image.qcow2 import read_at
from mh_core.image.qcow2_header import (
    ENTRY,
    INCOMPATIBLE_EXTENDED_L2,
    MAX_L1_BYTES,
    Qcow2Header,
)

#: ``size``, ``crypt_method`` and ``l1_size`` are neighbours in the header.
_FIELDS = struct.Struct(">QII")
_OFFSET = 24


def _bad(cause: str, message: str) -> InputError:
    return InputError(f"core.image.grow.{cause}", message)


def limit(header: Qcow2Header) -> int:
    """The largest virtual size, in bytes, that the L1 table has room for."""
    cluster = 1 << header.cluster_bits
    table = -(-header.l1_size * ENTRY // cluster) * cluster
    entries = min(table, MAX_L1_BYTES) // ENTRY
    return entries * cluster * (cluster // header.l2_entry)


def grow(fd: int, header: Qcow2Header, virtual_size: int) -> None:
    """Set a larger virtual size; one write within one sector, then synced.

    The guest must be off, and the backing file, if any, not larger than the
    image is now: what it has beyond would come into view.

    :param fd: open for reading and writing.
    :param header: read from ``fd``, and one that passed ``qcow2.check``.
    :param virtual_size: bytes, a multiple of 512; the present one changes
        nothing.
    :raises InputError: ``core.image.grow.`` and one of ``shrink``, ``size``,
        ``room``, ``table``, ``file``; ``core.image.qcow2.read``.
    """
    if virtual_size < header.virtual_size:
        raise _bad("shrink", "an image is never made smaller")
    if virtual_size == header.virtual_size:
        return
    if virtual_size % 512:
        raise _bad("size", "the virtual size is not a number of sectors")
    if header.incompatible_features & ~INCOMPATIBLE_EXTENDED_L2:
        raise _bad("size", "the image has features")
    if virtual_size > limit(header):
        raise _bad("room", "the image's L1 table has no room for this size")
    cluster = 1 << header.cluster_bits
    entries = -(-virtual_size // (cluster * (cluster // header.l2_entry)))
    entries = max(entries, header.l1_size)
    length = (entries - header.l1_size) * ENTRY
    rest = read_at(fd, length, header.l1_offset + header.l1_size * ENTRY)
    # what is not in the file reads as zeros, once the table is used
    if any(rest):
        raise _bad("table", "something lies behind the image's L1 table")
    end = header.l1_offset + entries * ENTRY
    try:
        if os.fstat(fd).st_size < end:
            os.ftruncate(fd, -(-end // cluster) * cluster)
        os.pwrite(
            fd,
            _FIELDS.pack(virtual_size, header.crypt_method, entries),
            _OFFSET,
        )
        os.fsync(fd)
    except OSError as exc:
        raise _bad(
            "file",
            f"the image cannot be written: {os.strerror(exc.errno or 0)}",
        ) from None
