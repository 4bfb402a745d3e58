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
"""A volume of a trusted instance: its key, and what lies on it.

A volume outlives the instance it is attached to.  So its key hangs on the
tenant's key and on the volume's own uuid, and on no instance: whoever runs
an image under the same key can read it, and nobody else.  In a key request
it is a disk ``volume-UUID`` of the purpose ``attach``, whose LUKS uuid is
the volume's own; that uuid stands in the volume's LUKS header as well, so a
volume in another's place is noticed, and would not open.
"""

import struct
import uuid

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from mh_core.errors import InputError
from mh_core.request import ATTACH as ATTACH
from mh_core.request import MAX_VOLUMES as MAX_VOLUMES
from mh_core.request import VOLUME, Disk

EVENT = "core.volume"
LABEL = b"mh/volume/v1"
CIPHER_MODE = "xts-plain64"
#: Bytes of the LUKS header of a volume; the guest sees what is behind it.
HEADER_BYTES = 4040 * 512
_NAMESPACE = uuid.UUID("d3c1e7b4-4f0e-4d58-9a53-0c7f2a5b6e90")


def volume_key(root: bytes, volume: uuid.UUID) -> bytes:
    """The key of one volume, of whichever instance.

    HKDF-Expand with SHA-256 over ``root``; info is the label
    ``mh/volume/v1`` and the volume's uuid (16 bytes), each after its length
    in 4 bytes, big-endian.

    :param root: the overlay root of the tenant's key, 32 bytes.
    :param volume: the cloud's uuid of the volume.
    :returns: 32 bytes.
    :raises InputError: ``core.volume.root``.
    """
    if len(root) != 32 or not any(root):
        raise InputError(
            EVENT + ".root", "an overlay root is 32 bytes, not all zero"
        )
    info = b"".join(
        struct.pack(">I", len(part)) + part for part in (LABEL, volume.bytes)
    )
    return HKDFExpand(hashes.SHA256(), 32, info).derive(root)


def secret_uuid(volume: str) -> str:
    """Uuid of the libvirt secret that opens a volume."""
    return str(uuid.uuid5(_NAMESPACE, volume))


def wanted(volume: str) -> Disk:
    """What a key request names for a volume."""
    return Disk(VOLUME + volume, volume)
