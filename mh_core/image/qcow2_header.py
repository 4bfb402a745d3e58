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

"""qcow2 v3 headers: the strict parser.

Source: QEMU docs/interop/qcow2 (sections "Header", "Additional fields",
"Header extensions", "Full disk encryption header pointer"); where QEMU 7.2
is stricter than the document, its limits. All numbers are big-endian.
"""

import struct
from dataclasses import dataclass

from mh_core.errors import InputError

MAGIC = b"QFI\xfb"
VERSION = 3
CRYPT_LUKS = 2
HEAD_MAX = 1024 * 1024
"""The most bytes of a file that :func:`parse` looks at."""

EXT_END = 0x00000000
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_CRYPT_HEADER = 0x0537BE77
EXT_DATA_FILE = 0x44415441

INCOMPATIBLE_DATA_FILE = 1 << 2
INCOMPATIBLE_COMPRESSION = 1 << 3
INCOMPATIBLE_EXTENDED_L2 = 1 << 4
AUTOCLEAR_RAW_DATA_FILE = 1 << 1

ENTRY = 8
"""Bytes of an L1 entry, and of an L2 entry."""
EXTENDED_ENTRY = 16
"""Bytes of an L2 entry with subclusters."""

HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
EXTENSION = struct.Struct(">II")
CRYPT_POINTER = struct.Struct(">QQ")
MAX_BACKING_NAME = 1023
MAX_L1_BYTES = 32 * 1024 * 1024
_MAX_REFCOUNT_TABLE = 8 * 1024 * 1024
_MAX_EXTENSIONS = 16
_MAX_FORMAT_NAME = 15
#: QEMU: a subcluster, of which a cluster has 32, is at least a sector.
_MIN_EXTENDED_BITS = 14
_FEATURE_NAME = 48


@dataclass(frozen=True)
class Qcow2Header:
    """A header that passed :func:`parse`.

    ``virtual_size``, ``luks_length`` and all offsets are bytes, ``l1_size``
    entries. ``luks_offset`` and ``luks_length`` are 0 without the pointer
    extension; with it the area lies within the file. ``extensions`` are
    (type, length in bytes) in file order, without the end mark.
    """

    version: int
    cluster_bits: int
    virtual_size: int
    crypt_method: int
    l1_size: int
    l1_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    refcount_order: int
    header_length: int
    incompatible_features: int
    compatible_features: int
    autoclear_features: int
    snapshots: int
    backing_file: str | None
    backing_format: str | None
    luks_offset: int
    luks_length: int
    extensions: tuple[tuple[int, int], ...]

    @property
    def l2_entry(self) -> int:
        """Bytes of an L2 entry."""
        extended = self.incompatible_features & INCOMPATIBLE_EXTENDED_L2
        return EXTENDED_ENTRY if extended else ENTRY


def _bad(cause: str, message: str) -> InputError:
    return InputError(f"core.image.qcow2.{cause}", message)


