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
"""Volumes as this host has them: files and devices, and what lies on them.

Their paths are the one kind that comes from a caller: no uuid says where
nova connected a volume.  So they are bounded, see :func:`Volumes._open`, and
a volume is written to in one case only: it is blank, and gets its header.
"""

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mh_core import volume
from mh_core.errors import Denied, InputError, VerificationError
from mh_core.image import luks1
from mh_core.secret import Secret
from mh_nova.agent.domain_volume import ExpectedVolume
from mh_nova.agent.overlay import MAX_ITERATIONS
from mh_nova.agent.reason import reason

EVENT = "agent.volume"
#: What must be zero of a volume that is to get a header: here lie partition
#: tables, and the headers of every file system and of RAID.
HEAD, TAIL = 4 << 20, 1 << 20
MIN_SIZE = HEAD + TAIL
_CHUNK = 1 << 20
_DEVICES = "/dev"


class Volumes:
    """
    :param conf: parsed configuration, see ``conf.py``.
    """

    def __init__(self, conf: Any) -> None:
        self._instances = os.path.realpath(conf.agent.instances_path)
        self._folders = tuple(
            os.path.realpath(path)
            for path in conf.agent.volume_dirs
            if os.path.isabs(path)
        )

    def check(self, one: ExpectedVolume, in_use: bool = False) -> None:
        """Before its key is asked for: there is a volume, blank or with a
        header of its own.

        :param in_use: by the guest, on the host that it comes from: it has
            a header.
        :raises Denied: ``agent.volume.`` and one of ``path``, ``open``,
            ``size``, ``not-blank``, ``blank``, ``header``, ``other``.
        """
        with self._open(one, os.O_RDONLY) as fd:
            self._area(fd, one, in_use)

    def ready(
        self, one: ExpectedVolume, key: Secret, in_use: bool = False
    ) -> bool:
        """The volume opens with its key; a blank one gets its header.

        :param in_use: as of :meth:`check`.
        :returns: it was blank.
        :raises Denied: as :meth:`check`; ``agent.volume.key``,
            ``agent.volume.write``.
        """
        with self._open(one, os.O_RDONLY) as fd:
            area = self._area(fd, one, in_use)
            if area:
                self._unlock(area, key)
                return False
        flags = os.O_RDWR
        if one.kind == "block":
            # of a device: nobody on this host has mounted it
            flags |= os.O_EXCL
        with self._open(one, flags) as fd:
            # it may have changed meanwhile
            if self._header(fd, one):
                raise Denied(EVENT + ".write", "somebody else writes to it")
            self._format(fd, one, key)
            self._unlock(self._header(fd, one), key)
        return True

    @contextmanager
    def _open(self, one: ExpectedVolume, flags: int) -> Iterator[int]:
        """A block device below ``/dev``, or a regular file in a folder of
        ``volume_dirs``; never anything of nova's instances.

        :raises Denied: ``agent.volume.path``, ``agent.volume.open``.
        """
        path = os.path.realpath(one.path)
        folders = (_DEVICES,) if one.kind == "block" else self._folders
        if (
            not os.path.isabs(one.path)
            or not any(_below(path, folder) for folder in folders)
            or _below(path, self._instances)
        ):
            raise Denied(
                EVENT + ".path",
                "the volume is in none of the operator's volume_dirs"
                if one.kind == "file"
                else "the volume is no device of this host",
            )
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(path, flags)
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                raise Denied(
                    EVENT + ".open", "this host itself uses the device"
                ) from exc
            raise Denied(
                EVENT + ".open",
                f"the volume cannot be opened: {reason(exc)}",
            ) from exc
        try:
            mode = os.fstat(fd).st_mode
            if not (
                stat.S_ISBLK(mode)
                if one.kind == "block"
                else stat.S_ISREG(mode)
            ):
                raise Denied(
                    EVENT + ".path", f"the volume is not a {one.kind}"
                )
            yield fd
        except OSError as exc:
            raise Denied(
                EVENT + ".open", f"the volume cannot be read: {reason(exc)}"
            ) from exc
        finally:
            os.close(fd)

    def _area(self, fd: int, one: ExpectedVolume, in_use: bool) -> bytes:
        """:raises Denied: as :meth:`_header`; ``agent.volume.blank``."""
        area = self._header(fd, one)
        if in_use and not area:
            raise Denied(
                EVENT + ".blank",
                "the guest's volume is blank here: the cloud connected "
                "another one",
            )
        return area

    def _header(self, fd: int, one: ExpectedVolume) -> bytes:
        """The LUKS header with key material; empty where it is blank.

        :raises Denied: ``agent.volume.size``, ``agent.volume.not-blank``,
            ``agent.volume.header``, ``agent.volume.other``.
        """
        size = os.lseek(fd, 0, os.SEEK_END)
        if size < MIN_SIZE or size % 512:
            raise Denied(
                EVENT + ".size",
                f"a volume has at least {MIN_SIZE} bytes, whole sectors",
            )
        area = _read(fd, volume.HEADER_BYTES, 0)
        if not area.startswith(luks1.MAGIC):
            if not _blank(fd, size):
                raise Denied(
                    EVENT + ".not-blank",
                    "there is something on the volume that is not "
                    "encrypted for this use; attach a new, empty volume",
                )
            return b""
        try:
            header = luks1.parse(area, MAX_ITERATIONS)
        except InputError as exc:
            raise Denied(
                EVENT + ".header", f"{exc.message} ({exc.event})"
            ) from exc
        if (
            header.size != volume.HEADER_BYTES
            or header.cipher_mode != volume.CIPHER_MODE
        ):
            raise Denied(
                EVENT + ".header", "the volume's header is not of our making"
            )
        if str(header.uuid) != one.id:
            raise Denied(
                EVENT + ".other",
                f"here lies what was written to volume {header.uuid}: a "
                "copy of it, or the cloud connected another volume",
            )
        return area

    @staticmethod
    def _unlock(area: bytes, key: Secret) -> None:
        """:raises Denied: ``agent.volume.key``."""
        try:
            luks1.unlock(area, luks1.passphrase(key.reveal()), MAX_ITERATIONS)
        except (InputError, VerificationError) as exc:
            raise Denied(
                EVENT + ".key",
                "the volume was encrypted under another key than that of "
                f"this server's image ({exc.event})",
            ) from None

    @staticmethod
    def _format(fd: int, one: ExpectedVolume, key: Secret) -> None:
        """The header last of all: cut off, the volume has none.

        :raises Denied: ``agent.volume.write``.
        """
        area, _master = luks1.build(
            luks1.passphrase(key.reveal()),
            uuid.UUID(one.id),
            os.urandom,
            volume.CIPHER_MODE,
        )
        try:
            for start in (4096, 0):
                end = len(area) if start else 4096
                view, at = memoryview(area)[start:end], start
                while view:
                    done = os.pwrite(fd, view, at)
                    view, at = view[done:], at + done
                os.fsync(fd)
        except OSError as exc:
            raise Denied(
                EVENT + ".write",
                f"the volume cannot be written: {reason(exc)}",
            ) from exc


def _below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _read(fd: int, size: int, offset: int) -> bytes:
    parts = []
    while size:
        part = os.pread(fd, min(size, _CHUNK), offset)
        if not part:
            break
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return b"".join(parts)


def _blank(fd: int, size: int) -> bool:
    return not any(_read(fd, HEAD, 0)) and not any(
        _read(fd, TAIL, size - TAIL)
    )
