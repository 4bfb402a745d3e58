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
"""Rescue, and the power-off that it begins with."""

from typing import Any

from nova.compute import task_states
from nova.virt.libvirt.driver import LibvirtDriver

from mh_core.errors import Denied
from mh_nova.hook import faults, restore
from mh_nova.hook.base import TrustedDriver


class Rescue(LibvirtDriver, TrustedDriver):
    """Refused for protected instances."""

    def power_off(
        self, instance: Any, timeout: int = 0, retry_interval: int = 0
    ) -> None:
        """Stopping is always possible, but a rescue stops first.

        This is the earliest point of it where nova asks its driver.
        """
        rescuing = instance.task_state == task_states.RESCUING
        if rescuing and self._mh_protected(instance):
            restore.vm_state(instance)
            raise faults.refusal(
                Denied(
                    "hook.refused.rescue",
                    "rescue is not possible; the guest was not touched",
                )
            )
        super().power_off(instance, timeout, retry_interval)

    def rescue(
        self,
        context: Any,
        instance: Any,
        network_info: Any,
        image_meta: Any,
        rescue_password: Any,
        block_device_info: Any,
        share_info: Any,
    ) -> None:
        if self._mh_protected(instance):
            raise faults.refusal(
                Denied("hook.refused.rescue", "rescue is not possible")
            )
        super().rescue(
            context,
            instance,
            network_info,
            image_meta,
            rescue_password,
            block_device_info,
            share_info,
        )
