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
"""The stream form: an encrypted image comes in, the opened one goes out.

For hypervisors that pull images through a pipe. Not one byte goes out before
the whole image has been measured: a stream that is cut or changed gives none.

Steps, with the id each refuses by:

1. the host may carry trusted launches, and it is this host's request
   (``agent.guard.*``, ``agent.stream.host``), for a key server on the list
   (``agent.kms.*``);
2. the key is asked for, for the purpose ``stream``, which a release policy
   must list, while the ciphertext is spooled to a file without a name and
   hashed (``agent.stream.read|size|spool``);
3. the release is ours (``agent.release.*``) and sets no lease, which nobody
   could enforce on what has left (``agent.stream.lease``);
4. an OVA is unpacked (``agent.unpack.*``), and the measuring decision
   passes (``agent.measure.*``);
5. the record is written (``agent.stream.opened``);
6. QEMU opens it, with the key by memfd, and what the guest would see is
   written to the caller's descriptor (``agent.stream.write``).
"""

import fcntl
import hashlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mh_core.errors import Denied, MHError, Unavailable
from mh_core.image import luks1
from mh_core.manifest import DRIVERS, Manifest, claimed_size
from mh_core.secret import Secret
from mh_nova.agent import unpack
from mh_nova.agent.attempt import Attempt, Opened
from mh_nova.agent.keys import key_request
from mh_nova.agent.measure import verify_manifest
from mh_nova.agent.measurers.base import HashedFile
from mh_nova.agent.parts import Parts
from mh_nova.agent.store import InstanceRecord
from mh_nova.agent.work import Work

EVENT = "agent.stream"
OPENED = EVENT + ".opened"
PURPOSE = "stream"
_CHUNK = 1 << 20
_POLL_MS = 250
#: libnbd gives its child the socket as descriptor 3.
_FIRST_FD = 16
#: QEMU's node of a disk, the file node to follow.
_NODES = {
    "qcow2": "driver=qcow2,encrypt.format=luks,encrypt.key-secret=mh",
    "luks": "driver=luks,key-secret=mh",
}
_TOOLS = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


