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
"""Things planted on purpose: a search that misses one proves nothing.

What is planted are stand-ins of the same kinds as the secrets, so that the
proof itself writes no secret anywhere; they are looked for in the same run.
"""

import contextlib
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.minicloud.search import libvirt
from tests.minicloud.search.needle import Needle, encodings
from tests.minicloud.search.search import _CHUNK, Hit

_MOUNT = """
set -e
mount -t tmpfs -o size=1m tmpfs "$1"
cat > "$1/$2"
echo ready
exec sleep infinity
"""


@dataclass
class Planted:
    """What was planted, and where it must be found.

    :param needles: to be given to the search beside the real ones.
    :param expected: (needle, encoding, place): ``pid N …``, or the path's
        last part, because a folder may show under more than one path.
    """

    needles: list[Needle]
    expected: list[tuple[str, str, str]] = field(default_factory=list)

    def missing(self, hits: Collection[Hit]) -> list[str]:
        """What the search should have found and did not."""
        found: dict[tuple[str, str], list[str]] = {}
        for hit in hits:
            found.setdefault((hit.needle, hit.encoding), []).append(hit.place)
        return [
            f"{needle} ({encoding}): {place}"
            for needle, encoding, place in self.expected
            if not any(
                _at(place, one) for one in found.get((needle, encoding), [])
            )
        ]

    def others(self, hits: Collection[Hit]) -> list[Hit]:
        """What was found and was not planted: the leaks."""
        ours = {needle.name for needle in self.needles}
        return [hit for hit in hits if hit.needle not in ours]


@contextlib.contextmanager
def plant(folders: Sequence[Path]) -> Iterator[Planted]:
    """Plant stand-ins while the context lasts.

    In each folder a file with every encoding of a key and of a marker; in
    the first one also a key over the edge of two reads after a hole, a row
    in the write-ahead log of an SQLite database, a file without a name,
    and a libvirt key beside a log with a secret sealed under it.  One
    process has the key in its environment, its command line and (as root)
    in a file that shows only in a mount namespace of its own.

    :param folders: folders that the search is to cover, writable; as seen
        from here, so ``/proc/PID/root/…`` for those inside a node.
    """
    key = Needle("planted key", secrets.token_bytes(32))
    marker = Needle(
        "planted marker", f'planted "{secrets.token_hex(16)}" é'.encode()
    )
    sealed = Needle("planted sealed key", secrets.token_hex(32).encode())
    planted = Planted([key, marker, sealed])
    with contextlib.ExitStack() as stack:
        for folder in folders:
            name = f".planted-{secrets.token_hex(6)}"
            path = folder / name
            stack.callback(path.unlink, missing_ok=True)
            path.write_bytes(_every_form(planted, key, marker, name))
        home = folders[0] / f".planted-{secrets.token_hex(6)}"
        home.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, home)
        _edge(planted, key, home)
        _database(planted, key, home, stack)
        _nameless(planted, key, home, stack)
        _libvirt(planted, sealed, home)
        _process(planted, key, stack)
        if os.geteuid() == 0:
            _namespace(planted, key, home, stack)
        yield planted


def _every_form(
    planted: Planted, key: Needle, marker: Needle, name: str
) -> bytes:
    text = b""
    for needle in (key, marker):
        for encoding, forms in encodings(needle).items():
            planted.expected.append((needle.name, encoding, name))
            for form in forms:
                filler = secrets.token_bytes(1 + secrets.randbelow(64))
                text += filler + form
    return text


def _edge(planted: Planted, key: Needle, home: Path) -> None:
    path = home / "sparse"
    with path.open("wb") as file:
        # data begins at 1 MiB, and a read ends within the key
        file.seek(1 << 20)
        file.write(b"x" * (_CHUNK + 4096))
        file.seek((1 << 20) + _CHUNK - 11)
        file.write(key.data)
        file.seek(64 << 20)
        file.write(b"end")
    planted.expected.append((key.name, "raw", "sparse"))


def _database(
    planted: Planted, key: Needle, home: Path, stack: contextlib.ExitStack
) -> None:
    base = sqlite3.connect(home / "planted.sqlite")
    stack.callback(base.close)
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("PRAGMA wal_autocheckpoint = 0")
    base.execute("CREATE TABLE t (v TEXT)")
    base.execute("INSERT INTO t VALUES (?)", (key.data.hex(),))
    base.commit()
    planted.expected.append((key.name, "hex", "planted.sqlite-wal"))


def _nameless(
    planted: Planted, key: Needle, home: Path, stack: contextlib.ExitStack
) -> None:
    path = home / "nameless"
    file = stack.enter_context(path.open("w+b", buffering=0))
    file.write(b"x" * 777 + key.data)
    path.unlink()
    planted.expected.append((key.name, "raw", "nameless (deleted)"))


def _libvirt(planted: Planted, sealed: Needle, home: Path) -> None:
    master = secrets.token_bytes(libvirt.KEY_SIZE)
    (home / libvirt.KEY_NAME).write_bytes(master)
    line = libvirt.seal(master, secrets.token_bytes(16), sealed.data)
    (home / "guest.log").write_text(f"-object '{line}' \\\n")
    planted.expected.append((sealed.name, "sealed raw", "guest.log"))


def _process(
    planted: Planted, key: Needle, stack: contextlib.ExitStack
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "input()", key.data.hex()],
        env={"PLANTED": key.data.hex().upper()},
        stdin=subprocess.PIPE,
    )
    stack.callback(_end, child)
    planted.expected += [
        (key.name, "hex", f"pid {child.pid} cmdline"),
        (key.name, "HEX", f"pid {child.pid} environ"),
    ]


def _namespace(
    planted: Planted, key: Needle, home: Path, stack: contextlib.ExitStack
) -> None:
    place = home / "private"
    place.mkdir()
    child = subprocess.Popen(
        [
            *("/usr/bin/unshare", "--mount", "--propagation", "private"),
            *("/bin/sh", "-c", _MOUNT, "sh", place, "planted-in-memory"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    stack.callback(_end, child)
    if child.stdin is None or child.stdout is None:
        raise AssertionError("pipes were asked for")
    child.stdin.write(key.data)
    child.stdin.close()
    if child.stdout.readline() != b"ready\n":
        raise RuntimeError("no mount namespace of its own to plant in")
    planted.expected.append((key.name, "raw", "planted-in-memory"))


def _at(expected: str, place: str) -> bool:
    name = place.split(", opened with ")[0].rpartition("/")[2]
    return expected in (place, name, name.rpartition(" at ")[0])


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
