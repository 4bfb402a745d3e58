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

"""A tiny bootable disk, made without an assembler, kernel or loader.

Its boot sector prints on the first serial port a greeting, which is stored
XOR 0x5A so that it stands nowhere in the file, then the token it reads
from the second sector.  A guest that prints the token has read its disk.
Before, it counts its boots in the first byte of the fourth sector, and
prints behind the token " #A" at the first, " #B" at the second and so on:
a guest that goes on counting has what it wrote to its disk before.
"""

from __future__ import annotations

import os
import pathlib
import struct

GREETING = b"\r\nMH-GUEST-BOOTED token="
SECTOR = 512
_LOAD = 0x7C00
_TOKEN = 0x7E00
_MASK = 0x5A


class _Code:
    """Machine code with calls to places that are known later."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.calls: list[int] = []

    def put(self, text: str) -> None:
        self.bytes += bytes.fromhex(text)

    def here(self) -> int:
        return len(self.bytes)

    def call_print(self) -> None:
        self.calls.append(self.here())
        self.put("e8 0000")

    def jump_back(self, target: int) -> None:
        self.bytes += bytes([0xEB, (target - self.here() - 2) & 0xFF])

    def resolve(self, target: int) -> None:
        for call in self.calls:
            distance = (target - (call + 3)) & 0xFFFF
            self.bytes[call + 1 : call + 3] = struct.pack("<H", distance)


def boot_sector() -> bytes:
    """The code, at most 440 bytes; the token is in the next sector."""
    code = _Code()
    # cli; ax=ds=es=ss=0; sp=7c00; sti; cld
    code.put("fa 31c0 8ed8 8ec0 8ed0 bc007c fb fc")
    # int 13h: read 1 sector, cylinder 0, sector 2, head 0 to 0:7e00
    code.put("bb007e b80102 b90200 b600 cd13")
    # the same with sector 4, to 0:8000; inc byte [8000]; int 13h: write it
    code.put("bb0080 b80102 b90400 b600 cd13 fe060080 b80103 cd13")
    greeting = code.here() + 1
    code.put("be 0000")  # mov si, greeting
    loop = code.here()
    code.put("ac 345a 7405")  # lodsb; xor al, 5a; jz +5
    code.call_print()
    code.jump_back(loop)
    code.put("be 007e")  # mov si, token
    loop = code.here()
    code.put("ac 84c0 7405")  # lodsb; test al, al; jz +5
    code.call_print()
    code.jump_back(loop)
    # space, '#', [8000] + '@', CR, LF
    for byte in ("b020", "b023", "a00080 0440", "b00d", "b00a"):
        code.put(byte)
        code.call_print()
    code.put("f4 ebfd")  # hlt; jmp $-1
    code.resolve(code.here())
    # wait for THRE of COM1, then write the byte to it
    code.put("88c3 bafd03 ec a820 74fb baf803 88d8 ee c3")
    code.bytes[greeting : greeting + 2] = struct.pack(
        "<H", _LOAD + code.here()
    )
    code.bytes += bytes(byte ^ _MASK for byte in GREETING + b"\0")
    if code.here() > 440:
        raise ValueError("the boot code does not fit")
    return bytes(code.bytes)


def partition_entry(
    first: int, count: int, *, kind: int = 0x83, active: bool = True
) -> bytes:
    """A partition of an MBR; Glance refuses an MBR without any."""
    state = 0x80 if active else 0
    return struct.pack("<8BII", state, 0, 2, 0, kind, 0, 2, 0, first, count)


def build(token: bytes, size: int = 1 << 20, marker: bytes = b"") -> bytes:
    """The disk as bytes; `marker` stands in clear at 64 KiB."""
    if not token or len(token) >= SECTOR or b"\0" in token:
        raise ValueError("the token must fit into a sector")
    if size % SECTOR or size < (1 << 20):  # the BIOS starts none smaller
        raise ValueError("at least 1 MiB, in whole sectors")
    disk = bytearray(size)
    code = boot_sector()
    disk[: len(code)] = code
    disk[446:462] = partition_entry(1, size // SECTOR - 1)
    disk[510:512] = b"\x55\xaa"
    disk[SECTOR : SECTOR + len(token)] = token
    disk[0x10000 : 0x10000 + len(marker)] = marker
    return bytes(disk)


def write(
    path: pathlib.Path,
    token: bytes,
    size: int = 1 << 20,
    *,
    marker: bytes = b"",
    fill: pathlib.Path | str | None = None,
) -> pathlib.Path:
    """Write such a disk of any size to a file.

    `fill` puts content behind the first MiB: "random", or a file whose
    content is repeated (real data, for benchmarks).  Without it the file
    is sparse there.
    """
    head = build(token, min(size, 1 << 20), marker)
    with open(path, "wb") as disk:
        disk.write(
            head[:446] + partition_entry(1, size // SECTOR - 1) + head[462:]
        )
        if fill is None:
            disk.truncate(size)
            return path
        source = None if fill == "random" else open(fill, "rb")
        left = size - len(head)
        while left > 0:
            piece = min(left, 1 << 20)
            if source is None:
                data = os.urandom(piece)
            else:
                data = source.read(piece)
                if not data:
                    if source.tell() == 0:
                        raise ValueError(f"{fill} is empty")
                    source.seek(0)
                    continue
            disk.write(data)
            left -= len(data)
        if source is not None:
            source.close()
    return path
