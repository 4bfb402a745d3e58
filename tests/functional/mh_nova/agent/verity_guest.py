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
"""Runs in a guest whose kernel has fs-verity; see ``test_verity``.

Each function is a case: it works in a folder of its own on the disk, and
what it returns is printed.  The disk is also changed below its file system.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import pathlib
import struct
import time
import traceback
import typing
import uuid

from mh_core.errors import MHError
from mh_nova.agent import bases as bases_module
from mh_nova.agent import verity
from mh_nova.agent.bases import Bases
from mh_nova.agent.hashing import hash_file
from mh_nova.agent.measurers.base import HashedFile
from mh_nova.agent.paths import PART, Root, base_name
from mh_nova.agent.protect import (
    AUTO,
    NOTES,
    OFF,
    REQUIRE,
    Protection,
    read_through,
)
from mh_nova.agent.store import Store

PRINTED = "MH-VERITY "
DISK = pathlib.Path("/mnt")
DEVICE = "/dev/vda"
SIZES = "/sizes.json"
IMAGE = str(uuid.uuid4())
NAME = base_name(IMAGE)
DATA = hashlib.shake_128(b"base").digest(1_000_001)
SHA256 = hashlib.sha256(DATA).hexdigest()
_FIBMAP = 1
BLOCK = 4096

_hashes: list[int] = []


def _counted(fd: int) -> HashedFile:
    _hashes.append(fd)
    return read_through(fd)


def write(path: pathlib.Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def below(path: pathlib.Path, number: int) -> None:
    """Change a block of a file on its disk, behind the file system."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        found = fcntl.ioctl(fd, _FIBMAP, struct.pack("<i", number))
    finally:
        os.close(fd)
    [block] = struct.unpack("<i", found)
    assert block
    device = os.open(DEVICE, os.O_RDWR | os.O_SYNC)
    try:
        old = os.pread(device, BLOCK, block * BLOCK)
        os.pwrite(device, bytes([old[0] ^ 1]) + old[1:], block * BLOCK)
    finally:
        os.close(device)
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def name_of(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "?")


def reads(fd: int, number: int) -> str:
    try:
        return f"{len(os.pread(fd, BLOCK, number * BLOCK))} bytes"
    except OSError as exc:
        return name_of(exc)


def refused(call: typing.Callable[..., object], *args: object) -> str:
    try:
        call(*args)
    except MHError as exc:
        return exc.event
    except OSError as exc:
        return name_of(exc)
    return "done"


# -- the module


def digests(folder: pathlib.Path) -> object:
    out = []
    for size in json.loads(pathlib.Path(SIZES).read_bytes()):
        path = folder / str(size)
        write(path, hashlib.shake_128(str(size).encode()).digest(size))
        with path.open("rb") as file:
            before = verity.measure(file.fileno())
            digest = verity.enable(file.fileno())
            after = verity.measure(file.fileno())
        out.append([before is None, digest == after, digest.hex()])
    return out


def said(folder: pathlib.Path) -> object:
    """Whether it is there, and why it cannot be enabled."""
    write(folder / "one", DATA)
    folders = [os.open(path, os.O_RDONLY) for path in (folder, "/run")]
    out: list[object] = [verity.available(fd) for fd in folders]
    with open("/run/file", "wb+") as memory:
        out.append(refused(verity.enable, memory.fileno()))
    with (folder / "one").open("r+b"), (folder / "one").open("rb") as file:
        out.append(refused(verity.enable, file.fileno()))
    with (folder / "one").open("rb") as file:
        out.append(refused(verity.enable, file.fileno()))
        out.append(refused(verity.enable, file.fileno()))
    return out


def afterwards(folder: pathlib.Path) -> object:
    """What nova's image cache does with it, and what nobody can."""
    path = folder / "one"
    write(path, DATA)
    with path.open("rb") as file:
        verity.enable(file.fileno())
    return [
        refused(os.utime, path),
        refused(os.chown, path, 1, 1),
        refused(os.chmod, path, 0o400),
        refused(os.open, path, os.O_RDWR),
        refused(os.truncate, path, 10),
        refused(os.unlink, path),
    ]


def changed(folder: pathlib.Path) -> object:
    path = folder / "one"
    write(path, DATA)
    with path.open("rb") as file:
        digest = verity.enable(file.fileno())
        whole = refused(hash_file, file.fileno())
        below(path, 7)
        # as QEMU does with cache=none
        direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
        page = mmap.mmap(-1, BLOCK)
        return [
            whole,
            [reads(file.fileno(), number) for number in (6, 7, 8)],
            refused(hash_file, file.fileno()),
            [
                refused(os.preadv, direct, [page], number * BLOCK)
                for number in (6, 7, 8)
            ],
            verity.measure(file.fileno()) == digest,
        ]


def unprotected(folder: pathlib.Path) -> object:
    """The same without: this is what it is about."""
    path = folder / "one"
    write(path, DATA)
    with path.open("rb") as file:
        below(path, 7)
        return [reads(file.fileno(), 7), hash_file(file.fileno()).sha256]