def _string(data: bytes, cause: str) -> str:
    """A name: UTF-8 without control characters."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise _bad(cause, "a name in the header is not UTF-8") from None
    if any(ord(character) < 0x20 for character in text):
        raise _bad(cause, "a name in the header has control characters")
    return text


def _extensions(data: bytes, start: int, end: int) -> dict[int, bytes]:
    """Header extensions by type, in order.

    :param data: the start of the file.
    :param start: where the first extension is.
    :param end: where the area ends; the end mark must come before.
    """
    found: dict[int, bytes] = {}
    at = start
    while True:
        if at + EXTENSION.size > end:
            raise _bad("extensions", "the header extensions have no end")
        if at + EXTENSION.size > len(data):
            raise _bad("truncated", "the header extensions are cut off")
        kind, length = EXTENSION.unpack_from(data, at)
        at += EXTENSION.size
        if kind == EXT_END:
            if length:
                raise _bad("extensions", "the end mark has a length")
            return found
        padded = -(-length // 8) * 8
        if at + padded > end:
            raise _bad("extensions", "a header extension runs out of bounds")
        if at + padded > len(data):
            raise _bad("truncated", "the header extensions are cut off")
        if kind in found or len(found) == _MAX_EXTENSIONS:
            raise _bad("extensions", "a header extension is there twice")
        found[kind] = data[at : at + length]
        at += padded


def _backing(
    data: bytes, offset: int, length: int, cluster: int
) -> str | None:
    if not offset and not length:
        return None
    if not offset or not 1 <= length <= MAX_BACKING_NAME:
        raise _bad("backing", "the backing file name has a bad length")
    if offset + length > cluster:
        raise _bad("backing", "the backing file name leaves the cluster")
    if offset + length > len(data):
        raise _bad("truncated", "the backing file name is cut off")
    return _string(data[offset : offset + length], "backing")


def _areas(header: Qcow2Header, file_size: int) -> None:
    """The tables are aligned, within the file, and apart."""
    cluster = 1 << header.cluster_bits
    areas = [
        (0, cluster),
        (header.l1_offset, header.l1_size * 8),
        (
            header.refcount_table_offset,
            header.refcount_table_clusters * cluster,
        ),
    ]
    if any(kind == EXT_CRYPT_HEADER for kind, _ in header.extensions):
        areas.append((header.luks_offset, header.luks_length))
    for offset, length in areas[1:]:
        if not length or offset % cluster or offset + length > file_size:
            raise _bad(
                "offset", "a table of the image is misaligned or not within"
            )
    areas.sort()
    for (offset, length), (following, _) in zip(
        areas, areas[1:], strict=False
    ):
        if offset + length > following:
            raise _bad("offset", "tables of the image overlap")


def _numbers(header: Qcow2Header, data: bytes) -> None:
    """Fields that need nothing but themselves."""
    if header.refcount_order > 6:
        raise _bad("header", "the refcount width is out of range")
    if header.crypt_method > CRYPT_LUKS:
        raise _bad("crypt-method", "the encryption method is unknown")
    cluster = 1 << header.cluster_bits
    table = header.refcount_table_clusters * cluster
    if table > _MAX_REFCOUNT_TABLE or header.l1_size * 8 > MAX_L1_BYTES:
        raise _bad("size", "a table of the image is too large")
    covered = cluster * (cluster // header.l2_entry)
    extended = header.l2_entry == EXTENDED_ENTRY
    if extended and header.cluster_bits < _MIN_EXTENDED_BITS:
        raise _bad("header", "the clusters are too small for subclusters")
    if not header.virtual_size or header.virtual_size % 512:
        raise _bad("size", "the virtual size is not a number of sectors")
    if header.l1_size < -(-header.virtual_size // covered):
        raise _bad("size", "the L1 table is too small for the virtual size")
    extra = data[HEADER.size : header.header_length]
    compression = bool(header.incompatible_features & INCOMPATIBLE_COMPRESSION)
    if any(extra[1:]) or bool(any(extra[:1])) != compression:
        raise _bad("header", "the additional header fields are malformed")


def parse(data: bytes, file_size: int) -> Qcow2Header:
    """Parse the start of a qcow2 file strictly.

    :param data: the first min(``file_size``, ``HEAD_MAX``) bytes; fewer are
        enough when they hold the header, its extensions and the name of the
        backing file.
    :param file_size: bytes of the whole file.
    :raises InputError: ``core.image.qcow2.`` and one of ``magic``,
        ``version``, ``truncated``, ``header``, ``crypt-method``, ``size``,
        ``offset``, ``extensions``, ``backing``.
    """
    data = data[:HEAD_MAX]
    if data[: len(MAGIC)] != MAGIC:
        raise _bad("magic", "this is not qcow2")
    if len(data) < HEADER.size or file_size < len(data):
        raise _bad("truncated", "the header is cut off")
    (_, version, backing_offset, backing_length, bits, size, method) = (
        HEADER.unpack_from(data)[:7]
    )
    (l1_size, l1, table, table_clusters, snapshots, snapshots_offset) = (
        HEADER.unpack_from(data)[7:13]
    )
    incompatible, compatible, autoclear, order, length = HEADER.unpack_from(
        data
    )[13:]
    if version != VERSION:
        raise _bad("version", f"qcow2 version {version} is not 3")
    if not 9 <= bits <= 21:
        raise _bad("header", "the cluster size is out of range")
    cluster = 1 << bits
    if length not in (HEADER.size, HEADER.size + 8):
        raise _bad("header", "the header length is unknown")
    if length > len(data):
        raise _bad("truncated", "the header is cut off")
    if snapshots_offset % cluster or snapshots_offset > file_size:
        raise _bad("offset", "the snapshot table is not within the file")
    name = _backing(data, backing_offset, backing_length, cluster)
    found = _extensions(
        data, length, backing_offset if name is not None else cluster
    )
    form = found.get(EXT_BACKING_FORMAT)
    if form is not None and not 1 <= len(form) <= _MAX_FORMAT_NAME:
        raise _bad("extensions", "the backing format has a bad length")
    pointer = found.get(EXT_CRYPT_HEADER)
    if (pointer is not None) != (method == CRYPT_LUKS):
        raise _bad("extensions", "no, or no use for, an encryption header")
    if pointer is not None and len(pointer) != CRYPT_POINTER.size:
        raise _bad("extensions", "the encryption header pointer is malformed")
    if len(found.get(EXT_FEATURE_NAMES, b"")) % _FEATURE_NAME:
        raise _bad("extensions", "the feature name table is malformed")
    luks = (0, 0) if pointer is None else CRYPT_POINTER.unpack(pointer)
    header = Qcow2Header(
        version=version,
        cluster_bits=bits,
        virtual_size=size,
        crypt_method=method,
        l1_size=l1_size,
        l1_offset=l1,
        refcount_table_offset=table,
        refcount_table_clusters=table_clusters,
        refcount_order=order,
        header_length=length,
        incompatible_features=incompatible,
        compatible_features=compatible,
        autoclear_features=autoclear,
        snapshots=snapshots,
        backing_file=name,
        backing_format=(None if form is None else _string(form, "extensions")),
        luks_offset=luks[0],
        luks_length=luks[1],
        extensions=tuple((kind, len(body)) for kind, body in found.items()),
    )
    _numbers(header, data)
    _areas(header, file_size)
    return header
