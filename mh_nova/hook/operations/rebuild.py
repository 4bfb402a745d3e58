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
"""A rebuild, or an evacuation to here, before anything is destroyed."""

from typing import Any

import libvirt
from nova import exception
from nova.compute import task_states
from nova.virt.libvirt.driver import LibvirtDriver

from mh_core.errors import MHError
from mh_nova.hook import disks, faults, rebuilt
from mh_nova.hook.base import TrustedDriver
from mh_nova.hook.launch import Launcher
from mh_nova.hook.ours import Ours


class Rebuild(LibvirtDriver, TrustedDriver):
    """A deletion and a launch, of which the launch is judged first."""

    _mh_check_shape: Any
    _mh_client: Any
    _mh_launcher: Launcher
    _mh_ours: Ours

    def rebuild(
        self,
        context: Any,
        instance: Any,
        image_meta: Any,
        injected_files: Any,
        admin_password: Any,
        allocations: Any,
        bdms: Any,
        detach_block_devices: Any,
        attach_block_devices: Any,
        network_info: Any = None,
        evacuate: bool = False,
        block_device_info: Any = None,
        preserve_ephemeral: bool = False,
        accel_uuids: Any = None,
        reimage_boot_volume: bool = False,
    ) -> None:
        """Refused here, or left to nova: its driver has no way of its own,
        and the manager destroys and spawns.

        1. the same image as before must say what it said
           (``hook.ours.turned``);
        2. an image that is not ours: nothing to ask;
        3. the new launch's shape, and this host's state;
        4. the key server's word for this launch, by the agent, which keeps
           it for ``spawn``.
        """
        if self._mh_protected(instance):
            try:
                # 1
                if not evacuate:
                    self._mh_rebuild(instance)
                # 2
                if self._mh_ours.claimed(instance):
                    # 3
                    self._mh_check_shape(
                        instance, block_device_info, files=injected_files
                    )
                    self._mh_require()
                    # 4
                    self._mh_launcher.ask_launch(
                        context,
                        instance,
                        disks.wanted(instance, block_device_info),
                    )
            except MHError as error:
                if evacuate:
                    raise faults.rollback(error) from error
                raise self._mh_kept(context, instance, error) from error
        super().rebuild(
            context,
            instance,
            image_meta,
            injected_files,
            admin_password,
            allocations,
            bdms,
            detach_block_devices,
            attach_block_devices,
            network_info=network_info,
            evacuate=evacuate,
            block_device_info=block_device_info,
            preserve_ephemeral=preserve_ephemeral,
            accel_uuids=accel_uuids,
            reimage_boot_volume=reimage_boot_volume,
        )

    def _mh_kept(
        self, context: Any, instance: Any, error: MHError
    ) -> exception.NovaException:
        """The instance as it was, with the reason where its owner looks."""
        said = faults.untouched(error)
        try:
            known = self._mh_client.known(instance.uuid)
        except MHError:
            known = None
        try:
            domain = self._host.get_guest(instance).get_xml_desc()
        except (exception.NovaException, libvirt.libvirtError):
            domain = ""
        rebuilt.put_back(context, instance, domain, known)
        faults.record(context, instance, "mh_rebuild", said)
        faults.tell(instance, str(said))
        instance.task_state = None
        instance.save(expected_task_state=[task_states.REBUILDING])
        return said