class Streams(Work):
    """All streams of this host; few at once."""

    def __init__(self, parts: Parts, limit: int = 4) -> None:
        super().__init__(parts)
        self._stream = parts.conf.stream
        self._slots = threading.BoundedSemaphore(limit)

    def stop(self) -> None:
        self._keys.stop()

    def open(
        self,
        record: InstanceRecord,
        ticket: str,
        source: int,
        target: int,
        gone: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """
        :param record: as for a launch, without disks.
        :param source: descriptor the encrypted image is read from.
        :param target: descriptor the opened one is written to.
        :param gone: the caller went away.
        :returns: bytes written, and the ids of the audit records.
        :raises MHError: as in the module's list.
        """
        if not self._slots.acquire(blocking=False):
            raise Unavailable(EVENT + ".busy", "too many streams at once")
        try:
            return self._open(record, ticket, source, target, gone)
        except MHError as exc:
            self._p.journal.write(exc.event, record.instance, exc.message)
            raise
        finally:
            self._slots.release()

    def _open(
        self,
        record: InstanceRecord,
        ticket: str,
        source: int,
        target: int,
        gone: Callable[[], bool],
    ) -> dict[str, Any]:
        # 1
        self._p.guard.require()
        if record.host != self._conf.host:
            raise Denied(EVENT + ".host", "asked of another host")
        url = self._keys.check_url(record)
        attempt = Attempt(
            record, url, key_request(record, url, PURPOSE, ticket)
        )
        # 2
        attempt.key = self._keys.ask(attempt)
        with self._spool(record.manifest, source, gone) as spooled:
            # 3
            opened = self._keys.open(attempt)
            if opened.payload.lease:
                raise Denied(
                    EVENT + ".lease",
                    "the key's policy sets a lease, which cannot be enforced "
                    "on an image that has left",
                )
            # 4
            with self._disk(attempt, opened, spooled) as disk:
                measured = self._measure(attempt, opened, disk)
                # 5
                audit = self._p.journal.write(
                    OPENED,
                    record.instance,
                    request=opened.request.digest().hex(),
                    kms_audit=opened.payload.audit,
                    sha256=disk.sha256,
                )
                # 6
                self._write(
                    measured.manifest, opened.payload.dek, disk, target, gone
                )
        return {
            "bytes": measured.manifest.virtual_size,
            "event": OPENED,
            "detail": f"{audit}; key server: {opened.payload.audit}",
        }

    # -- in --------------------------------------------------------------

    @contextmanager
    def _spool(
        self, manifest: str, source: int, gone: Callable[[], bool]
    ) -> Iterator[HashedFile]:
        """The ciphertext, in a file without a name, hashed as it came."""
        # a claim, until the manifest is verified: a bound, nothing more
        size = claimed_size(manifest)
        fd = self._nameless()
        try:
            digest = hashlib.sha256()
            done = 0
            while data := self._read(source, gone):
                done += len(data)
                if done > size:
                    raise Denied(
                        EVENT + ".size", "the stream is longer than its image"
                    )
                digest.update(data)
                _write_all(fd, data)
            yield HashedFile(fd, done, digest.hexdigest())
        finally:
            os.close(fd)

    def _nameless(self) -> int:
        try:
            return os.open(
                self._stream.spool_dir,
                os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC,
                0o600,
            )
        except OSError as exc:
            raise Unavailable(
                EVENT + ".spool", "no file can be made in spool_dir"
            ) from exc

    def _read(self, source: int, gone: Callable[[], bool]) -> bytes:
        """The next piece; empty at the end."""
        poll = select.poll()
        poll.register(source, select.POLLIN)
        deadline = time.monotonic() + self._stream.idle_timeout
        while not poll.poll(_POLL_MS):
            if gone() or time.monotonic() > deadline:
                raise Unavailable(EVENT + ".read", "the stream has stalled")
        try:
            return os.read(source, _CHUNK)
        except OSError as exc:
            raise Unavailable(
                EVENT + ".read", "the stream cannot be read"
            ) from exc

    @contextmanager
    def _disk(
        self, attempt: Attempt, opened: Opened, spooled: HashedFile
    ) -> Iterator[HashedFile]:
        record = attempt.record
        manifest = verify_manifest(
            opened.payload, record.manifest, opened.request
        )
        if manifest.container is None:
            yield spooled
            return
        container = unpack.check(manifest, attempt.url, spooled)
        fd = self._nameless()
        try:
            yield unpack.extract(container, spooled.fd, fd)
        finally:
            os.close(fd)

    # -- out -------------------------------------------------------------

    def _write(
        self,
        manifest: Manifest,
        key: Secret,
        disk: HashedFile,
        target: int,
        gone: Callable[[], bool],
    ) -> None:
        """nbdcopy runs qemu-nbd, reads in order, writes to the target."""
        fds = [_memfd(luks1.passphrase(key.reveal()))]
        try:
            fds.append(fcntl.fcntl(disk.fd, fcntl.F_DUPFD, _FIRST_FD))
            node = _NODES[DRIVERS[manifest.format]]
            argv = [
                *("nbdcopy", "--", "["),
                *("qemu-nbd", "--read-only", "--object"),
                f"secret,id=mh,file=/dev/fd/{fds[0]}",
                "--image-opts",
                f"{node},file.driver=file,file.filename=/dev/fd/{fds[1]}",
                *("]", "-"),
            ]
            child = subprocess.Popen(
                argv,
                pass_fds=fds,
                env=_TOOLS,
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=subprocess.DEVNULL,
                # a group of its own, so that both are ended together
                process_group=0,
            )
        except OSError as exc:
            raise Unavailable(
                EVENT + ".write", "nbdcopy or qemu-nbd cannot be run"
            ) from exc
        finally:
            for fd in fds:
                os.close(fd)
        try:
            while (code := _ended(child)) is None:
                if gone():
                    raise Unavailable(EVENT + ".write", "the caller is gone")
        finally:
            _end(child)
        if code:
            raise Unavailable(
                EVENT + ".write",
                "the image was not written to its end; what came is void",
            )


def _ended(child: "subprocess.Popen[bytes]") -> int | None:
    try:
        return child.wait(_POLL_MS / 1000)
    except subprocess.TimeoutExpired:
        return None


def _end(child: "subprocess.Popen[bytes]") -> None:
    """nbdcopy and its qemu-nbd, by the group that this child leads."""
    if child.poll() is None:
        os.killpg(child.pid, 9)
        child.wait()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as exc:
        raise Unavailable(EVENT + ".spool", "spool_dir takes no more") from exc


def _memfd(data: bytes) -> int:
    """Sealed, in memory, with a number that no tool uses for its own."""
    fd = os.memfd_create("mh", os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, data)
        fcntl.fcntl(
            fd,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK,
        )
        return fcntl.fcntl(fd, fcntl.F_DUPFD, _FIRST_FD)
    finally:
        os.close(fd)
