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
"""Bases under fs-verity, where kernel and file system have it.

The lease (:mod:`mh_nova.agent.bases`) sees whoever opens a base for
writing; it does not see who writes to the disk below the file system.  So
each base is given to fs-verity, and hashed once more, by what can then only
be the bytes that the kernel's digest stands for.  From there on a changed
block is an input/output error for whoever reads it, guests too.

The digest is noted beside the hash it was seen with.  A base with the same
digest need not be hashed again: no other bytes have it.  Notes are kept in
memory (tmpfs), and end with the boot: on a disk they could be written by
whoever can write a base.
"""

import logging
import os
import queue
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mh_core.encoding import canonical_json, parse_json
from mh_core.errors import Denied, InputError, MHError
from mh_core.fields import Fields
from mh_nova.agent import verity
from mh_nova.agent.hashing import hash_file
from mh_nova.agent.measurers.base import HashedFile
from mh_nova.agent.storage import in_memory
from mh_nova.agent.store import write_atomic

LOG = logging.getLogger(__name__)
EVENT = "agent.verity"
#: Of option ``fs_verity``.
AUTO, OFF, REQUIRE = "auto", "off", "require"
#: Directory of the notes, beside the socket.
NOTES = "verity"
#: Of the thread that nobody waits for: launches go first.
_NICE = 10

Differs = Callable[[str, int], None]


@dataclass(frozen=True)
class Note:
    """What was read through a file whose digest was ``verity``.

    :param size: bytes.
    :param sha256: hex, of all of them.
    :param verity: hex, the kernel's digest.
    """

    size: int
    sha256: str
    verity: str

    @classmethod
    def parse(cls, value: object) -> "Note":
        """:raises InputError: ``agent.verity.note``."""
        fields = Fields(value, EVENT + ".note")
        note = cls(
            size=fields.integer("size", 0, (1 << 64) - 1),
            sha256=fields.hex("sha256", 32).hex(),
            verity=fields.hex("verity", verity.DIGEST_SIZE).hex(),
        )
        fields.end()
        return note


def read_through(fd: int) -> HashedFile:
    """As ``hash_file``, of a file whose reads may fail.

    :raises Denied: ``agent.hash.read``: also where a block was changed.
    """
    try:
        return hash_file(fd)
    except OSError as exc:
        raise Denied("agent.hash.read", "the image cannot be read") from exc


class Protection:
    """
    :param mode: :data:`AUTO`: in a thread of its own, where it can be done;
        :data:`REQUIRE`: before a base is used, or it is not; :data:`OFF`.
    :param runtime: directory below which notes outlive the agent; None, or
        not in memory: they do not.
    """

    def __init__(self, mode: str = OFF, runtime: Path | None = None) -> None:
        self._mode = mode
        self._runtime = runtime
        self._notes: dict[str, Note] = {}
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[
            tuple[str, HashedFile, Differs] | None
        ] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def digest(self, fd: int) -> bytes | None:
        """Take it before a hash that :meth:`note` is to have."""
        return None if self._mode == OFF else verity.measure(fd)

    def known(self, name: str, fd: int) -> HashedFile | None:
        """The hash of a base that was noted with the digest it has now."""
        digest = self.digest(fd)
        note = None if digest is None else self._note(name)
        if (
            digest is None
            or note is None
            or note.verity != digest.hex()
            or note.size != os.fstat(fd).st_size
        ):
            return None
        return HashedFile(fd, note.size, note.sha256)

    def note(
        self, name: str, hashed: HashedFile, digest: bytes | None
    ) -> None:
        """
        :param digest: of the file before it was hashed; None: not protected.
        """
        if digest is None:
            return
        note = Note(hashed.size, hashed.sha256, digest.hex())
        with self._lock:
            self._notes[name] = note
        folder = self._folder(make=True)
        if folder is not None:
            # lost, it costs one more hash
            with suppress(MHError):
                write_atomic(
                    folder / f"{name}.json",
                    canonical_json(asdict(note)),
                    durable=False,
                )

    def drop(self, name: str) -> None:
        """The base is gone."""
        with self._lock:
            self._notes.pop(name, None)
        folder = self._folder()
        if folder is not None:
            with suppress(OSError):
                (folder / f"{name}.json").unlink(missing_ok=True)

    def begin(self, name: str, hashed: HashedFile, differs: Differs) -> None:
        """A base that was hashed is about to be used.

        :param differs: called, with inode number, from the thread for a
            base whose bytes on disk are not those of the hash.
        :raises Denied: only where it is required: ``agent.verity.*``,
            ``agent.hash.read``.
        """
        if self._mode == OFF or self.known(name, hashed.fd) is not None:
            return
        if self._mode == REQUIRE:
            self._protect(name, hashed)
        elif verity.available(hashed.fd):
            fd = os.dup(hashed.fd)
            again = HashedFile(fd, hashed.size, hashed.sha256)
            self._work.put((name, again, differs))
            self._start()

    def stop(self) -> None:
        """What is under way ends with the process, at the latest."""
        with self._lock:
            if self._thread is not None:
                self._work.put(None)
                self._thread = None

    def _protect(self, name: str, hashed: HashedFile) -> None:
        """:raises Denied: ``agent.verity.*``, ``agent.hash.read``."""
        digest = verity.enable(hashed.fd)
        # the tree was made of what was on the disk by then
        again = read_through(hashed.fd)
        if (again.size, again.sha256) != (hashed.size, hashed.sha256):
            raise Denied(
                EVENT + ".differs", "the disk does not hold what was hashed"
            )
        self.note(name, hashed, digest)
        LOG.info("%s.protected: %s", EVENT, name)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="verity", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        # of this thread only: Linux
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (item := self._work.get()) is not None:
            name, hashed, differs = item
            try:
                self._protect(name, hashed)
            except Denied as exc:
                LOG.warning("%s: %s", name, exc)
                if exc.event in (EVENT + ".differs", "agent.hash.read"):
                    differs(name, os.fstat(hashed.fd).st_ino)
            finally:
                os.close(hashed.fd)

    def _note(self, name: str) -> Note | None:
        with self._lock:
            if name in self._notes:
                return self._notes[name]
        folder = self._folder()
        if folder is None:
            return None
        try:
            data = (folder / f"{name}.json").read_bytes()
            return Note.parse(parse_json(data))
        except (OSError, InputError):
            return None

    def _folder(self, make: bool = False) -> Path | None:
        """Where notes are kept: in memory, and nobody else's."""
        if self._runtime is None:
            return None
        folder = self._runtime / NOTES
        try:
            if not in_memory(str(self._runtime)):
                return None
            if make:
                folder.mkdir(mode=0o700, exist_ok=True)
            status = folder.lstat()
        except OSError:
            return None
        if (
            not stat.S_ISDIR(status.st_mode)
            or status.st_uid != os.geteuid()
            or stat.S_IMODE(status.st_mode) & (stat.S_IRWXG | stat.S_IRWXO)
        ):
            return None
        return folder
