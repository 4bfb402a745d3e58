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
"""The search itself: files, processes, and what libvirt has sealed."""

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mh_core.image import identify, luks1, qcow2
from tests.minicloud.search import libvirt
from tests.minicloud.search.needle import Needle, Needles
from tests.minicloud.search.places import File, Walk, extents, pids

_CHUNK = 8 << 20
#: Occurrences reported for one form of one needle in one file.
_ENOUGH = 3
#: Times a file is looked at again because it grew meanwhile.
_ROUNDS = 5
_PLACES = (
    "/tmp",
    "/var/tmp",
    "/dev/shm",
    "/run",
    "/etc/libvirt",
    "/var/cache/libvirt",
    "/var/lib/libvirt",
    "/var/log/libvirt",
    "/etc/mystery-hill",
    "/var/lib/mystery-hill",
    "/var/log/mystery-hill",
)


class SearchError(Exception):
    """The search did not come to its end, so it says nothing."""


@dataclass(frozen=True, order=True)
class Hit:
    """One thing that was found.

    :param place: path and offset, or ``pid N environ`` or ``… cmdline``.
    :param memory: on a tmpfs: gone when the power is.
    """

    needle: str
    encoding: str
    place: str
    memory: bool = False

    def __str__(self) -> str:
        where = " (in memory)" if self.memory else ""
        return f"{self.needle} ({self.encoding}): {self.place}{where}"


def default_roots(base: Path) -> list[Path]:
    """The cloud's own folder, and where its processes write besides."""
    return [base, *(Path(name) for name in _PLACES)]


class Search:
    """Looks for needles in every file and every process's strings.

    :param roots: what to search; see :func:`default_roots`.
    :param exclude: the tenant's workstation, and nothing else.
    :param needles: what must not be there.
    :param since: search only files written since then (seconds since the
        epoch); with ``/`` as root that is every file written by anything.
    :param timeout: seconds; taking longer is an error, not a result.
    :param everywhere: also mounts that show only inside some namespace and
        files without a name, wherever they are.
    :param memory_keys: try also master keys on a tmpfs.  They do open the
        secrets: a control that shows the search would see an open one.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        exclude: Sequence[Path],
        needles: Sequence[Needle],
        *,
        since: float | None = None,
        timeout: float = 600.0,
        everywhere: bool = True,
        memory_keys: bool = False,
    ) -> None:
        self._walk = Walk(roots, exclude, since, everywhere)
        self._needles = Needles(needles, libvirt.MARKS)
        self._only = list(needles)
        self._timeout = timeout
        self._memory_keys = memory_keys
        self._buffer = bytearray(_CHUNK)
        self._end = 0.0
        self._hits: set[Hit] = set()
        self._keys: dict[bytes, str] = {}
        self._sealed: dict[libvirt.Sealed, str] = {}
        self.files = 0
        self.octets = 0
        self.processes = 0
        self.seconds = 0.0

    @property
    def unreadable(self) -> list[str]:
        """What could not be searched; the reader must judge it."""
        return self._walk.unreadable

    def run(self) -> list[Hit]:
        """Search everything once.

        :raises SearchError: not done in time.
        """
        begin = time.monotonic()
        self._end = begin + self._timeout
        self.files = self.octets = self.processes = 0
        self.unreadable.clear()
        for known in (self._hits, self._keys, self._sealed):
            known.clear()
        for file in self._walk.files():
            self._file(file)
        for pid in pids():
            self._process(pid)
        for secret, key, place in self._opened():
            self._memory_text(secret, f"{place}, opened with {key}", "sealed ")
        self.seconds = time.monotonic() - begin
        return sorted(self._hits)

    def secrets(self) -> list[bytes]:
        """libvirt's secrets that the last run could open."""
        return sorted({secret for secret, _key, _place in self._opened()})

    # -- files

    def _file(self, file: File) -> None:
        self.files += 1
        counts: dict[bytes, int] = {}
        if file.place.endswith("/" + libvirt.KEY_NAME):
            self._key(file)
        margin = self._needles.matcher.longest
        done = 0
        try:
            for _round in range(_ROUNDS):
                size = os.fstat(file.fd).st_size
                for begin, end in extents(file.fd, margin):
                    if end > done:
                        start = max(begin, done - margin)
                        self._stretch(file, start, end, counts)
                done = size
                if os.fstat(file.fd).st_size <= size:
                    break
        except OSError as error:
            self.unreadable.append(f"{file.place}: {error.strerror}")

    def _stretch(
        self, file: File, begin: int, end: int, counts: dict[bytes, int]
    ) -> None:
        overlap = self._needles.matcher.longest - 1
        kept = 0
        view = memoryview(self._buffer)
        while begin < end:
            if time.monotonic() > self._end:
                raise SearchError(f"not done in {self._timeout:.0f} s")
            want = min(len(view) - kept, end - begin)
            got = os.preadv(file.fd, [view[kept : kept + want]], begin)
            if not got:
                break
            self.octets += got
            data = bytes(view[: kept + got])
            for form, offset in self._needles.find(data):
                if offset + len(form) > kept:
                    at = begin - kept + offset
                    self._found(file, form, at, counts)
            begin += got
            kept = min(overlap, kept + got)
            view[:kept] = data[len(data) - kept :]

    def _found(
        self, file: File, form: bytes, at: int, counts: dict[bytes, int]
    ) -> None:
        if form in libvirt.MARKS:
            first = max(0, at - libvirt.AROUND)
            text = os.pread(file.fd, 2 * libvirt.AROUND, first)
            for secret in libvirt.sealed(text):
                self._sealed.setdefault(secret, file.place)
        counts[form] = counts.get(form, 0) + 1
        if counts[form] <= _ENOUGH:
            for name, encoding in self._needles.tags[form]:
                place = f"{file.place} at {at}"
                self._hits.add(Hit(name, encoding, place, file.memory))

    # -- processes

    def _process(self, pid: int) -> None:
        self.processes += 1
        for name in ("environ", "cmdline"):
            path = Path(f"/proc/{pid}/{name}")
            try:
                text = path.read_bytes()
            except OSError as error:
                if not isinstance(
                    error, FileNotFoundError | ProcessLookupError
                ):
                    self.unreadable.append(f"{path}: {error.strerror}")
                continue
            place = f"pid {pid} {name}"
            self._memory_text(text, place)
            for secret in libvirt.sealed(text):
                self._sealed.setdefault(secret, place)

    def _memory_text(self, text: bytes, place: str, how: str = "") -> None:
        for form, _offset in self._needles.find(text):
            for name, encoding in self._needles.tags[form]:
                self._hits.add(Hit(name, how + encoding, place))

    # -- libvirt

    def _key(self, file: File) -> None:
        if file.memory and not self._memory_keys:
            return
        key = os.pread(file.fd, libvirt.KEY_SIZE + 1, 0)
        if len(key) == libvirt.KEY_SIZE:
            self._keys.setdefault(key, file.place)

    def _opened(self) -> Iterable[tuple[bytes, str, str]]:
        for key, where in self._keys.items():
            for sealed, place in self._sealed.items():
                secret = libvirt.unseal(key, sealed)
                if secret is not None:
                    yield secret, where, place


