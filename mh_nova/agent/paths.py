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
"""Where disks and bases are; everything is opened beneath the root.

Each component below ``instances_path`` is opened by descriptor, without
following a symbolic link, so no name can lead out of it.  The names come
from uuids and from our own constants, never from a caller.
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator

from mh_core.errors import Denied, InputError, NotFound

EVENT = "agent.path"
BASE_DIR = "_base"
#: nova's image cache looks after ``<sha1>_<digits>``.
SUFFIX = "_36"
PART = ".part"
#: After ``PART``: a disk while it is taken out of an OVA.
UNPACKED = ".disk"
CONSOLE_LOG = "console.log"
#: Ends the name of a disk while the agent writes it.
NEW = ".mh-new"


def base_name(image: str) -> str:
    """File name of the base in nova's image cache."""
    digest = hashlib.sha1(image.encode(), usedforsecurity=False)
    return digest.hexdigest() + SUFFIX


class Root:
    """``instances_path``, and computed paths below it.

    :param path: absolute; the operator's word, so links in it are allowed.
    """

    def __init__(self, path: str) -> None:
        if not os.path.isabs(path):
            raise InputError(EVENT + ".root", "instances_path is relative")
        self.path = os.path.normpath(path)

    # what QEMU and libvirt are told, text

    def base(self, image: str) -> str:
        return os.path.join(self.path, BASE_DIR, base_name(image))

    def disk(self, instance: str, name: str) -> str:
        return os.path.join(self.path, instance, name)

    # what the agent opens

    @contextlib.contextmanager
    def directory(self, name: str) -> Iterator[int]:
        """Descriptor of one directory right below the root.

        :raises NotFound: ``agent.path.directory``.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            root = os.open(self.path, flags)
            try:
                fd = os.open(name, flags | os.O_NOFOLLOW, dir_fd=root)
            finally:
                os.close(root)
        except OSError as exc:
            raise NotFound(
                EVENT + ".directory", "a directory of nova's is not there"
            ) from exc
        try:
            yield fd
        finally:
            os.close(fd)

    def open(self, directory: str, name: str, flags: int = os.O_RDONLY) -> int:
        """Open one regular file; the caller closes it.

        :raises NotFound: ``agent.path.file``: not there.
        :raises Denied: ``agent.path.link``: a link, or not a file.
        """
        with self.directory(directory) as fd:
            return open_at(fd, name, flags)

    def names(self, directory: str) -> list[str]:
        """Names in a directory below the root; none if it is not there."""
        try:
            with self.directory(directory) as fd:
                return sorted(os.listdir(fd))
        except NotFound:
            return []


def open_at(directory: int, name: str, flags: int = os.O_RDONLY) -> int:
    """As :meth:`Root.open`, in an open directory."""
    if not name or "/" in name or name in (".", ".."):
        raise Denied(EVENT + ".name", "not a file name")
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(name, flags, 0o600, dir_fd=directory)
    except FileNotFoundError as exc:
        raise NotFound(EVENT + ".file", "the file is not there") from exc
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise Denied(EVENT + ".link", "not a regular file") from exc
        raise Denied(EVENT + ".file", "the file cannot be opened") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Denied(EVENT + ".link", "not a regular file")
    return fd
