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

"""One encrypted disk, as qcow2 with LUKS inside or as raw LUKS1.

Checks its headers, opens them with a key, and reads the start of the disk
that the guest sees, so that what is inside can be looked at as well: a disk
that is itself a qcow2, VMDK or LUKS file is refused, as nova refuses it in
an image that is not encrypted.

Sources: LUKS On-Disk Format Specification 1.2.3; QEMU docs/interop/qcow2
(cluster mapping) and block/qcow2-cluster.c (with LUKS, the number that the
cipher takes is that of the sector in the file, not in the disk).
"""

import os
import struct
from dataclasses import dataclass

from mh_core.errors import InputError, VerificationError
from mh_core.image import afsplit, identify, luks1, mapping, qcow2
from mh_core.image.qcow2 import Qcow2Header, read_at

EVENT = "core.image.disk"
#: What a guest's disk may look like; everything else is a file in a file.
CONTENT = ("raw", "iso")
_SECTOR = afsplit.SECTOR
_OFFSET = (1 << 56) - 512
_ZERO = 1
_HEAD = -(-identify.HEAD_SIZE // _SECTOR) * _SECTOR


@dataclass(frozen=True)
class EncryptedDisk:
    """A disk whose headers passed :func:`check`.

    :param driver: QEMU's name of its format, qcow2 or luks.
    :param virtual_size: bytes the guest sees.
    :param header: of the qcow2 file; None for raw LUKS.
    """

    driver: str
    virtual_size: int
    luks: luks1.Luks1Header
    header: Qcow2Header | None = None


def check(
    fd: int,
    driver: str,
    virtual_size: int | None = None,
    max_iterations: int = 10_000_000,
) -> EncryptedDisk:
    """Every header of a disk that stands alone, and its cluster mapping.

    :param fd: open for reading.
    :param driver: qcow2 or luks, never probed.
    :param virtual_size: bytes it must have, where known.
    :param max_iterations: the most PBKDF2 rounds that trying every active
        slot may take: the header is a tenant's, the time is the host's.
    :raises InputError: ``core.image.qcow2.*``, ``core.image.luks.*``,
        ``core.image.disk.driver``.
    :raises VerificationError: ``core.image.qcow2.*``,
        ``core.image.disk.virtual-size``.
    """
    if driver == "qcow2":
        header, luks = qcow2.inspect(fd, max_iterations)
        qcow2.check(header, backing=None, virtual_size=virtual_size)
        mapping.check(fd, header)
        _rounds(luks, max_iterations)
        return EncryptedDisk(driver, header.virtual_size, luks, header)
    if driver != "luks":
        raise InputError(EVENT + ".driver", "not a format of ours")
    luks = luks1.parse(read_at(fd, luks1.HEADER_SIZE, 0), max_iterations)
    _rounds(luks, max_iterations)
    size = os.fstat(fd).st_size - luks.size
    if size <= 0 or size % _SECTOR:
        raise InputError(
            "core.image.luks.payload", "the payload is not whole sectors"
        )
    if virtual_size is not None and size != virtual_size:
        raise VerificationError(
            EVENT + ".virtual-size", "the virtual size is not the expected"
        )
    return EncryptedDisk(driver, size, luks)


def _rounds(luks: luks1.Luks1Header, most: int) -> None:
    rounds = sum(
        slot.iterations + luks.mk_digest_iterations
        for slot in luks.slots
        if slot.active
    )
    if rounds > most:
        raise InputError(
            "core.image.luks.iterations",
            f"{rounds} PBKDF2 iterations to open it are not allowed",
        )


def unlock(
    fd: int,
    disk: EncryptedDisk,
    passphrase: bytes,
    max_iterations: int = 10_000_000,
) -> bytes:
    """The master key; the caller keeps it no longer than it must.

    :raises VerificationError: ``core.image.luks.passphrase``.
    :raises InputError: ``core.image.luks.*``, ``core.image.qcow2.read``.
    """
    if disk.header is None:
        area = read_at(fd, disk.luks.size, 0)
    else:
        area = qcow2.read_luks(fd, disk.header)
    return luks1.unlock(area, passphrase, max_iterations)


def head(fd: int, disk: EncryptedDisk, master: bytes) -> bytes:
    """The first bytes of what the guest sees, deciphered in memory.

    :param master: from :func:`unlock`.
    :returns: enough for ``identify.kind``, or all of a smaller disk.
    """
    left = min(_HEAD, disk.virtual_size)
    if disk.header is None:
        data = read_at(fd, left, disk.luks.size)
        return afsplit.decrypt(disk.luks.cipher_mode, master, data)
    parts = []
    cluster = 1 << disk.header.cluster_bits
    for number in range(-(-left // cluster)):
        size = min(cluster, left)
        left -= size
        parts.append(_cluster(fd, disk, disk.header, number, size, master))
    return b"".join(parts)


def _entry(fd: int, offset: int) -> int:
    data = read_at(fd, 8, offset)
    if len(data) != 8:
        raise InputError("core.image.qcow2.mapping", "a table is cut off")
    return int(struct.unpack(">Q", data)[0])


def _cluster(
    fd: int,
    disk: EncryptedDisk,
    header: Qcow2Header,
    number: int,
    size: int,
    master: bytes,
) -> bytes:
    """The start of one guest cluster; mapping.check has seen the tables."""
    per_table = (1 << header.cluster_bits) // 8
    table = _entry(fd, header.l1_offset + number // per_table * 8) & _OFFSET
    entry = _entry(fd, table + number % per_table * 8) if table else 0
    offset = entry & _OFFSET
    if not offset or entry & _ZERO:
        return bytes(size)
    data = read_at(fd, size, offset)
    if len(data) != size:
        raise InputError("core.image.qcow2.mapping", "a cluster is cut off")
    return afsplit.decrypt(
        disk.luks.cipher_mode, master, data, offset // _SECTOR
    )


def check_content(fd: int, disk: EncryptedDisk, master: bytes) -> str:
    """What the guest's disk looks like; no file within a file.

    :returns: one of :data:`CONTENT`.
    :raises VerificationError: ``core.image.disk.content``.
    """
    kind = identify.kind(head(fd, disk, master))
    if kind not in CONTENT:
        raise VerificationError(
            EVENT + ".content",
            f"inside the encryption is a file of type {kind}, not a disk",
        )
    return kind
