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

"""Write a qcow2 file with LUKS inside; derive the key of an overlay.

Sources: QEMU docs/interop/qcow2 ("Header", "Header extensions", "Full disk
encryption header pointer", "Host cluster management"); RFC 5869 section 2.3
(HKDF-Expand).

Layout, in clusters of 64 KiB: header; LUKS header with key material;
refcount table; one refcount block; L1 table; where there is a content, one
L2 table and its clusters. QEMU adds the rest as the guest writes.

An overlay has subclusters of 2 KiB ("Extended L2 Entries"): else the guest's
first 4 KiB in a cluster cost 60 KiB read from the base, deciphered, enciphered
again and written. A disk without a backing file has nothing to copy.
"""

import os
import stat
import struct
import uuid
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from mh_core.errors import InputError
from mh_core.image import afsplit, luks1
from mh_core.image import qcow2_header as qcow2

CLUSTER_BITS = 16
FORMATS = ("qcow2", "luks")
LABEL = b"mh/overlay/v1"
MAX_DISK_NAME = 255

_CLUSTER = 1 << CLUSTER_BITS
_HEADER_LENGTH = 112
#: The most bytes a content may have: one L2 table could map 512 MiB.
MAX_CONTENT = 64 << 20
_COPIED = 1 << 63


def _bad(cause: str, message: str) -> InputError:
    return InputError(f"core.image.overlay.{cause}", message)


def expand(root: bytes, *parts: bytes) -> bytes:
    """A key out of an overlay root, for what ``parts`` name.

    HKDF-Expand with SHA-256 over ``root``; info is each part after its
    length in 4 bytes, big-endian.

    :param root: the overlay root of the tenant's key, 32 bytes.
    :param parts: the first is a label that no other kind of key has.
    :returns: 32 bytes.
    :raises InputError: ``core.image.overlay.root``.
    """
    if len(root) != 32 or not any(root):
        raise _bad("root", "an overlay root is 32 bytes, not all zero")
    info = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return HKDFExpand(hashes.SHA256(), 32, info).derive(root)


def overlay_key(
    root: bytes, instance: uuid.UUID, disk: str, luks_uuid: uuid.UUID
) -> bytes:
    """The key of one disk of one instance.

    :func:`expand` with the label ``mh/overlay/v1``, the instance's uuid (16
    bytes), the disk's name (UTF-8) and the LUKS uuid (16 bytes).

    :param root: the overlay root of the tenant's key, 32 bytes.
    :param instance: uuid of the instance.
    :param disk: name of the disk, such as ``disk``; 1 to 255 bytes.
    :param luks_uuid: stands in the overlay's LUKS header.
    :returns: 32 bytes.
    :raises InputError: ``core.image.overlay.root``,
        ``core.image.overlay.disk``.
    """
    try:
        name = disk.encode("utf-8")
    except UnicodeEncodeError:
        raise _bad("disk", "the name of the disk is not text") from None
    if not 1 <= len(name) <= MAX_DISK_NAME:
        raise _bad("disk", "the name of the disk has a bad length")
    return expand(root, LABEL, instance.bytes, name, luks_uuid.bytes)


