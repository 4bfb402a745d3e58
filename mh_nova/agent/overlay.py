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
"""Overlays: written by the agent, and looked at before each use.

Each instance's disk is a qcow2+LUKS file with a key of its own, in nova's
directory of the instance.  Nothing its header says is believed: the path of
the base is computed and compared, the LUKS uuid is the one in the agent's
record, every feature is on a list.
"""

import errno
import grp
import hmac
import os
import pwd
import uuid
from dataclasses import dataclass
from typing import Any

from mh_core.errors import (
    Conflict,
    Denied,
    InputError,
    MHError,
    NotFound,
    VerificationError,
)
from mh_core.image import luks1, mapping, overlay, qcow2
from mh_core.secret import Secret
from mh_nova.agent.hashing import hash_file
from mh_nova.agent.paths import NEW, Root, open_at
from mh_nova.agent.reason import reason
from mh_nova.agent.store import DiskRecord

EVENT = "agent.overlay"
HEADER = "agent.header"
#: PBKDF2 rounds in a header that we wrote; more would only cost time.
MAX_ITERATIONS = 100_000
_NAMESPACE = uuid.UUID("6ba0d1a4-53f6-5a3e-9c0e-6d68696c6c00")


def secret_uuid(instance: str, disk: str, layer: str) -> str:
    """Uuid of a libvirt secret; ``layer`` is ``overlay`` or ``base``."""
    return str(uuid.uuid5(_NAMESPACE, f"{instance}/{disk}/{layer}"))


def header_error(error: MHError) -> Denied:
    """``core.image.qcow2.backing`` becomes ``agent.header.backing``."""
    cause = error.event.rsplit(".", 1)[-1]
    return Denied(f"{HEADER}.{cause}", f"{error.message} ({error.event})")


@dataclass(frozen=True)
class BaseFile:
    """The base a disk lies over.

    :param path: absolute, computed.
    :param driver: QEMU's name of its format, qcow2 or luks.
    """

    path: str
    driver: str = "qcow2"

    def link(self) -> tuple[str, str]:
        """As the header of an overlay names it."""
        return self.path, self.driver


@dataclass(frozen=True)
class Found:
    """What an overlay's headers say, after every check.

    :param size: virtual size, bytes.
    """

    luks_uuid: str
    size: int


class Overlays:
    """
    :param conf: ``[agent]`` options.
    :param root: of ``instances_path``.
    """

    def __init__(self, conf: Any, root: Root) -> None:
        self._conf = conf.agent
        self._root = root

    def inspect(
        self, instance: str, name: str, base: BaseFile | None
    ) -> Found | None:
        """Check the headers of one disk; None if there is no such file.

        :param base: the verified base, or None for a disk that has none.
        :raises Denied: ``agent.header.*``, ``agent.path.link``.
        """
        try:
            fd = self._root.open(instance, name)
        except NotFound:
            return None
        try:
            header, luks = qcow2.inspect(fd, MAX_ITERATIONS)
            qcow2.check(
                header,
                backing=None if base is None else base.link(),
                max_virtual_size=self._conf.max_disk_size,
            )
            # QEMU reads compressed clusters without decrypting them
            mapping.check(fd, header)
        except (InputError, VerificationError) as exc:
            raise header_error(exc) from exc
        finally:
            os.close(fd)
        return Found(str(luks.uuid), header.virtual_size)

    def require(
        self, instance: str, disk: DiskRecord, base: BaseFile | None
    ) -> None:
        """The disk is there, and is the one in the record.

        :raises NotFound: ``agent.overlay.missing``.
        :raises Denied: ``agent.header.*``.
        """
        found = self.inspect(instance, disk.name, base)
        if found is not None and disk.sha256:
            self._unchanged(instance, disk)
        if found is None:
            raise NotFound(
                EVENT + ".missing", f"disk {disk.name} is not there"
            )
        if found.luks_uuid != disk.luks_uuid:
            raise Denied(HEADER + ".uuid", f"disk {disk.name} is another disk")
        if found.size != disk.size:
            raise Denied(
                HEADER + ".virtual-size",
                f"disk {disk.name} has another size than on record",
            )

    def _unchanged(self, instance: str, disk: DiskRecord) -> None:
        """LUKS keeps a disk secret, not whole; one that nobody writes to
        is what it was.

        :raises Denied: ``agent.overlay.changed``.
        """
        if not hmac.compare_digest(
            self.digest(instance, disk.name), disk.sha256
        ):
            raise Denied(
                EVENT + ".changed",
                f"disk {disk.name} is not what it was",
            )

    def digest(self, instance: str, name: str) -> str:
        """SHA-256 (hex) of a disk's file.

        :raises NotFound: ``agent.path.*``.
        """
        fd = self._root.open(instance, name)
        try:
            return hash_file(fd).sha256
        finally:
            os.close(fd)

    def unlocks(self, instance: str, name: str, key: Secret) -> None:
        """The key opens the disk: libvirt would say so later, and worse.

        :raises Denied: ``agent.header.passphrase``.
        """
        fd = self._root.open(instance, name)
        try:
            area = qcow2.read_luks(fd, qcow2.read_header(fd))
            luks1.unlock(area, luks1.passphrase(key.reveal()), MAX_ITERATIONS)
        except (InputError, VerificationError) as exc:
            raise header_error(exc) from None
        finally:
            os.close(fd)

    def write(
        self,
        instance: str,
        disk: DiskRecord,
        key: Secret,
        base: BaseFile | None,
        content: bytes = b"",
    ) -> str:
        """Make one disk, complete or not at all.

        :param content: what the guest finds at its start.
        :returns: SHA-256 (hex) of the file where it has a content; else
            empty.

        :raises Conflict: ``agent.overlay.exists``.
        :raises NotFound: ``agent.path.directory``.
        :raises Denied: ``agent.overlay.write``.
        """
        temporary = disk.name + NEW
        with self._root.directory(instance) as directory:
            try:
                os.unlink(temporary, dir_fd=directory)
            except FileNotFoundError:
                pass
            fd = open_at(
                directory, temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL
            )
            try:
                overlay.write(
                    fd,
                    disk.size,
                    key.reveal(),
                    uuid.UUID(disk.luks_uuid),
                    os.urandom,
                    None if base is None else base.link(),
                    content=content,
                )
                os.fchmod(fd, int(self._conf.disk_mode, 8))
                self._give(fd)
                # link, not rename: what is there is never replaced
                os.link(
                    temporary,
                    disk.name,
                    src_dir_fd=directory,
                    dst_dir_fd=directory,
                )
                return hash_file(fd).sha256 if content else ""
            except InputError as exc:
                raise Denied(
                    EVENT + ".write", f"{exc.message} ({exc.event})"
                ) from None
            except OSError as exc:
                if exc.errno == errno.EEXIST:
                    raise Conflict(
                        EVENT + ".exists", f"disk {disk.name} is there"
                    ) from exc
                raise Denied(
                    EVENT + ".write",
                    f"disk {disk.name} cannot be written: {reason(exc)}",
                ) from exc
            finally:
                os.close(fd)
                os.unlink(temporary, dir_fd=directory)

    def _give(self, fd: int) -> None:
        """To ``disk_owner``.

        :raises Denied: ``agent.overlay.owner``.
        """
        if not self._conf.disk_owner:
            return
        user, _, group = self._conf.disk_owner.partition(":")
        try:
            entry = pwd.getpwnam(user)
            gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
        except KeyError as exc:
            raise Denied(
                EVENT + ".owner", "disk_owner names nobody here"
            ) from exc
        os.fchown(fd, entry.pw_uid, gid)
