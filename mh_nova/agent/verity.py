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
"""fs-verity: a file that the kernel checks at each read, for good.

The kernel makes a tree of hashes over an open file and keeps it beside it.
From then on nobody can write to the file, and what is read from its disk is
held against the tree: a block that was changed below the file system is an
input/output error, never data.  A file's *digest* stands for all of its
bytes and its size.

Source: Linux, ``include/uapi/linux/fsverity.h`` and
``Documentation/filesystems/fsverity.rst``.
"""

import errno
import fcntl
import os
import struct

from mh_core.errors import Denied
from mh_nova.agent.reason import reason
from mh_nova.agent.storage import file_system

EVENT = "agent.verity"
#: Bytes of data, and of the tree, that are hashed at once.
BLOCK_SIZE = 4096
#: Bytes of a digest.
DIGEST_SIZE = 32
_VERSION = 1
_SHA256 = 1
_ENABLE = struct.Struct("<IIIIQIIQ88x")
_DIGEST = struct.Struct(f"<HH{DIGEST_SIZE}s")
_READ, _WRITE = 2, 1
#: statfs(2), f_type: ext4, btrfs, f2fs. Another file system, as one that a
#: process serves, could answer what it likes.
_FILE_SYSTEMS = (0xEF53, 0x9123683E, 0xF2F52010)


def _ioctl(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("f") << 8 | number


_ENABLE_VERITY = _ioctl(_WRITE, 133, _ENABLE.size)
# the size is that of the header, without the digest
_MEASURE_VERITY = _ioctl(_READ | _WRITE, 134, 4)


def _measure(fd: int) -> bytes:
    """:raises OSError: ENODATA: a file that could be, and is not,
    protected."""
    if file_system(f"/proc/self/fd/{fd}") not in _FILE_SYSTEMS:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
    argument = bytearray(_DIGEST.pack(0, DIGEST_SIZE, b""))
    fcntl.ioctl(fd, _MEASURE_VERITY, argument, True)
    algorithm, size, digest = _DIGEST.unpack(argument)
    if (algorithm, size) != (_SHA256, DIGEST_SIZE):
        raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
    return bytes(digest)


def available(fd: int) -> bool:
    """Can files there be protected?

    :param fd: a file or directory, open on the file system in question.
    """
    try:
        _measure(fd)
    except OSError as exc:
        return exc.errno in (errno.ENODATA, errno.EOVERFLOW)
    return True


def measure(fd: int) -> bytes | None:
    """The digest that the kernel holds a file's reads against, 32 bytes;
    None: it is not protected, or otherwise than with SHA-256."""
    try:
        return _measure(fd)
    except OSError:
        return None


def enable(fd: int) -> bytes:
    """Protect a file; takes as long as reading and hashing it.

    What the page cache held of it is dropped: each read after this is of
    what the digest stands for.

    :param fd: open for reading only.
    :returns: the digest, 32 bytes.
    :raises Denied: ``agent.verity.missing``: not on this kernel or file
        system; ``agent.verity.writer``: open for writing;
        ``agent.verity.failed``.
    """
    known = measure(fd)
    if known is not None:
        return known
    if not available(fd):
        raise Denied(
            EVENT + ".missing",
            "kernel or file system of instances_path has no fs-verity",
        )
    argument = _ENABLE.pack(_VERSION, _SHA256, BLOCK_SIZE, 0, 0, 0, 0, 0)
    try:
        fcntl.ioctl(fd, _ENABLE_VERITY, argument)
    except OSError as exc:
        if exc.errno == errno.ETXTBSY:
            raise Denied(
                EVENT + ".writer", "somebody has the image open for writing"
            ) from exc
        # somebody else's may have been first
        if exc.errno != errno.EEXIST:
            raise Denied(
                EVENT + ".failed",
                f"fs-verity cannot be enabled: {reason(exc)}",
            ) from exc
    digest = measure(fd)
    if digest is None:
        raise Denied(
            EVENT + ".failed", "fs-verity was enabled, and is not there"
        )
    return digest
