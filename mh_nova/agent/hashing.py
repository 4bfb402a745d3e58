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
"""Hash a file while nova-compute writes it.

nova downloads an image to ``_base/<sha1>_36.part``; the agent reads behind
it, so that the digest is there almost as soon as the last byte.  The
contract with the hook: a download writes the file once, from its start to
its end, and a new attempt is a new file.  A file that is replaced, or gets
shorter, is hashed from its start again.
"""

import hashlib
import os
import stat
import threading
import time

from mh_core.errors import Denied, MHError, NotFound, Unavailable
from mh_nova.agent.measurers.base import HashedFile
from mh_nova.agent.paths import BASE_DIR, Root

EVENT = "agent.hash"
_CHUNK = 1024 * 1024
_POLL = 0.005
#: A download that makes no progress for so long (seconds) is given up.
_IDLE = 900.0


def hash_file(fd: int) -> HashedFile:
    """Hash what an open file holds now; constant memory."""
    digest = hashlib.sha256()
    size = 0
    buffer = memoryview(bytearray(_CHUNK))
    while count := os.preadv(fd, [buffer], size):
        digest.update(buffer[:count])
        size += count
    return HashedFile(fd, size, digest.hexdigest())


class _Restart(Exception):
    """The file under the name is another one now."""


class GrowingHash:
    """Follows one growing file in a thread of its own.

    :param root: of ``instances_path``.
    :param name: of the file, in ``_base``.
    """

    def __init__(self, root: Root, name: str) -> None:
        self._root = root
        self._name = name
        self._complete = threading.Event()
        self._stopped = threading.Event()
        self._done = threading.Event()
        self._result: HashedFile | None = None
        self._error: MHError | None = None
        self._deadline = 0.0
        self._thread = threading.Thread(
            target=self._run, name=f"hash-{name[:8]}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def complete(self) -> None:
        """nova says that the download has ended."""
        self._complete.set()

    def failed(self) -> bool:
        """It has ended without a result."""
        return self._done.is_set() and self._error is not None

    def stop(self) -> None:
        """Give up; the descriptor is closed."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._result is not None:
            os.close(self._result.fd)
            self._result = None

    def wait(self, timeout: float) -> HashedFile:
        """The finished hash; its descriptor stays this object's.

        :raises NotFound: ``agent.hash.missing``: complete, but not there.
        :raises Unavailable: ``agent.hash.timeout``.
        """
        if not self._done.wait(timeout):
            raise Unavailable(
                EVENT + ".timeout", "the image was not hashed in time"
            )
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise Unavailable(EVENT + ".stopped", "the launch was given up")
        return self._result

    def _alive(self) -> None:
        if self._stopped.is_set():
            raise Unavailable(EVENT + ".stopped", "the launch was given up")
        if time.monotonic() > self._deadline:
            raise Unavailable(EVENT + ".idle", "the download has stalled")

    def _run(self) -> None:
        self._deadline = time.monotonic() + _IDLE
        try:
            while True:
                self._alive()
                # Read before the look at the file: what is complete then
                # has its last byte in the file we open.
                complete = self._complete.is_set()
                try:
                    fd = self._root.open(BASE_DIR, self._name)
                except NotFound as exc:
                    if complete:
                        raise NotFound(
                            EVENT + ".missing", "the image is not there"
                        ) from exc
                    time.sleep(_POLL)
                    continue
                try:
                    self._result = self._follow(fd)
                    return
                except _Restart:
                    continue
                finally:
                    if self._result is None:
                        os.close(fd)
        except MHError as exc:
            self._error = exc
        except OSError:
            self._error = Denied(EVENT + ".read", "the image cannot be read")
        finally:
            self._done.set()

    def _follow(self, fd: int) -> HashedFile:
        digest = hashlib.sha256()
        size = 0
        buffer = memoryview(bytearray(_CHUNK))
        while True:
            self._alive()
            complete = self._complete.is_set()
            if count := os.preadv(fd, [buffer], size):
                digest.update(buffer[:count])
                size += count
                self._deadline = time.monotonic() + _IDLE
                continue
            status = os.fstat(fd)
            if status.st_size < size or not status.st_nlink:
                raise _Restart
            if complete:
                if status.st_size != size or not self._same(status):
                    raise _Restart
                return HashedFile(fd, size, digest.hexdigest())
            if not self._same(status):
                raise _Restart
            self._complete.wait(_POLL)

    def _same(self, status: os.stat_result) -> bool:
        """The name still means the file that is being read."""
        try:
            with self._root.directory(BASE_DIR) as directory:
                now = os.stat(
                    self._name, dir_fd=directory, follow_symlinks=False
                )
        except (NotFound, FileNotFoundError):
            return False
        return stat.S_ISREG(now.st_mode) and (now.st_dev, now.st_ino) == (
            status.st_dev,
            status.st_ino,
        )
