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
"""The verified bases: which file is it, and is it still what was hashed?

A base is hashed once.  From then on the agent holds it open with a *read
lease* (fcntl(2), F_SETLEASE): the kernel lets nobody open the file for
writing, or truncate it, without breaking the lease, which the agent sees.
While the lease holds, content and digest belong together, whatever happens
to time stamps: nova's image cache sets them on every pass.  After a restart
of the agent the lease is gone, and the host may have been off: whoever had
the disk in hand can write a file, its time stamps and the agent's record of
it.  So each base is hashed again at its first start then, unless the
operator says that the record will do, or the kernel vouches for it
(:mod:`mh_nova.agent.protect`).
"""

import errno
import fcntl
import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mh_core.errors import Denied, NotFound
from mh_nova.agent.hashing import GrowingHash
from mh_nova.agent.measurers.base import HashedFile
from mh_nova.agent.paths import (
    BASE_DIR,
    PART,
    UNPACKED,
    Root,
    base_name,
    open_at,
)
from mh_nova.agent.protect import Protection, read_through
from mh_nova.agent.store import BaseRecord, Store

LOG = logging.getLogger(__name__)
EVENT = "agent.measure.writer"
_FORKED = 1.0  # seconds


def lease(fd: int) -> None:
    """Be told of whoever opens the file for writing.

    A program that nova-compute runs has the descriptor of a download, too,
    from its fork to its exec: a moment is waited for it.

    :raises Denied: ``agent.measure.writer``: open for writing now."""
    end = time.monotonic() + _FORKED
    while True:
        try:
            # SIGIO, the default, would end the process
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            return
        except OSError as exc:
            why = "the file system of instances_path has no leases"
            if exc.errno == errno.EAGAIN:
                why = "somebody has the image open for writing"
            if exc.errno != errno.EAGAIN or time.monotonic() > end:
                raise Denied(EVENT, why) from exc
        time.sleep(0.01)


