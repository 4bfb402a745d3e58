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
"""Directories that the kernel encrypts (fscrypt, ext4 and others).

Only version 2 policies: their keys are found by an identifier derived from
the key itself, and adding one needs no privilege.

Source: Linux, ``include/uapi/linux/fscrypt.h`` and
``Documentation/filesystems/fscrypt.rst``.
"""

import fcntl
import os
import struct
from dataclasses import dataclass

from mh_core.errors import Denied
from mh_core.secret import Secret

EVENT = "agent.fscrypt"
#: Bytes of a key.
KEY_SIZE = 64
_READ, _WRITE = 2, 1
_V2 = 2
_AES_256_XTS, _AES_256_CTS, _ADIANTUM = 1, 4, 9
#: Of file contents; what is weaker or experimental is not on it.
_CONTENTS = (_AES_256_XTS, _ADIANTUM)
_PAD_32 = 3
_PRESENT = 2


def _ioctl(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("f") << 8 | number


# the size of FS_IOC_SET_ENCRYPTION_POLICY is that of the first version
_SET_POLICY = _ioctl(_READ, 19, 12)
_GET_POLICY = _ioctl(_READ | _WRITE, 22, 9)
_ADD_KEY = _ioctl(_READ | _WRITE, 23, 80)
_KEY_STATUS = _ioctl(_READ | _WRITE, 26, 128)


@dataclass(frozen=True)
class Policy:
    """
    :param identifier: of the key, 16 bytes.
    :param strong: contents are encrypted as we accept it.
    """

    identifier: bytes
    strong: bool


def policy(fd: int) -> Policy | None:
    """The version 2 policy of an open directory or file; None: there is
    none, or the file system has no encryption."""
    argument = bytearray(struct.pack("<Q", 24) + bytes(24))
    try:
        fcntl.ioctl(fd, _GET_POLICY, argument, True)
    except OSError:
        return None
    version, contents, _names = struct.unpack_from("<BBB", argument, 8)
    if version != _V2:
        return None
    return Policy(bytes(argument[16:32]), contents in _CONTENTS)


def usable(fd: int, identifier: bytes) -> bool:
    """Is the key there, so that files can be written and read?

    :param fd: anything open on the file system.
    """
    argument = bytearray(
        struct.pack("<II16s16x", _V2, 0, identifier) + bytes(88)
    )
    try:
        fcntl.ioctl(fd, _KEY_STATUS, argument, True)
    except OSError:
        return False
    return bool(struct.unpack_from("<I", argument, 64)[0] == _PRESENT)


def add_key(fd: int, key: Secret) -> bytes:
    """Give a file system a key; it is gone after the unmount.

    :returns: its identifier, 16 bytes.
    :raises Denied: ``agent.fscrypt.key``.
    """
    header = struct.pack("<II32sII32x", _V2, 0, b"", KEY_SIZE, 0)
    argument = bytearray(header + key.reveal())
    try:
        fcntl.ioctl(fd, _ADD_KEY, argument, True)
        return bytes(argument[8:24])
    except OSError as exc:
        raise Denied(
            EVENT + ".key",
            "the file system takes no encryption key: "
            + os.strerror(exc.errno or 0),
        ) from exc
    finally:
        argument[:] = bytes(len(argument))


def encrypt(fd: int, identifier: bytes) -> None:
    """Set our policy on an empty directory: AES-256-XTS, names AES-256-CTS.

    :raises Denied: ``agent.fscrypt.policy``.
    """
    argument = struct.pack(
        "<BBBB4s16s",
        _V2,
        _AES_256_XTS,
        _AES_256_CTS,
        _PAD_32,
        b"",
        identifier,
    )
    try:
        fcntl.ioctl(fd, _SET_POLICY, argument)
    except OSError as exc:
        raise Denied(
            EVENT + ".policy",
            "the directory takes no encryption policy: "
            + os.strerror(exc.errno or 0),
        ) from exc
