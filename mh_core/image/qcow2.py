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

"""qcow2 v3 images: check a header against the allow-list, and read one.

:func:`parse` answers whether the bytes are a qcow2 header, :func:`check`
whether an image like that may be opened here. Nothing is used before both.

Source: QEMU docs/interop/qcow2, as ``mh_core.image.qcow2_header``. The only
input and output is on the descriptor that the caller opened.
"""

import os

from mh_core.errors import InputError, VerificationError
from mh_core.image import luks1
from mh_core.image.qcow2_header import (
    AUTOCLEAR_RAW_DATA_FILE,
    CRYPT_LUKS,
    EXT_BACKING_FORMAT,
    EXT_CRYPT_HEADER,
    EXT_DATA_FILE,
    EXT_FEATURE_NAMES,
    HEAD_MAX,
    INCOMPATIBLE_COMPRESSION,
    INCOMPATIBLE_DATA_FILE,
    INCOMPATIBLE_EXTENDED_L2,
    Qcow2Header,
    parse,
)

__all__ = [
    "HEAD_MAX",
    "Qcow2Header",
    "check",
    "inspect",
    "parse",
    "read_at",
    "read_header",
    "read_luks",
]


def _bad(cause: str, message: str) -> InputError:
    return InputError(f"core.image.qcow2.{cause}", message)


def _deny(cause: str, message: str) -> VerificationError:
    return VerificationError(f"core.image.qcow2.{cause}", message)


def check(
    header: Qcow2Header,
    *,
    backing: tuple[str, str] | None,
    virtual_size: int | None = None,
    max_virtual_size: int | None = None,
) -> None:
    """Compare a header with what is allowed; everything else is denied.

    No feature bit is allowed but that of subclusters, where there is a
    backing file: QEMU sets the dirty bit only with lazy refcounts, which need
    a bit as well, and never on images we write.

    :param backing: (path, format) computed from the verified base, or None
        when the image must have no backing file.
    :param virtual_size: bytes it must have, where known.
    :param max_virtual_size: the most bytes it may have, where known.
    :raises VerificationError: ``core.image.qcow2.`` and one of
        ``data-file``, ``compression``, ``features``, ``crypt-method``,
        ``snapshots``, ``extensions``, ``backing``, ``virtual-size``.
    """
    kinds = [kind for kind, _ in header.extensions]
    if (
        header.incompatible_features & INCOMPATIBLE_DATA_FILE
        or header.autoclear_features & AUTOCLEAR_RAW_DATA_FILE
        or EXT_DATA_FILE in kinds
    ):
        raise _deny("data-file", "the image has an external data file")
    if header.crypt_method != CRYPT_LUKS:
        raise _deny("crypt-method", "the image is not encrypted with LUKS")
    if header.incompatible_features & INCOMPATIBLE_COMPRESSION:
        raise _deny("compression", "the image has a compression type")
    mask = INCOMPATIBLE_EXTENDED_L2 if backing is not None else 0
    features = (
        header.incompatible_features & ~mask,
        header.compatible_features,
        header.autoclear_features,
    )
    if any(features):
        raise _deny(
            "features",
            "the image has features {:#x}, {:#x}, {:#x}".format(*features),
        )
    if header.snapshots:
        raise _deny("snapshots", "the image has internal snapshots")
    for kind in kinds:
        if kind not in (
            EXT_CRYPT_HEADER,
            EXT_FEATURE_NAMES,
            EXT_BACKING_FORMAT,
        ):
            raise _deny("extensions", f"header extension {kind:#x}")
    found = (header.backing_file, header.backing_format)
    if found != ((None, None) if backing is None else backing):
        raise _deny("backing", "the backing file is not the expected one")
    if virtual_size is not None and header.virtual_size != virtual_size:
        raise _deny("virtual-size", "the virtual size is not the expected")
    if max_virtual_size is not None and header.virtual_size > max_virtual_size:
        raise _deny("virtual-size", "the virtual size is over the bound")


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Bytes of an open file; fewer only at its end.

    :param fd: an open descriptor; its offset stays.
    :raises InputError: ``core.image.qcow2.read``.
    """
    parts = []
    try:
        while length:
            part = os.pread(fd, length, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
    except (OSError, OverflowError):
        raise _bad("read", "the image cannot be read") from None
    return b"".join(parts)


def read_header(fd: int) -> Qcow2Header:
    """Read and :func:`parse` the start of an open file.

    :param fd: an open descriptor of a regular file; its offset stays.
    :raises InputError: as :func:`parse`, or ``core.image.qcow2.read``.
    """
    try:
        size = os.fstat(fd).st_size
    except OSError:
        raise _bad("read", "the image cannot be read") from None
    return parse(read_at(fd, min(size, HEAD_MAX), 0), size)


def read_luks(fd: int, header: Qcow2Header) -> bytes:
    """The LUKS header with its key material, for ``luks1.unlock``.

    :param fd: as :func:`read_header`, which ``header`` is from.
    :returns: ``header.luks_length`` bytes, 64 MiB at most.
    :raises InputError: ``core.image.qcow2.read``,
        ``core.image.luks.payload``.
    :raises VerificationError: ``core.image.qcow2.crypt-method``.
    """
    if header.crypt_method != CRYPT_LUKS:
        raise _deny("crypt-method", "the image is not encrypted with LUKS")
    if header.luks_length > luks1.MAX_PAYLOAD:
        raise InputError(
            "core.image.luks.payload", "the LUKS header is too large"
        )
    return read_at(fd, header.luks_length, header.luks_offset)


def inspect(
    fd: int, max_iterations: int = 10_000_000
) -> tuple[Qcow2Header, luks1.Luks1Header]:
    """Both headers of an encrypted image; :func:`check` is still to come.

    :param fd: as :func:`read_header`.
    :param max_iterations: as ``luks1.parse``.
    :raises InputError: as :func:`parse` and ``luks1.parse``, or
        ``core.image.qcow2.read``.
    :raises VerificationError: ``core.image.qcow2.crypt-method``.
    """
    header = read_header(fd)
    if header.crypt_method != CRYPT_LUKS:
        raise _deny("crypt-method", "the image is not encrypted with LUKS")
    length = min(header.luks_length, luks1.HEADER_SIZE)
    luks = luks1.parse(read_at(fd, length, header.luks_offset), max_iterations)
    if luks.size != header.luks_length:
        raise InputError(
            "core.image.luks.payload",
            "the LUKS header is not as long as the image says",
        )
    return header, luks
