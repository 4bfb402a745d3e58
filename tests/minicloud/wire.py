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
"""Everything that crosses the loopback interface, for a search in it.

Run as a program inside a network namespace, so that it sees that one:
``python -m tests.minicloud.wire FILE`` writes the payload of every packet of
the connections to the migration's ports to the file until it is ended.  Such
a port may also be the one that a client of something else was given: what
counts is who was called.
"""

from __future__ import annotations

import socket
import struct
import sys

_ETH_P_ALL = 3
#: libvirt's control channel, and QEMU's ports for memory and blocks.
PORTS = (16509, *range(49152, 49216))
_SYN, _ACK = 0x02, 0x10

#: Addresses and ports of a packet's two ends, its sender's first.
Ends = tuple[bytes, int, bytes, int]


def packet(frame: bytes) -> tuple[Ends, int, bytes] | None:
    """The ends of a TCP packet over IPv4, its flags and its content; None
    for others."""
    if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[23] != 6:
        return None
    start = 14 + (frame[14] & 0x0F) * 4
    total = struct.unpack(">H", frame[16:18])[0]
    source, to = struct.unpack(">HH", frame[start : start + 4])
    offset = (frame[start + 12] >> 4) * 4
    ends = (frame[26:30], source, frame[30:34], to)
    return ends, frame[start + 13], frame[start + offset : 14 + total]


class Calls:
    """The connections to the ports of interest."""

    def __init__(self) -> None:
        self._known: set[Ends] = set()

    def content(self, frame: bytes) -> bytes:
        """What a packet of one of them carries, either way."""
        found = packet(frame)
        if found is None:
            return b""
        ends, flags, data = found
        if flags & (_SYN | _ACK) == _SYN and ends[3] in PORTS:
            self._known.add(ends)
        back = (*ends[2:], *ends[:2])
        return data if ends in self._known or back in self._known else b""


def main(path: str) -> None:
    with socket.socket(
        socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)
    ) as sniffer:
        sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        sniffer.bind(("lo", 0))
        calls = Calls()
        with open(path, "wb", buffering=0) as out:
            while True:
                frame, address = sniffer.recvfrom(1 << 17)
                # each packet is seen twice on lo: leaving and arriving
                if address[2] == socket.PACKET_OUTGOING:
                    continue
                out.write(calls.content(frame))


if __name__ == "__main__":
    main(sys.argv[1])
