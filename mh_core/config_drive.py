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
"""What a tenant pins of a config drive, and the header of a swap disk.

A config drive differs for each instance (uuid, host name, random seed), so
no digest of the whole can be listed beforehand. Listed is the digest of what
a guest obeys: user-data and SSH keys. A launch policy allows a config drive
where its ``config_drives`` has that digest, or :data:`ANY`.
"""

import hashlib
import struct
import uuid
from collections.abc import Iterable

from mh_core.encoding import labelled_digest
from mh_core.errors import InputError

#: In ``config_drives``: whatever the cloud writes may be attached.
ANY = labelled_digest("mh/config-drive/any/v1", []).hex()
#: The most bytes of user-data; nova keeps 64 KiB of base64.
MAX_USER_DATA = 65536

_PAGE = 4096
_SWAP_MAGIC = b"SWAPSPACE2"


def pinned_digest(user_data: bytes, keys: Iterable[str]) -> str:
    """Digest of what a guest obeys on a config drive.

    SHA-256 over the label ``mh/config-drive/v1``, the user-data and each SSH
    key, length-prefixed; keys without surrounding white space, sorted, each
    once.

    :param user_data: as the guest gets it; empty for none.
    :param keys: public keys in one-line form.
    :returns: 64 hex digits.
    """
    parts = sorted({key.strip().encode() for key in keys})
    return labelled_digest("mh/config-drive/v1", [user_data, *parts]).hex()


def user_data_digest(data: bytes) -> str:
    """SHA-256 (hex), as launch policies list user-data."""
    return hashlib.sha256(data).hexdigest()


def swap_header(size: int, swap_uuid: uuid.UUID) -> bytes:
    """The first page of a swap area, as mkswap(8) writes it.

    Source: Linux include/linux/swap.h, ``union swap_header``; pages of 4 KiB
    and the byte order of the only hosts there are, little-endian.

    :param size: bytes of the disk.
    :returns: 4096 bytes.
    :raises InputError: ``core.config-drive.swap``: too small for a swap.
    """
    pages = size // _PAGE
    if pages < 10 or pages >= 1 << 32:
        raise InputError(
            "core.config-drive.swap", "no swap disk has this size"
        )
    head = bytes(1024) + struct.pack("<III", 1, pages - 1, 0)
    head += swap_uuid.bytes
    return head.ljust(_PAGE - len(_SWAP_MAGIC), b"\0") + _SWAP_MAGIC
