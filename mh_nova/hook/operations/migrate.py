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
"""Cold migration and resize."""

from typing import Any

from nova.virt.libvirt.driver import LibvirtDriver

from mh_core.errors import Denied
from mh_nova.hook import faults
from mh_nova.hook.base import TrustedDriver


class Migrate(LibvirtDriver, TrustedDriver):
    """Refused for protected instances."""

    def migrate_disk_and_power_off(
        self,
        context: Any,
        instance: Any,
        dest: str,
        flavor: Any,
        network_info: Any,
        block_device_info: Any = None,
        timeout: int = 0,
        retry_interval: int = 0,
    ) -> Any:
        if self._mh_protected(instance):
            raise faults.rollback(
                Denied(
                    "hook.refused.migrate",
                    "it can be neither resized nor migrated yet",
                )
            )
        return super().migrate_disk_and_power_off(
            context,
            instance,
            dest,
            flavor,
            network_info,
            block_device_info,
            timeout,
            retry_interval,
        )
