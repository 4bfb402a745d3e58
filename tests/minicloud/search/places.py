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
"""Every file there is to read, in whatever mount namespace it shows."""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

#: File systems whose files nobody wrote.
PSEUDO = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs"),
        *("debugfs", "devpts", "devtmpfs", "efivarfs", "fusectl"),
        *("mqueue", "nsfs", "proc", "pstore", "rpc_pipefs", "securityfs"),
        *("selinuxfs", "sysfs", "tracefs"),
    )
)
#: File systems that are gone when the power is.
MEMORY = frozenset(("tmpfs", "ramfs", "hugetlbfs"))

_OCTAL = re.compile(r"\\([0-7]{3})")
_DELETED = " (deleted)"


@dataclass(frozen=True)
class File:
    """One file, open for reading.

    :param place: path for a report, ``/proc/PID/root/…`` where it shows
        only in the namespace of that process.
    :param memory: on a file system without a disk.
    """

    fd: int
    place: str
    memory: bool


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


@dataclass(frozen=True)
class Mount:
    device: int
    root: str
    point: str
    kind: str


def _mounts(pid: str) -> list[Mount]:
    found = []
    text = Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape")
    for line in text.splitlines():
        first, _, last = line.partition(" - ")
        words = [
            _OCTAL.sub(lambda m: chr(int(m[1], 8)), word)
            for word in first.split(" ")
        ]
        major, minor = map(int, words[2].split(":"))
        found.append(
            Mount(
                os.makedev(major, minor), words[3], words[4], last.split()[0]
            )
        )
    return found


@dataclass
class View:
    """The file tree as the processes of one mount namespace see it.

    ``root`` stays open, and so does the namespace, until :meth:`close`,
    even where its last process ends meanwhile.
    """

    pid: str
    mounts: list[Mount]
    prefix: str
    root: str
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @classmethod
    def of(cls, pid: str) -> Self:
        """:raises OSError: the process is gone, or not ours to look at."""
        if pid == "self":
            return cls(pid, _mounts(pid), "", "")
        with contextlib.ExitStack() as stack:
            for name in ("ns/mnt", "root"):
                flags = os.O_RDONLY if name == "ns/mnt" else os.O_PATH
                fd = os.open(f"/proc/{pid}/{name}", flags | os.O_CLOEXEC)
                stack.callback(os.close, fd)
            return cls(
                pid,
                _mounts(pid),
                f"/proc/{pid}/root",
                f"/proc/self/fd/{fd}",
                stack.pop_all(),
            )

    def close(self) -> None:
        self._open.close()

    @property
    def kinds(self) -> dict[int, str]:
        return {mount.device: mount.kind for mount in self.mounts}


