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
"""Volumes of a trusted instance: encrypted on this host, by the agent.

nova connects a volume and says where; QEMU opens what is there with a key
of the tenant's key server, which the agent asks for and defines.  What the
cloud itself would encrypt, share among servers, or hand to QEMU by network
is refused.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from nova import exception
from nova.compute import vm_states
from nova.virt import block_device as driver_block_device
from nova.virt import driver as virt_driver
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_log import log as logging

from mh_core import volume
from mh_core.errors import Denied, MHError
from mh_nova.hook import faults, wanted
from mh_nova.hook.agent_client import AgentClient
from mh_nova.hook.base import TrustedDriver
from mh_nova.hook.volume_client import VolumeClient
from mh_nova.hook.xml import GuestDisk

LOG = logging.getLogger(__name__)
EVENT = "hook.volume"


class _Plugging(threading.local):
    """Whose volume nova describes in this thread: it does not say.

    :ivar instance: uuid of one of ours, or empty.
    :ivar hot: it is plugged in just now, not at a start.
    """

    instance = ""
    hot = False


class Volume(LibvirtDriver, TrustedDriver):
    """By the agent's leave, at each attachment and at each start."""

    _mh_client: AgentClient
    _mh_plugging = _Plugging()

    @contextlib.contextmanager
    def _mh_plug(self, instance: Any, hot: bool) -> Iterator[None]:
        mark = self._mh_plugging
        mark.instance, mark.hot = instance.uuid, hot
        try:
            yield
        finally:
            mark.instance, mark.hot = "", False

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
            try:
                self._mh_agreed(instance)
                self._mh_require()
            except MHError as error:
                raise _invalid(error) from error
        return super().get_device_name_for_instance(
            instance, bdms, block_device_obj
        )

    def _mh_agreed(self, instance: Any) -> None:
        """:raises MHError: nova and this host do not say the same of it."""
        if not self._mh_decide(instance):
            raise Denied("hook.ours.disagree", "it cannot be told")

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
        """
        1. ours; disagreement refuses; this host is sound;
        2. a volume of a kind that can be encrypted here;
        3. nova connects it and describes the device, to which our
           encryption is added;
        4. the agent's leave (:meth:`_get_volume_config`);
        5. nova plugs it in;
        6. whatever happened, the agent is told, and takes the secret away.

        Refused, the volume is disconnected, and nova gives it back.
        """

        def attach() -> None:
            super(Volume, self).attach_volume(
                context,
                connection_info,
                instance,
                mountpoint,
                disk_bus=disk_bus,
                device_type=device_type,
                encryption=encryption,
            )

        if not self._mh_protected(instance):
            return attach()
        try:
            # 1
            self._mh_agreed(instance)
            self._mh_require()
            # 2
            wanted.check_volume(connection_info, encryption)
        except MHError as error:
            raise _invalid(error) from error
        done = False
        try:
            # 3, 4, 5
            with self._mh_plug(instance, hot=True):
                attach()
            done = True
        except MHError as error:
            # nova itself disconnects only where libvirt says no
            self._disconnect_volume(
                context, connection_info, instance, encryption=encryption
            )
            raise _invalid(error) from error
        finally:
            # 6
            self._mh_attached(instance, done)

    def _mh_attached(self, instance: Any, ok: bool) -> None:
        """The agent also drops its secrets by itself, a while later."""
        try:
            VolumeClient(self._mh_client).attached(instance.uuid, ok)
        except MHError as error:
            LOG.error(
                "The agent could not be told that the attachment is over: %s",
                error,
                instance=instance,
            )

    def _get_guest_storage_config(
        self,
        context: Any,
        instance: Any,
        image_meta: Any,
        disk_info: Any,
        rescue: Any,
        block_device_info: Any,
        flavor: Any,
        os_type: Any,
    ) -> Any:
        """At a start; the agent's leave is that of the whole domain.

        :raises MHError: as :meth:`_mh_decide`; ``hook.volume.*``.
        """

        def build() -> Any:
            return super(Volume, self)._get_guest_storage_config(
                context,
                instance,
                image_meta,
                disk_info,
                rescue,
                block_device_info,
                flavor,
                os_type,
            )

        found = virt_driver.block_device_info_get_mapping(block_device_info)
        if not found or not self._mh_decide(instance):
            return build()
        wanted.check_volumes(block_device_info)
        with self._mh_plug(instance, hot=False):
            return build()

    def _get_volume_config(self, connection_info: Any, disk_info: Any) -> Any:
        """:raises MHError: ``hook.volume.kind``; the agent's."""
        conf = super()._get_volume_config(connection_info, disk_info)
        mark = self._mh_plugging
        if not mark.instance:
            return conf
        found = driver_block_device.get_volume_id(connection_info)
        if (
            conf.source_type not in ("block", "file")
            or conf.driver_format != "raw"
            or conf.source_device != "disk"
            or not found
            or conf.serial != found
        ):
            raise Denied(
                EVENT + ".kind",
                "only a volume that is a device or a raw file on this host "
                "can be attached",
            )
        conf = GuestDisk.over(conf, volume.secret_uuid(found), None)
        if mark.hot:
            event = VolumeClient(self._mh_client).attach(
                mark.instance, conf.to_xml()
            )
            LOG.info("Volume %s is admitted [%s]", found, event)
        return conf

    def swap_volume(
        self,
        context: Any,
        old_connection_info: Any,
        new_connection_info: Any,
        instance: Any,
        mountpoint: str,
        resize_to: Any,
    ) -> None:
        """Cinder's move of a volume in use: QEMU would copy what it has
        decrypted, into the clear."""
        if self._mh_protected(instance):
            raise _invalid(
                Denied(
                    "hook.refused.swap-volume",
                    "a volume in use cannot be moved; detach it first",
                )
            )
        super().swap_volume(
            context,
            old_connection_info,
            new_connection_info,
            instance,
            mountpoint,
            resize_to,
        )

    def extend_volume(
        self,
        context: Any,
        connection_info: Any,
        instance: Any,
        requested_size: Any,
    ) -> None:
        """nova's, but what QEMU is told is less by the header."""
        if not self._mh_protected(instance):
            super().extend_volume(
                context, connection_info, instance, requested_size
            )
            return
        with self._mh_plug(instance, hot=False):
            super().extend_volume(
                context, connection_info, instance, requested_size
            )

    def _resize_attached_volume(
        self, new_size: int, block_device: Any, instance: Any
    ) -> None:
        if self._mh_plugging.instance == instance.uuid:
            new_size -= volume.HEADER_BYTES
        super()._resize_attached_volume(new_size, block_device, instance)


def _invalid(error: MHError) -> exception.InvalidVolume:
    """A user's mistake to nova: the server stays as it is."""
    return exception.InvalidVolume(
        reason=faults.text(error, faults.OPERATION, faults.LIMIT - 20)
    )