def replaced(folder: pathlib.Path) -> object:
    out = []
    for data in (DATA, b"x" + DATA[1:]):
        (folder / "one").unlink(missing_ok=True)
        write(folder / "one", data)
        with (folder / "one").open("rb") as file:
            out.append(verity.enable(file.fileno()).hex())
    return len(set(out))


# -- the agent's bases


class Host:
    """A host's bases; its notes are in memory, its records on the disk."""

    def __init__(self, folder: pathlib.Path, mode: str) -> None:
        self.folder, self.mode = folder, mode
        self.runtime = pathlib.Path("/run") / folder.name
        self.runtime.mkdir()
        directory = folder / "instances/_base"
        directory.mkdir(parents=True)
        self.base = directory / NAME
        self.part = directory / (NAME + PART)
        self.note = self.runtime / NOTES / f"{NAME}.json"
        self.start()

    def start(self) -> None:
        self.bases = Bases(
            Root(str(self.folder / "instances")),
            Store(self.folder / "state"),
            protection=Protection(self.mode, self.runtime),
        )

    def restart(self) -> None:
        self.bases.close()
        self.start()

    def reboot(self) -> None:
        self.note.unlink(missing_ok=True)
        self.restart()

    def adopt(self, number: int | None = None) -> None:
        """
        :param number: of a block that changes after the hash.
        """
        self.bases.follow(IMAGE, "one")
        write(self.part, DATA)
        self.bases.downloaded(IMAGE)
        with self.bases.candidate(IMAGE, 60) as hashed:
            assert hashed.sha256 == SHA256
            if number is not None:
                below(self.part, number)
            self.bases.adopt(IMAGE, hashed)

    def protected(self) -> bool:
        end = time.monotonic() + 30
        while not self.note.exists() and time.monotonic() < end:
            time.sleep(0.01)
        return self.note.exists()

    def look(self) -> list[object]:
        """What a start sees: digest or refusal, hashes it took, block 7."""
        count = len(_hashes)
        try:
            with self.bases.base(IMAGE) as hashed:
                found = "same" if hashed.sha256 == SHA256 else "other"
                return [found, len(_hashes) - count, reads(hashed.fd, 7)]
        except MHError as exc:
            return [exc.event, len(_hashes) - count]


def by_itself(folder: pathlib.Path) -> object:
    """auto: protected in the background, and known after a restart."""
    host = Host(folder, AUTO)
    host.adopt()
    out: list[object] = [host.protected(), host.look()]
    host.restart()
    out.append(host.look())
    host.reboot()
    out += [host.look(), host.look()]
    host.restart()
    out.append(host.look())
    return out


def required(folder: pathlib.Path) -> object:
    host = Host(folder, REQUIRE)
    host.adopt()
    return [host.note.exists(), host.look()]


def found_there(folder: pathlib.Path) -> object:
    """A base of a time before: hashed, then protected."""
    host = Host(folder, OFF)
    host.adopt()
    host.mode = REQUIRE
    host.restart()
    out = [host.look()]
    host.restart()
    return [*out, host.look()]


def changed_under_the_agent(folder: pathlib.Path) -> object:
    """At each of: it runs; it was restarted; the host was."""
    host = Host(folder, REQUIRE)
    host.adopt()
    below(host.base, 7)
    out = [host.look()]
    host.restart()
    out.append(host.look())
    host.reboot()
    return [*out, host.look()]


def changed_without(folder: pathlib.Path) -> object:
    """off: not seen while the agent runs, which the lease cannot help."""
    host = Host(folder, OFF)
    host.adopt()
    below(host.base, 7)
    return host.look()


def replaced_by_another(folder: pathlib.Path) -> object:
    """Protected as well, of the same size, while the agent was away."""
    host = Host(folder, REQUIRE)
    host.adopt()
    host.bases.close()
    host.base.unlink()
    write(host.base, b"x" + DATA[1:])
    with host.base.open("rb") as file:
        verity.enable(file.fileno())
    host.start()
    return host.look()


def changed_before(folder: pathlib.Path) -> object:
    """After the hash of the download, before fs-verity saw it."""
    host = Host(folder, REQUIRE)
    return refused(host.adopt, 7)


def changed_before_by_itself(folder: pathlib.Path) -> object:
    """auto: the launch goes on; the next one is told the truth."""
    host = Host(folder, AUTO)
    host.adopt(7)
    end = time.monotonic() + 30
    while NAME in host.bases._held and time.monotonic() < end:
        time.sleep(0.01)
    return host.look()


CASES = (
    *(digests, said, afterwards, changed, unprotected, replaced),
    *(by_itself, required, found_there, changed_under_the_agent),
    *(changed_without, replaced_by_another, changed_before),
    changed_before_by_itself,
)


def main() -> None:
    vars(bases_module)["read_through"] = _counted
    out = {}
    for case in CASES:
        folder = DISK / case.__name__
        folder.mkdir()
        try:
            out[case.__name__] = case(folder)
        except Exception:
            out[case.__name__] = traceback.format_exc()
    print(PRINTED + json.dumps(out), flush=True)


if __name__ == "__main__":
    main()
