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
"""A virtual TPM whose state is the tenant's.

nova makes a passphrase in the cloud's key manager and defines it in libvirt
by itself. For a protected instance it does neither: the agent has the key
from the tenant's key server and defines it, for each start. All that nova
is told is the secret's uuid, which follows from the instance's.
"""

import os
from typing import Any

from nova.virt import hardware
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import utils as libvirt_utils
from nova.virt.libvirt.driver import LibvirtDriver

from mh_core import vtpm
from mh_nova.hook.base import TrustedDriver


class VirtualTpm(LibvirtDriver, TrustedDriver):
    """Without ``vtpm_secret_uuid`` in the metadata, which is how nova knows
    that the key manager holds something to delete."""

    def _get_or_create_secret_for_vtpm(
        self, context: Any, instance: Any
    ) -> tuple[Any, str | None]:
        """Nothing for nova to make or to undefine; asked at each start.

        :raises MHError: as :meth:`_mh_decide`.
        """
        if self._mh_decide(instance):
            _restore(instance)
            return None, None
        found: tuple[Any, str | None] = super()._get_or_create_secret_for_vtpm(
            context, instance
        )
        return found

    def _add_vtpm_device(
        self, guest: Any, flavor: Any, instance: Any, image_meta: Any
    ) -> None:
        found = hardware.get_vtpm_constraint(flavor, image_meta)
        if not found or not self._mh_protected(instance):
            super()._add_vtpm_device(guest, flavor, instance, image_meta)
            return
        guest.add_device(
            vconfig.LibvirtConfigGuestVTPM(
                found, vtpm.secret_uuid(instance.uuid)
            )
        )

    def _add_vtpm_secret_to_live_migrate_data(
        self, instance: Any, dest_check_data: Any
    ) -> None:
        """With ``hw:tpm_secret_security=host``, nova would send the secret
        from host to host. The destination's agent asks for its own."""
        found = hardware.get_vtpm_constraint(
            instance.flavor, instance.image_meta
        )
        if not found or not self._mh_protected(instance):
            super()._add_vtpm_secret_to_live_migrate_data(
                instance, dest_check_data
            )
            return
        dest_check_data.vtpm_secret_uuid = None
        dest_check_data.vtpm_secret_value = None


def _restore(instance: Any) -> None:
    """A state that arrived and was never put into its place.

    nova does that only after the disks are made, which is where a move is
    refused; once it is confirmed all the same, libvirt would make a new TPM
    at the next start, and the old one would be lost.
    """
    arrived = os.path.join(
        libvirt_utils.get_instance_path(instance), "swtpm", instance.uuid
    )
    place = os.path.join(libvirt_utils.VTPM_DIR, instance.uuid)
    if os.path.isdir(arrived) and not os.path.lexists(place):
        libvirt_utils.restore_vtpm_dir(arrived)
