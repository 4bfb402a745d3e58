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
"""UEFI without variables.

libvirt keeps them in a plain file, and they decide what boots. A protected
guest gets the firmware alone: it boots what lies at the default place of its
disk, as each time.
"""

from typing import Any

import nova.conf
from nova.virt.libvirt.driver import LibvirtDriver

from mh_nova.hook.base import TrustedDriver

CONF = nova.conf.CONF


class Firmware(LibvirtDriver, TrustedDriver):
    """One file, which the agent has on its list; libvirt chooses none."""

    def _configure_guest_by_virt_type(
        self,
        guest: Any,
        instance: Any,
        image_meta: Any,
        flavor: Any,
        old_guest: Any = None,
    ) -> None:
        super()._configure_guest_by_virt_type(
            guest, instance, image_meta, flavor, old_guest
        )
        if guest.os_firmware is None and guest.os_loader is None:
            return
        if not self._mh_protected(instance):
            return
        guest.os_firmware = guest.os_firmware_secure = None
        guest.os_loader = CONF.mh.uefi_firmware
        guest.os_loader_type = "pflash"
        guest.os_loader_readonly = True
        guest.os_loader_secure = False
        guest.os_loader_stateless = True
        guest.os_nvram = guest.os_nvram_template = None
