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

import uuid

from mh_core.image.overlay import expand
from mh_core.request import ATTACH as ATTACH
from mh_core.request import MAX_VOLUMES as MAX_VOLUMES
from mh_core.request import VOLUME, Disk

LABEL = b"mh/volume/v1"
CIPHER_MODE = "xts-plain64"
#: Bytes of the LUKS header of a volume; the guest sees what is behind it.
HEADER_BYTES = 4040 * 512
_NAMESPACE = uuid.UUID("d3c1e7b4-4f0e-4d58-9a53-0c7f2a5b6e90")


def volume_key(root: bytes, volume: uuid.UUID) -> bytes:
    """The key of one volume, of whichever instance.

    :func:`mh_core.image.overlay.expand` with the label ``mh/volume/v1`` and
    the volume's uuid (16 bytes).

    :param root: the overlay root of the tenant's key, 32 bytes.
    :param volume: the cloud's uuid of the volume.
    :returns: 32 bytes.
    :raises InputError: ``core.image.overlay.root``.
    """
    return expand(root, LABEL, volume.bytes)


def secret_uuid(volume: str) -> str:
    """Uuid of the libvirt secret that opens a volume."""
    return str(uuid.uuid5(_NAMESPACE, volume))


def wanted(volume: str) -> Disk:
    """What a key request names for a volume."""
    return Disk(VOLUME + volume, volume)
