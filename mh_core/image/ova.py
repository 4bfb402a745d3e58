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

"""An OVA: a tar file with an OVF envelope, hashes, and one disk.

The reader takes ustar with ordinary files and nothing else: no links, no
long-name or extended headers, no path, no name twice.

Sources: POSIX.1-2017, pax, section "ustar Interchange Format"; DMTF DSP0243
(Open Virtualization Format 1.1), sections 5.1 and 5.3 (order of the files,
manifest file).
"""

import re
from dataclasses import dataclass

from mh_core.errors import InputError
from mh_core.image.qcow2 import read_at
from mh_core.manifest import FILE_NAME

EVENT = "core.image.ova"
BLOCK = 512
MAX_FILES = 16
#: Envelope and hashes are read whole, bytes.
MAX_TEXT = 1024 * 1024
ENVELOPE, HASHES = ".ovf", ".mf"

_NAME = re.compile(FILE_NAME.encode())
_OCTAL = re.compile(rb"[0-7]{6,12}[ \0]{0,2}")
_LINE = re.compile(r"SHA256\(([^()\n]{1,99})\) ?= ?([0-9a-f]{64})")


@dataclass(frozen=True)
class Member:
    """A file in the tar file.

    :param offset: of its first byte.
    """

    name: str
    offset: int
    size: int


def _bad(message: str) -> InputError:
    return InputError(EVENT, message)


def _number(field: bytes) -> int:
    if not _OCTAL.fullmatch(field):
        raise _bad("a number in the tar file is malformed")
    return int(field.rstrip(b" \0"), 8)


def _sum(block: bytes) -> int:
    return sum(block[:148]) + 8 * 0x20 + sum(block[156:])


def _member(block: bytes, at: int) -> Member:
    if block[257:263] != b"ustar\0" and block[257:265] != b"ustar  \0":
        raise _bad("not a tar file")
    if _number(block[148:156]) != _sum(block):
        raise _bad("a checksum in the tar file is wrong")
    if block[156:157] not in (b"0", b"\0"):
        raise _bad("something in the tar file is not an ordinary file")
    name = block[:100].rstrip(b"\0")
    if not _NAME.fullmatch(name) or any(block[345:500]):
        raise _bad("a name in the tar file is not allowed")
    return Member(name.decode("ascii"), at + BLOCK, _number(block[124:136]))


def members(fd: int, size: int) -> tuple[Member, ...]:
    """The files, in order.

    :param fd: open for reading; its offset stays.
    :param size: bytes of the tar file.
    :raises InputError: ``core.image.ova``, ``core.image.qcow2.read``.
    """
    found: list[Member] = []
    at = 0
    while True:
        block = read_at(fd, BLOCK, at)
        if len(block) != BLOCK:
            raise _bad("the tar file is cut off")
        if not any(block):
            return tuple(found)
        one = _member(block, at)
        if one.name in [other.name for other in found]:
            raise _bad("a name is in the tar file twice")
        if len(found) == MAX_FILES or one.offset + one.size > size:
            raise _bad("the tar file has too many files, or is cut off")
        found.append(one)
        at = one.offset + -(-one.size // BLOCK) * BLOCK


def text(fd: int, member: Member) -> bytes:
    """A small file as a whole.

    :raises InputError: ``core.image.ova``: larger than ``MAX_TEXT``.
    """
    if member.size > MAX_TEXT:
        raise _bad(f"{member.name} is too large")
    data = read_at(fd, member.size, member.offset)
    if len(data) != member.size:
        raise _bad("the tar file is cut off")
    return data


def disks(found: tuple[Member, ...]) -> tuple[Member, ...]:
    """What is neither the envelope nor the hashes."""
    return tuple(
        one for one in found if not one.name.endswith((ENVELOPE, HASHES))
    )


def hashes(data: bytes) -> dict[str, str]:
    """File name to SHA-256 (hex), out of the manifest file (``.mf``).

    :raises InputError: ``core.image.ova``.
    """
    found: dict[str, str] = {}
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise _bad("the hashes are not text") from None
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None or match[1] in found or len(found) == MAX_FILES:
            raise _bad("the hashes are not lines of SHA256(name)= hex")
        found[match[1]] = match[2]
    return found


def header(name: str, size: int) -> bytes:
    """The block before a file of a tar file that we write.

    :param name: matches ``FILE_NAME``.
    :param size: bytes, below 8 GiB * 8 (11 octal digits).
    :raises InputError: ``core.image.ova``.
    """
    if not re.fullmatch(FILE_NAME, name) or not 0 <= size < 8**11:
        raise _bad("not a name or size for a tar file")
    block = bytearray(BLOCK)
    block[: len(name)] = name.encode("ascii")
    for start, field in (
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, b"%011o\0" % size),
        (136, b"%011o\0" % 0),
        (156, b"0"),
        (257, b"ustar\00000"),
    ):
        block[start : start + len(field)] = field
    block[148:156] = b"%06o\0 " % _sum(bytes(block))
    return bytes(block)


def padding(size: int) -> bytes:
    """Zeros up to the next block."""
    return bytes(-size % BLOCK)


#: Ends a tar file.
END = bytes(2 * BLOCK)