def holds(fd: int) -> bool:
    """Nobody has opened the file for writing since :func:`lease`."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK
    except OSError:
        return False


def _copy(hashed: HashedFile) -> HashedFile:
    """The same open file under a descriptor that the caller closes."""
    fd = fcntl.fcntl(hashed.fd, fcntl.F_DUPFD_CLOEXEC, 3)
    return HashedFile(fd, hashed.size, hashed.sha256)


class Bases:
    """All bases of this host; one lock for each.

    :param root: of ``instances_path``.
    :param store: where identities are kept.
    :param believe: after a restart, a base whose device, inode, size and
        times are as recorded is not hashed again.
    :param protection: what fs-verity does for them; None: nothing.
    """

    def __init__(
        self,
        root: Root,
        store: Store,
        believe: bool = False,
        protection: Protection | None = None,
    ) -> None:
        self._root = root
        self._store = store
        self._believe = believe
        self._protection = protection or Protection()
        self._lock = threading.Lock()
        self._locks: dict[str, threading.RLock] = {}
        self._held: dict[str, HashedFile] = {}
        self._growing: dict[str, tuple[GrowingHash, set[str]]] = {}

    @contextmanager
    def _own(self, name: str) -> Iterator[None]:
        with self._lock:
            lock = self._locks.setdefault(name, threading.RLock())
        with lock:
            yield

    # -- a base that nova is downloading ---------------------------------

    def follow(self, image: str, instance: str) -> None:
        """Start to hash the download of an image, for one launch.

        Launches of the same image share one hash.  A left-over of an
        earlier download, which nobody follows, is removed.  Where the base
        is there already, nothing is to be followed.
        """
        name = base_name(image)
        with self._own(name):
            users = {instance}
            if name in self._growing:
                growing, others = self._growing[name]
                if not growing.failed():
                    others.add(instance)
                    return
                # say, of a launch whose nova-compute died: begin again
                growing.stop()
                users |= others
                del self._growing[name]
            if self._path_status(name) is not None:
                return
            self._unlink(name + PART)
            self._unlink(name + PART + UNPACKED)
            growing = GrowingHash(self._root, name + PART)
            self._growing[name] = (growing, users)
            growing.start()

    def leave(self, image: str, instance: str) -> None:
        """A launch needs the hash no longer; the last one ends it."""
        name = base_name(image)
        with self._own(name):
            if name not in self._growing:
                return
            growing, users = self._growing[name]
            users.discard(instance)
            if not users:
                del self._growing[name]
                growing.stop()

    def downloaded(self, image: str) -> None:
        """nova says that the download has ended."""
        name = base_name(image)
        with self._own(name):
            if name in self._growing:
                self._growing[name][0].complete()

    @contextmanager
    def candidate(self, image: str, timeout: float) -> Iterator[HashedFile]:
        """The image's file, hashed by the agent: the base where it is
        there, else the finished download.

        :raises Unavailable: ``agent.hash.timeout``.
        :raises NotFound: ``agent.hash.missing``.
        """
        hashed = self._candidate(image, timeout)
        try:
            yield hashed
        finally:
            os.close(hashed.fd)

    def _candidate(self, image: str, timeout: float) -> HashedFile:
        name = base_name(image)
        with self._own(name):
            if self._path_status(name) is not None:
                return _copy(self._verified(name))
            growing = self._growing.get(name)
            if growing is None:
                # the base was there at first, and was removed since
                raise NotFound("agent.hash.missing", "the image is not there")
        try:
            growing[0].wait(timeout)
        except NotFound:
            # another launch of the same image may have put it in place
            with self._own(name):
                return _copy(self._verified(name))
        with self._own(name):
            # under the lock, so that nobody closes it meanwhile
            return _copy(growing[0].wait(0))

    def adopt(self, image: str, hashed: HashedFile) -> None:
        """Make a measured download the base: not writable, leased, in its
        place under its final name.

        :raises Denied: ``agent.measure.writer``, ``agent.verity.*``.
        """
        name = base_name(image)
        with self._own(name):
            status = os.fstat(hashed.fd)
            there = self._path_status(name)
            if there is not None and _same(there, status):
                return
            if there is not None:
                raise Denied(EVENT, "another file took the base's place")
            os.fchown(hashed.fd, os.geteuid(), os.getegid())
            os.fchmod(hashed.fd, 0o444)
            as_hashed = (hashed.size, os.fstat(hashed.fd).st_ctime_ns)
            # an own description of the file: the lease lives as long as
            # the descriptor, the hash's own is closed with the launch
            fd = os.open(
                f"/proc/self/fd/{hashed.fd}", os.O_RDONLY | os.O_CLOEXEC
            )
            try:
                lease(fd)
                now = os.fstat(fd)
                if (now.st_size, now.st_ctime_ns) != as_hashed:
                    raise Denied(EVENT, "written to after its hash")
                ours = HashedFile(fd, hashed.size, hashed.sha256)
                self._protection.begin(name, ours, self._distrust)
                with self._root.directory(BASE_DIR) as directory:
                    part = os.stat(
                        name + PART, dir_fd=directory, follow_symlinks=False
                    )
                    if not _same(part, status):
                        raise Denied(EVENT, "the download was replaced")
                    os.rename(
                        name + PART,
                        name,
                        src_dir_fd=directory,
                        dst_dir_fd=directory,
                    )
            except FileNotFoundError as exc:
                os.close(fd)
                raise Denied(EVENT, "the download was removed") from exc
            except Denied:
                os.close(fd)
                raise
            self._hold(name, ours)

    def reject(self, image: str, instance: str) -> None:
        """Remove the download of a launch that was refused, so that the
        next one is a new file; others who wait for it follow that."""
        name = base_name(image)
        with self._own(name):
            if name not in self._growing:
                return
            growing, users = self._growing.pop(name)
            growing.stop()
            self._unlink(name + PART)
            users.discard(instance)
            if users:
                again = GrowingHash(self._root, name + PART)
                self._growing[name] = (again, users)
                again.start()

    # -- a base that is there --------------------------------------------

    @contextmanager
    def base(self, image: str) -> Iterator[HashedFile]:
        """The base and its digest, hashed again unless known unchanged.

        :raises NotFound: ``agent.path.file``: no base.
        :raises Denied: ``agent.measure.writer``, ``agent.path.link``,
            ``agent.hash.read``, ``agent.verity.*``.
        """
        name = base_name(image)
        with self._own(name):
            hashed = _copy(self._verified(name))
        try:
            yield hashed
        finally:
            os.close(hashed.fd)

    def _verified(self, name: str) -> HashedFile:
        """With the lock held; the descriptor stays ours."""
        held = self._held.get(name)
        there = self._path_status(name)
        if held is not None:
            if (
                there is not None
                and _same(there, os.fstat(held.fd))
                and holds(held.fd)
            ):
                # time stamps may have moved: the lease says that the
                # content has not
                self._remember(name, held)
                return held
            self._release(name)
        with self._root.directory(BASE_DIR) as directory:
            fd = open_at(directory, name)
        try:
            lease(fd)
            hashed = (
                self._protection.known(name, fd)
                or self._believed(name, fd)
                or self._hashed(name, fd)
            )
            self._protection.begin(name, hashed, self._distrust)
        except Denied:
            os.close(fd)
            raise
        self._hold(name, hashed)
        return hashed

    def _believed(self, name: str, fd: int) -> HashedFile | None:
        """Where the operator says that the record will do."""
        known = self._store.base(name) if self._believe else None
        if known is None or known != BaseRecord.of(fd, known.sha256):
            return None
        return HashedFile(fd, known.size, known.sha256)

    def _hashed(self, name: str, fd: int) -> HashedFile:
        """:raises Denied: ``agent.hash.read``, ``agent.measure.writer``."""
        LOG.info("%s: hashing base %s", "agent.hash.base", name)
        # before the hash, so that it is of the bytes this stands for
        digest = self._protection.digest(fd)
        hashed = read_through(fd)
        if not holds(fd):
            raise Denied(EVENT, "written to while it was hashed")
        self._protection.note(name, hashed, digest)
        return hashed

    def _distrust(self, name: str, inode: int) -> None:
        """What was hashed is not what a guest would read: again."""
        with self._own(name):
            held = self._held.get(name)
            if held is not None and os.fstat(held.fd).st_ino == inode:
                self._release(name)

    def _hold(self, name: str, hashed: HashedFile) -> None:
        self._release(name)
        self._held[name] = hashed
        self._remember(name, hashed)

    def _remember(self, name: str, hashed: HashedFile) -> None:
        record = BaseRecord.of(hashed.fd, hashed.sha256)
        if self._store.base(name) != record:
            self._store.save_base(name, record)

    def _release(self, name: str) -> None:
        held = self._held.pop(name, None)
        if held is not None:
            os.close(held.fd)

    def prune(self) -> None:
        """Let go of bases that nova's image cache has removed."""
        for name in list(self._held):
            with self._own(name):
                if name in self._held and self._path_status(name) is None:
                    self._release(name)
                    self._store.drop_base(name)
                    self._protection.drop(name)

    def close(self) -> None:
        for growing, _users in self._growing.values():
            growing.stop()
        self._growing.clear()
        self._protection.stop()
        for name in list(self._held):
            self._release(name)

    # -- names -----------------------------------------------------------

    def _path_status(self, name: str) -> os.stat_result | None:
        try:
            with self._root.directory(BASE_DIR) as directory:
                return os.stat(name, dir_fd=directory, follow_symlinks=False)
        except (NotFound, FileNotFoundError):
            return None

    def _unlink(self, name: str) -> None:
        try:
            with self._root.directory(BASE_DIR) as directory:
                os.unlink(name, dir_fd=directory)
        except (NotFound, FileNotFoundError):
            pass


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return stat.S_ISREG(one.st_mode) and (one.st_dev, one.st_ino) == (
        other.st_dev,
        other.st_ino,
    )
