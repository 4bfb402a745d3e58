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

One that writes goes on: some five times a second it counts up, writes the
count to its disk, reads it back from there and prints it as ``n=`` and four
hexadecimal digits; ``!`` where the disk failed; and it fills 448 KiB of its
memory anew.  It counts on from what is on the disk, also after a reboot.
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
#: Where the count is, in a writing guest's disk (cylinder 0, head 0).
COUNT_SECTOR = 32


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

    def call(self, target: int) -> None:
        self.put("e8")
        self.bytes += struct.pack("<h", target - (self.here() + 2))

    def jump_back(self, target: int) -> None:
        self.bytes += bytes([0xEB, (target - self.here() - 2) & 0xFF])

    def resolve(self, target: int) -> None:
        for call in self.calls:
            distance = (target - (call + 3)) & 0xFFFF
            self.bytes[call + 1 : call + 3] = struct.pack("<H", distance)


def _count(code: _Code) -> None:
    """Count on the disk for ever; sector and count are at 0:8000."""
    code.put("eb 10")  # over the routine
    routine = code.here()
    # int 13h, ah and al set: cylinder 0, head 0, to or from 0:8000
    sector = struct.pack("<H", COUNT_SECTOR + 1).hex()
    code.put(f"bb0080 b9{sector} b600 8a160006 cd13 c3 90")
    code.put("b80102")  # read: what is there is counted on
    code.call(routine)
    again = code.here()
    code.put("ff060080 b80103")  # inc word [8000]; write
    code.call(routine)
    code.put("7235 c70600800000 b80102")  # jc fail; forget; read back
    code.call(routine)
    code.put("7227")  # jc fail
    for byte in ("b06e", "b03d"):  # n=
        code.put(byte)
        code.call_print()
    code.put("8b3e0080 b90400")  # di = the count; four digits
    digit = code.here()
    code.put("c1c704 89f8 240f 0430 3c39 7602 0427")
    code.call_print()
    code.put("e2")
    code.bytes.append((digit - code.here() - 1) & 0xFF)
    code.put("eb05")  # over the failure
    code.put("b021")
    code.call_print()
    for byte in ("b00d", "b00a"):  # CR, LF
        code.put(byte)
        code.call_print()
    # 448 KiB of memory at 1000:0 become other ones: es = 1000 to 7000
    code.put("bb0010")
    segment = code.here()
    code.put("8ec3 31ff a10080 b90080 f3ab 81c30010 81fb0080")
    code.put("72")
    code.bytes.append((segment - code.here() - 1) & 0xFF)
    code.put("31c0 8ec0 b90400 f4 e2fd")  # es = 0; four ticks of the clock
    code.jump_back(again)


def boot_sector(writes: bool = False) -> bytes:
    """The code, at most 440 bytes; the token is in the next sector."""
    code = _Code()
    # cli; ax=ds=es=ss=0; sp=7c00; sti; cld
    code.put("fa 31c0 8ed8 8ec0 8ed0 bc007c fb fc")
    code.put("88160006")  # the drive's number, to 0:600
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
    if writes:
        _count(code)
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


def build(
    token: bytes,
    size: int = 1 << 20,
    marker: bytes = b"",
    writes: bool = False,
) -> bytes:
    """The disk as bytes; `marker` stands in clear at 64 KiB."""
    if not token or len(token) >= SECTOR or b"\0" in token:
        raise ValueError("the token must fit into a sector")
    if size % SECTOR or size < (1 << 20):  # the BIOS starts none smaller
        raise ValueError("at least 1 MiB, in whole sectors")
    disk = bytearray(size)
    code = boot_sector(writes)
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
    writes: bool = False,
) -> pathlib.Path:
    """Write such a disk of any size to a file.

    `fill` puts content behind the first MiB: "random", or a file whose
    content is repeated (real data, for benchmarks).  Without it the file
    is sparse there.
    """
    head = build(token, min(size, 1 << 20), marker, writes)
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
