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
"""Edits the header of an encrypted disk on the node, behind nova's back.

Whoever holds the file needs no key for any of these.  Each returns how to
undo it; the image must not be in use.

The header is rewritten whole from its parts; the format is QEMU's
docs/interop/qcow2, all numbers big-endian.
"""

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mh_core.image import luks1
from mh_core.image import qcow2_header as format
from tests.minicloud.foul import Undo

_NAMES = (
    *("magic", "version", "backing_offset", "backing_size", "cluster_bits"),
    *("size", "crypt_method", "l1_size", "l1_offset", "refcount_offset"),
    *("refcount_clusters", "snapshots", "snapshots_offset", "incompatible"),
    *("compatible", "autoclear", "refcount_order", "header_length"),
)
_USED = 1 << 63
_COMPRESSED = 1 << 62
_SLOT = struct.Struct(">II32sII")
_SLOTS_AT = 208
_DIGEST_ITERATIONS_AT = 164


@dataclass
class Header:
    """The first cluster, in parts that can be changed."""

    numbers: dict[str, int]
    extra: bytes
    extensions: dict[int, bytes]
    backing: str | None
    magic: bytes = field(default=format.MAGIC)

    @classmethod
    def read(cls, path: Path) -> "Header":
        """:raises MHError: not a qcow2 file that the product would take."""
        size = path.stat().st_size
        with path.open("rb") as file:
            data = file.read(format.HEAD_MAX)
        parsed = format.parse(data, size)
        values = format.HEADER.unpack_from(data)
        numbers = dict(zip(_NAMES[1:], values[1:], strict=True))
        extensions: dict[int, bytes] = {}
        at = parsed.header_length
        for kind, length in parsed.extensions:
            at += format.EXTENSION.size
            extensions[kind] = data[at : at + length]
            at += -(-length // 8) * 8
        extra = data[format.HEADER.size : parsed.header_length]
        return cls(numbers, extra, extensions, parsed.backing_file)

    def pack(self) -> bytes:
        """The whole first cluster."""
        body = b"".join(
            format.EXTENSION.pack(kind, len(data))
            + data.ljust(-(-len(data) // 8) * 8, b"\0")
            for kind, data in self.extensions.items()
        ) + format.EXTENSION.pack(format.EXT_END, 0)
        name = (self.backing or "").encode()
        numbers = dict(self.numbers)
        numbers["backing_size"] = len(name)
        numbers["backing_offset"] = (
            numbers["header_length"] + len(body) if name else 0
        )
        head = format.HEADER.pack(
            self.magic, *(numbers[key] for key in _NAMES[1:])
        )
        cluster = 1 << numbers["cluster_bits"]
        return (head + self.extra + body + name).ljust(cluster, b"\0")


def _patch(path: Path, *pieces: tuple[int, bytes]) -> Undo:
    """Write pieces at offsets; what was there comes back with the undo."""
    before = []
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        for offset, data in pieces:
            before.append((offset, os.pread(file.fileno(), len(data), offset)))
            os.pwrite(file.fileno(), data, offset)

    def undo() -> None:
        with path.open("r+b") as file:
            for offset, data in reversed(before):
                os.pwrite(file.fileno(), data, offset)
            file.truncate(size)

    return undo


def _rewrite(path: Path, change: Callable[[Header], None]) -> Undo:
    header = Header.read(path)
    change(header)
    return _patch(path, (0, header.pack()))


def _end(path: Path, cluster: int) -> int:
    """Where a new cluster goes."""
    return -(-path.stat().st_size // cluster) * cluster


def data_file(path: Path, name: str) -> Undo:
    """Say that the clusters are in another file of the host.

    :param name: any path; QEMU would open it for the guest.
    """

    def change(header: Header) -> None:
        header.numbers["incompatible"] |= format.INCOMPATIBLE_DATA_FILE
        header.extensions[format.EXT_DATA_FILE] = name.encode()

    return _rewrite(path, change)


def backing(path: Path, other: str | None, form: str = "raw") -> Undo:
    """Put the disk over another file of the host, or over nothing."""

    def change(header: Header) -> None:
        header.backing = other
        header.extensions.pop(format.EXT_BACKING_FORMAT, None)
        if other is not None:
            header.extensions = {
                format.EXT_BACKING_FORMAT: form.encode(),
                **header.extensions,
            }

    return _rewrite(path, change)


def plain(path: Path, *, keep_pointer: bool = False) -> Undo:
    """Say that the disk is not encrypted: what the guest writes then is.

    :param keep_pointer: leave the pointer to the LUKS header, which makes
        the header contradict itself.
    """

    def change(header: Header) -> None:
        header.numbers["crypt_method"] = 0
        if not keep_pointer:
            del header.extensions[format.EXT_CRYPT_HEADER]

    return _rewrite(path, change)


def snapshot(path: Path) -> Undo:
    """Add an internal snapshot, whose state a start could revert to."""
    header = Header.read(path)
    cluster = 1 << header.numbers["cluster_bits"]
    offset = _end(path, cluster)
    entry = struct.pack(
        ">QIHHIIQII",
        header.numbers["l1_offset"],
        header.numbers["l1_size"],
        1,  # length of the id
        4,  # length of the name
        0,
        0,
        0,
        0,  # no state of a machine
        16,  # extra data
    )
    entry += struct.pack(">QQ", 0, header.numbers["size"]) + b"1foul"
    header.numbers["snapshots"] = 1
    header.numbers["snapshots_offset"] = offset
    return _patch(
        path, (offset, entry.ljust(cluster, b"\0")), (0, header.pack())
    )


def iterations(path: Path, number: int = 0xFFFFFFFF) -> Undo:
    """A count of PBKDF2 rounds that keeps whoever opens it for hours."""
    header = Header.read(path)
    pointer = header.extensions[format.EXT_CRYPT_HEADER]
    luks, _length = format.CRYPT_POINTER.unpack(pointer)
    rounds = struct.pack(">I", number)
    return _patch(
        path,
        (luks + _DIGEST_ITERATIONS_AT, rounds),
        *(
            (luks + _SLOTS_AT + slot * _SLOT.size + 4, rounds)
            for slot in range(luks1.SLOTS)
        ),
    )


def compressed(path: Path, contents: bytes) -> Undo:
    """Put contents of one's own at the start of the disk, without a key.

    QEMU inflates a compressed cluster and never decrypts it, also where the
    image is encrypted.

    :param contents: filled with zeros to a cluster.
    """
    header = Header.read(path)
    bits = header.numbers["cluster_bits"]
    cluster = 1 << bits
    if len(contents) > cluster:
        raise ValueError("more than a cluster")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
    data = deflate.compress(contents.ljust(cluster, b"\0")) + deflate.flush()
    l1 = header.numbers["l1_offset"]
    with path.open("rb") as file:
        first = os.pread(file.fileno(), 8, l1)
        table = int.from_bytes(first, "big") & ((1 << 56) - 512)
        old = os.pread(file.fileno(), cluster, table) if table else b""
    extended = header.numbers["incompatible"] & format.INCOMPATIBLE_EXTENDED_L2
    first_entry = format.EXTENDED_ENTRY if extended else format.ENTRY
    new = _end(path, cluster)
    body = new + cluster
    # bits from `62 - (bits - 8)` count 512-byte sectors after the first
    sectors = (body % 512 + len(data) - 1) // 512
    entry = _COMPRESSED | sectors << (62 - (bits - 8)) | body
    return _patch(
        path,
        (
            new,
            struct.pack(">Q", entry).ljust(first_entry, b"\0")
            + (old[first_entry:] or bytes(cluster - first_entry)),
        ),
        (body, data.ljust(cluster, b"\0")),
        (l1, struct.pack(">Q", new | _USED)),
    )
