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
"""Ports that are plugged into a running guest; volumes: see :mod:`.volume`."""

from typing import Any

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
    """Refused where one reaches into a protected guest."""

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
