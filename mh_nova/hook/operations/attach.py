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
"""What is plugged into a running guest."""

from typing import Any

from nova import exception
from nova.compute import vm_states
from nova.network import model as network_model
from nova.virt.libvirt.driver import LibvirtDriver

from mh_core.errors import Denied, MHError
from mh_nova.hook import faults
from mh_nova.hook.base import TrustedDriver

_PLAIN_VNICS = (
    network_model.VNIC_TYPE_NORMAL,
    network_model.VNIC_TYPE_MACVTAP,
)
_SHARED = (
    network_model.VIF_TYPE_VHOSTUSER,
    network_model.VIF_TYPE_HOSTDEV,
    network_model.VIF_TYPE_IB_HOSTDEV,
)


class Attach(LibvirtDriver, TrustedDriver):
    """Refused for protected instances."""

    def attach_volume(
        self,
        context: Any,
        connection_info: Any,
        instance: Any,
        mountpoint: str,
        disk_bus: Any = None,
        device_type: Any = None,
        encryption: Any = None,
    ) -> None:
        if self._mh_protected(instance):
            raise _no_volume()
        super().attach_volume(
            context,
            connection_info,
            instance,
            mountpoint,
            disk_bus=disk_bus,
            device_type=device_type,
            encryption=encryption,
        )

    def get_device_name_for_instance(
        self, instance: Any, bdms: Any, block_device_obj: Any
    ) -> Any:
        """What nova's API waits for before it tells Cinder of a volume: the
        user gets the reason as the answer, and nothing was begun."""
        if (
            block_device_obj.is_volume
            and instance.vm_state != vm_states.BUILDING
            and self._mh_protected(instance)
        ):
            raise _no_volume()
        return super().get_device_name_for_instance(
            instance, bdms, block_device_obj
        )

    def attach_interface(
        self, context: Any, instance: Any, image_meta: Any, vif: Any
    ) -> None:
        """To a running guest: past the agent, which sees each start only."""
        plain = vif["vnic_type"] in _PLAIN_VNICS and vif["type"] not in _SHARED
        try:
            ours = self._mh_decide(instance)
        except MHError as error:
            raise faults.refusal(error) from error
        if not plain and ours:
            raise faults.refusal(
                Denied(
                    "hook.refused.attach-interface",
                    "a port that reaches into the guest's memory",
                )
            )
        super().attach_interface(context, instance, image_meta, vif)


def _no_volume() -> exception.InvalidVolume:
    return exception.InvalidVolume(
        reason=faults.text(
            Denied(
                "hook.refused.attach-volume",
                "a volume would be written in the clear",
            ),
            faults.OPERATION,
            faults.LIMIT - 20,
        )
    )