class Walk:
    """Walks through roots, in every mount namespace, each file once.

    :param roots: folders (or files), as this process sees them.
    :param exclude: folders (or files) to leave out, wherever they show.
    :param since: only files written or changed since this time (seconds
        since the epoch); None for all.
    :param everywhere: besides the roots also whatever is mounted in some
        other mount namespace only, and every file without a name.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        exclude: Sequence[Path] = (),
        since: float | None = None,
        everywhere: bool = True,
    ) -> None:
        self.roots = [path.resolve() for path in roots]
        self.exclude = [path.resolve() for path in exclude]
        self.since = since
        self.everywhere = everywhere
        #: What could not be read, and why.
        self.unreadable: list[str] = []
        self._out: set[tuple[int, int]] = set()
        self._seen: set[tuple[int, int]] = set()

    def files(self) -> Iterator[File]:
        """Each descriptor is closed when the next one is asked for."""
        self._seen.clear()
        self._out.clear()
        for path in self.exclude:
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                self._out.add((status.st_dev, status.st_ino))
        own = View.of("self")
        yield from self._view(own, own)
        for pid in _namespaces():
            try:
                view = View.of(pid)
            except OSError as error:
                self._note(f"/proc/{pid}/root", error)
                continue
            try:
                yield from self._view(view, own)
            finally:
                view.close()
        yield from self._deleted()

    def _view(self, view: View, own: View) -> Iterator[File]:
        kinds = view.kinds
        known = {(mount.device, mount.root) for mount in own.mounts}
        starts = [str(root) for root in self.roots]
        for mount in view.mounts:
            private = (mount.device, mount.root) not in known
            if self._below(mount.point) or (
                self.everywhere and private and mount.point != "/"
            ):
                starts.append(mount.point)
        for start in dict.fromkeys(starts):
            stack = [start.rstrip("/") or "/"]
            while stack:
                yield from self._entry(view, kinds, stack.pop(), stack)

    def _entry(
        self, view: View, kinds: dict[int, str], path: str, stack: list[str]
    ) -> Iterator[File]:
        place = view.prefix + path
        try:
            status = os.lstat(view.root + path)
            key = (status.st_dev, status.st_ino)
            kind = kinds.get(status.st_dev, "")
            if key in self._seen or key in self._out or kind in PSEUDO:
                return
            if stat.S_ISDIR(status.st_mode):
                names = os.listdir(view.root + path)
                self._seen.add(key)
                stack += [f"{path.rstrip('/')}/{name}" for name in names]
            elif stat.S_ISREG(status.st_mode):
                if self._fresh(status):
                    yield from self._open(
                        view.root + path, place, kind in MEMORY
                    )
                self._seen.add(key)
        except OSError as error:
            self._note(place, error)

    def _open(
        self, path: str, place: str, memory: bool, follow: int = os.O_NOFOLLOW
    ) -> Iterator[File]:
        # Not to wait, where a pipe took the place of the file.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | follow
        fd = os.open(path, flags)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                yield File(fd, place, memory)
        finally:
            os.close(fd)

    def _deleted(self) -> Iterator[File]:
        """Files without a name that a process still holds open."""
        for pid in pids():
            try:
                kinds = {m.device: m.kind for m in _mounts(str(pid))}
                numbers = os.listdir(f"/proc/{pid}/fd")
            except OSError as error:
                self._note(f"/proc/{pid}/fd", error)
                continue
            for number in numbers:
                path = f"/proc/{pid}/fd/{number}"
                try:
                    yield from self._deleted_one(path, kinds)
                except PermissionError as error:
                    self._note(f"/proc/{pid}/fd", error)
                    break
                except OSError as error:
                    self._note(path, error)

    def _deleted_one(self, path: str, kinds: dict[int, str]) -> Iterator[File]:
        target = os.readlink(path)
        if not target.endswith(_DELETED):
            return
        status = os.stat(path)
        key = (status.st_dev, status.st_ino)
        # What is not on a mounted file system is a memfd or the like:
        # memory of a process, not a file that was written.
        kind = kinds.get(status.st_dev)
        name = target.removesuffix(_DELETED)
        if (
            not (self.everywhere or self._below(name))
            or key in self._seen
            or kind is None
            or kind in PSEUDO
            or not stat.S_ISREG(status.st_mode)
            or any(Path(name).is_relative_to(out) for out in self.exclude)
        ):
            return
        self._seen.add(key)
        yield from self._open(path, f"{path} = {target}", kind in MEMORY, 0)

    def _below(self, path: str) -> bool:
        return any(Path(path).is_relative_to(root) for root in self.roots)

    def _fresh(self, status: os.stat_result) -> bool:
        if self.since is None:
            return True
        return max(status.st_mtime, status.st_ctime) >= self.since

    def _note(self, place: str, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | ProcessLookupError):
            self.unreadable.append(f"{place}: {error.strerror or error}")


def _namespaces() -> list[str]:
    """One process of each mount namespace but our own."""
    found: dict[str, str] = {}
    own = os.readlink("/proc/self/ns/mnt")
    for pid in pids():
        with contextlib.suppress(OSError):
            found.setdefault(os.readlink(f"/proc/{pid}/ns/mnt"), str(pid))
    found.pop(own, None)
    return list(found.values())


def extents(fd: int, margin: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of what a sparse file holds, with ``margin`` around.

    The margin is for what goes on with zeros into a hole.
    """
    size = os.fstat(fd).st_size
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            end = os.lseek(fd, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            begin, end = at, size
        yield max(at, begin - margin), min(size, end + margin)
        at = end