def libvirt_secrets(
    roots: Sequence[Path],
    exclude: Sequence[Path] = (),
    *,
    everywhere: bool = True,
    memory_keys: bool = False,
) -> list[bytes]:
    """libvirt's secrets that a key file on a disk opens.

    Also a key that fits no secret "opens" one in 256 of them to rubbish:
    compare what comes back with the needles, as :class:`Search` does.
    """
    search = Search(
        roots,
        exclude,
        [Needle("nothing", os.urandom(32))],
        everywhere=everywhere,
        memory_keys=memory_keys,
    )
    search.run()
    return search.secrets()


def luks_master_keys(path: Path, passphrase: bytes) -> list[bytes]:
    """The master key of an encrypted image, and its halves.

    :param path: qcow2 with LUKS inside, or LUKS1.
    :param passphrase: as given to PBKDF2: ``luks1.passphrase(key)``.
    :returns: the whole (64 octets for XTS, 32 for CBC) and, for XTS, the
        two keys of 32 octets that it is made of.
    :raises MHError: not such an image, or another passphrase.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.closing(os.fdopen(fd, "rb")):
        head = qcow2.read_at(fd, identify.HEAD_SIZE, 0)
        if identify.kind(head) == "luks":
            area = qcow2.read_at(fd, luks1.parse(head).size, 0)
        else:
            area = qcow2.read_luks(fd, qcow2.read_header(fd))
    key = luks1.unlock(area, passphrase)
    halves = [key[:32], key[32:]] if len(key) == 64 else []
    return [key, *halves]


def key_needles(name: str, key: bytes, *images: Path) -> list[Needle]:
    """A disk key, its passphrase, and the master keys it opens.

    :param images: files encrypted under the key.
    """
    passphrase = luks1.passphrase(key)
    needles = [Needle(name, key), Needle(f"{name} passphrase", passphrase)]
    for image in images:
        whole, *halves = luks_master_keys(image, passphrase)
        label = f"{name} LUKS master key of {image.name}"
        needles.append(Needle(label, whole))
        needles += [
            Needle(f"{label}, half {number}", half)
            for number, half in enumerate(halves, 1)
        ]
    return needles