def _extension(kind: int, body: bytes) -> bytes:
    padded = body.ljust(-(-len(body) // 8) * 8, b"\0")
    return qcow2.EXTENSION.pack(kind, len(body)) + padded


def _head(
    virtual_size: int,
    luks: tuple[int, int],
    tables: tuple[int, int, int],
    backing: tuple[bytes, bytes] | None,
    features: int,
) -> bytes:
    """The first bytes of the file, up to the name of the backing file.

    :param luks: (offset, length) of the LUKS header.
    :param tables: (refcount table offset, L1 offset, L1 entries).
    :param backing: (path, format).
    :param features: incompatible ones.
    """
    name, form = backing or (b"", b"")
    extensions = _extension(
        qcow2.EXT_CRYPT_HEADER, qcow2.CRYPT_POINTER.pack(*luks)
    )
    if form:
        extensions = _extension(qcow2.EXT_BACKING_FORMAT, form) + extensions
    extensions += qcow2.EXTENSION.pack(qcow2.EXT_END, 0)
    refcount_table, l1, l1_size = tables
    header = qcow2.HEADER.pack(
        qcow2.MAGIC,
        qcow2.VERSION,
        _HEADER_LENGTH + len(extensions) if name else 0,
        len(name),
        CLUSTER_BITS,
        virtual_size,
        qcow2.CRYPT_LUKS,
        l1_size,
        l1,
        refcount_table,
        1,  # clusters of the refcount table
        0,  # snapshots
        0,
        features,
        0,  # compatible
        0,  # autoclear
        4,  # refcounts of 16 bits
        _HEADER_LENGTH,
    )
    return header.ljust(_HEADER_LENGTH, b"\0") + extensions + name


def _names(backing: tuple[str, str]) -> tuple[bytes, bytes]:
    path, form = backing
    try:
        name = path.encode("utf-8")
    except UnicodeEncodeError:
        raise _bad("backing", "the backing path is not text") from None
    if (
        not name.startswith(b"/")
        or len(name) > qcow2.MAX_BACKING_NAME
        or any(byte < 0x20 for byte in name)
        or form not in FORMATS
    ):
        raise _bad("backing", "the backing path or format is not allowed")
    return name, form.encode("ascii")


def _pwrite(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view = view[done:]
        offset += done


def _fill(
    content: bytes, start: int, master: bytes, mode: str
) -> tuple[bytes, bytes]:
    """The L2 table of a content and its clusters, encrypted.

    Clusters of zeros are left out. The number of a sector is its place in
    the file, not on the disk (QEMU block/qcow2.c, crypt_physical_offset).

    :param start: offset in the file of the first cluster.
    """
    entries = []
    clusters = bytearray()
    for at in range(0, len(content), _CLUSTER):
        part = content[at : at + _CLUSTER].ljust(_CLUSTER, b"\0")
        if not any(part):
            entries.append(0)
            continue
        offset = start + len(clusters)
        entries.append(offset | _COPIED)
        clusters += afsplit.encrypt(
            mode, master, part, offset // afsplit.SECTOR
        )
    return struct.pack(f">{len(entries)}Q", *entries), bytes(clusters)


def write(
    fd: int,
    virtual_size: int,
    key: bytes,
    luks_uuid: uuid.UUID,
    random: Callable[[int], bytes],
    backing: tuple[str, str] | None,
    cipher_mode: str = "xts-plain64",
    content: bytes = b"",
) -> None:
    """Write a complete qcow2+LUKS image; about 20 ms, whatever its size.

    :param fd: open for writing, an empty regular file. Neither synced nor
        closed here; its contents mean nothing after an error.
    :param virtual_size: bytes, a multiple of 512, over an L1 table of at
        most 32 MiB (2 PiB; 1 PiB over a backing file).
    :param key: 32 bytes; the passphrase is ``luks1.passphrase(key)``.
    :param luks_uuid: stands in the LUKS header.
    :param random: gives that many random bytes; the master key is drawn
        from it.
    :param backing: (absolute path, "qcow2" or "luks"), or None. The image
        has subclusters where there is one.
    :param cipher_mode: as ``luks1.build``.
    :param content: what the guest finds at the disk's start, 64 MiB at
        most; encrypted before it is written. None over a backing file.
    :raises InputError: ``core.image.overlay.`` and one of ``size``,
        ``content``, ``backing``, ``file``; ``core.image.luks.key``,
        ``core.image.luks.cipher``.
    """
    entry = qcow2.ENTRY if backing is None else qcow2.EXTENDED_ENTRY
    l1_size = -(-virtual_size // (_CLUSTER * (_CLUSTER // entry)))
    if (
        virtual_size <= 0
        or virtual_size % 512
        or l1_size * 8 > qcow2.MAX_L1_BYTES
    ):
        raise _bad("size", "this virtual size is not possible")
    if len(content) > min(MAX_CONTENT, virtual_size):
        raise _bad("content", "the content is larger than the disk")
    if content and backing is not None:
        raise _bad("content", "a disk over another has no content of its own")
    names = None if backing is None else _names(backing)
    area, master = luks1.build(
        luks1.passphrase(key), luks_uuid, random, cipher_mode
    )
    refcount_table = _CLUSTER * (1 + -(-len(area) // _CLUSTER))
    refcount_block = refcount_table + _CLUSTER
    l1 = refcount_block + _CLUSTER
    l2 = l1 + -(-l1_size * 8 // _CLUSTER) * _CLUSTER
    table, clusters = _fill(content, l2 + _CLUSTER, master, cipher_mode)
    end = l2 + (_CLUSTER + len(clusters) if clusters else 0)
    head = _head(
        virtual_size,
        (_CLUSTER, len(area)),
        (refcount_table, l1, l1_size),
        names,
        0 if backing is None else qcow2.INCOMPATIBLE_EXTENDED_L2,
    )
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size:
            raise _bad("file", "the target is not an empty regular file")
        os.ftruncate(fd, end)
        _pwrite(fd, area, _CLUSTER)
        _pwrite(fd, struct.pack(">Q", refcount_block), refcount_table)
        _pwrite(fd, struct.pack(">H", 1) * (end // _CLUSTER), refcount_block)
        if clusters:
            _pwrite(fd, struct.pack(">Q", l2 | _COPIED), l1)
            _pwrite(fd, table, l2)
            _pwrite(fd, clusters, l2 + _CLUSTER)
        _pwrite(fd, head, 0)
    except OSError as exc:
        raise _bad(
            "file",
            f"the image cannot be written: {os.strerror(exc.errno or 0)}",
        ) from None
