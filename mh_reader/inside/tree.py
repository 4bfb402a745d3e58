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
"""Digest of a directory with everything below it.

SHA-256 over, for each entry in depth-first order, names sorted by their
bytes: kind (1 byte), then each as 4 bytes of length and the bytes: path
from the directory (UTF-8, no leading ``/``), and mode, owner, group and
device as 8 bytes each (big-endian; 0 on FAT and NTFS), size (8 bytes), and
the SHA-256 of the content (of a link: of its target; else empty).  A stream
of an NTFS file is an entry of kind ``a`` named ``<path>:<stream>``.  Times,
extended attributes and hard links are not in it.
"""

import hashlib
import struct
from typing import Any

from mh_reader.inside.blocks import Refused
from mh_reader.inside.files import Entry

_DEEPEST = 128


def _lp(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _line(kind: str, path: str, entry: Entry, size: int, sha: bytes) -> bytes:
    numbers = (entry.mode, entry.owner, entry.group, entry.device, size)
    return (
        kind.encode()
        + _lp(path.encode("utf-8", "surrogatepass"))
        + _lp(struct.pack(">5Q", *numbers))
        + _lp(sha)
    )


def digest(top: Entry) -> str:
    """Hex.

    :raises Refused: nested too deeply.
    """
    total = hashlib.sha256(b"mh/tree/v1\n")
    _walk(top, "", total, 0)
    return total.hexdigest()


def _walk(top: Entry, path: str, total: Any, depth: int) -> None:
    if depth > _DEEPEST:
        raise Refused("directories are nested too deeply")
    for entry in top.children():
        name = f"{path}{entry.name}"
        size, sha = 0, b""
        if entry.kind == "f":
            size, sha = entry.size, entry.digest()
        elif entry.kind == "l":
            target = entry.target().encode("utf-8", "surrogatepass")
            sha = hashlib.sha256(target).digest()
        total.update(_line(entry.kind, name, entry, size, sha))
        for stream, data in entry.streams():
            length = int(data.size)
            sha = entry.system.hash(data, length)
            total.update(_line("a", f"{name}:{stream}", entry, length, sha))
        if entry.kind == "d":
            _walk(entry, name + "/", total, depth + 1)
