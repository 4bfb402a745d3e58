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
"""Which addresses processes listen on, read from /proc."""

from __future__ import annotations

import collections.abc
import ipaddress
import os
import pathlib
import socket

_LISTENING = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def sockets(pids: collections.abc.Iterable[int]) -> set[tuple[Address, int]]:
    """Address and port of every TCP or UDP socket that they listen on."""
    found = set()
    for pid in pids:
        inodes = _inodes(pid)
        for table, wanted in _LISTENING.items():
            for address, port, inode in _table(pid, table, wanted):
                if inode in inodes:
                    found.add((address, port))
    return found


def beyond_loopback(
    pids: collections.abc.Iterable[int],
) -> set[tuple[Address, int]]:
    """Those of the sockets that are not in 127.0.0.0/8."""
    local = ipaddress.IPv4Network("127.0.0.0/8")
    return {
        (address, port)
        for address, port in sockets(pids)
        if address.version == 6 or address not in local
    }


def free(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a server could listen there."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
        except OSError:
            return False
    return True


def _inodes(pid: int) -> set[str]:
    found = set()
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            target = os.readlink(entry.path)
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:
        pass
    return found


def _table(
    pid: int, table: str, wanted: str
) -> collections.abc.Iterator[tuple[Address, int, str]]:
    try:
        text = pathlib.Path(f"/proc/{pid}/net/{table}").read_text()
    except OSError:
        return
    for line in text.splitlines()[1:]:
        fields = line.split()
        if fields[3] == wanted:
            host, _, port = fields[1].partition(":")
            yield _address(host), int(port, 16), fields[9]


def _address(text: str) -> Address:
    """The kernel prints 32-bit words in the machine's byte order."""
    raw = bytes.fromhex(text)
    words = [raw[at : at + 4][::-1] for at in range(0, len(raw), 4)]
    return ipaddress.ip_address(b"".join(words))
