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
"""A guest's virtual TPM: the names that hook and agent give its secret.

The key that encrypts the TPM's state is one more overlay key of the
tenant's key server, of a disk that is none: it is called :data:`DISK`, and
in the place of a LUKS uuid, which a state file has not, stands the
instance's own.  So each host derives the same, and nothing is stored.
"""

import uuid

from mh_core.request import Disk

#: In a key request; no disk of nova's has this name.
DISK = "vtpm"
_NAMESPACE = uuid.UUID("8a5b4a0e-5b0c-4a4a-9d6e-0f1d7c2b9e31")


def secret_uuid(instance: str) -> str:
    """Uuid of the libvirt secret that opens the state of a guest's TPM."""
    return str(uuid.uuid5(_NAMESPACE, instance))


def wanted(instance: str) -> Disk:
    """What a key request names for an instance with a virtual TPM."""
    return Disk(DISK, instance)
