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
"""Volumes of a guest that moves while it runs.

nova connects them at the destination, and writes the devices of that host
into the XML that goes there; QEMU has a volume open at both ends, and writes
to it at one.  The key is asked for by the destination's agent, about the
domain that libvirt is to start there, as at every start.
"""

from typing import Any

from nova import objects
from nova.virt import driver as virt_driver
from nova.virt.libvirt.driver import LibvirtDriver

from mh_core.errors import Denied, MHError
from mh_nova.hook import faults, wanted
from mh_nova.hook.base import TrustedDriver


class VolumeMigration(LibvirtDriver, TrustedDriver):
    """Within what :class:`.live_migration.LiveMigration` does."""

    def check_can_live_migrate_source(
        self,
        context: Any,
        instance: Any,
        dest_check_data: Any,
        block_device_info: Any = None,
    ) -> Any:
        """:raises MigrationPreCheckError: ``hook.volume.*``."""
        if self._mh_protected(instance):
            try:
                wanted.check_volumes(block_device_info)
            except MHError as error:
                raise faults.precheck(error) from error
        return super().check_can_live_migrate_source(
            context, instance, dest_check_data, block_device_info
        )

    def pre_live_migration(
        self,
        context: Any,
        instance: Any,
        block_device_info: Any,
        network_info: Any,
        disk_info: Any,
        migrate_data: Any,
    ) -> Any:
        """The destination; refused here, nova disconnects what it connected.

        1. no volume that the cloud encrypts, or that several servers share;
        2. nova connects them;
        3. each is of a kind that QEMU here can be given with our encryption,
           as the source will describe it.

        :raises MHError: ``hook.volume.*``.
        """
        ours = self._mh_protected(instance)
        if ours:
            # 1
            wanted.check_volumes(block_device_info)
        # 2
        data = super().pre_live_migration(
            context,
            instance,
            block_device_info,
            network_info,
            disk_info,
            migrate_data,
        )
        # 3
        found = virt_driver.block_device_info_get_mapping(block_device_info)
        if ours and found:
            if len(data.bdms) != len(found):
                # without a serial, the source would send its own device
                raise Denied("hook.volume.kind", "a volume without a name")
            with self._mh_plug(instance, hot=False):
                for one in data.bdms:
                    self._get_volume_config(
                        one.connection_info, one.as_disk_info()
                    )
        return data

    def _live_migration_operation(
        self,
        context: Any,
        instance: Any,
        dest: str,
        block_migration: Any,
        migrate_data: Any,
        guest: Any,
        device_names: Any,
    ) -> None:
        """The source; nova describes the destination's devices here, in a
        thread of its own.

        :raises NovaException: ``hook.volume.kind``.
        """

        def operate() -> None:
            super(VolumeMigration, self)._live_migration_operation(
                context,
                instance,
                dest,
                block_migration,
                migrate_data,
                guest,
                device_names,
            )

        if not self._mh_protected(instance):
            return operate()
        try:
            with self._mh_plug(instance, hot=False):
                operate()
        except MHError as error:
            raise faults.refusal(error) from error

    def _mh_volumes_of(self, context: Any, instance: Any) -> dict[str, Any]:
        """nova's record of what is attached, for a host on which the guest
        is not, or not any more.

        A volume that is still the instance's is nobody else's, so it may be
        disconnected there; of one that was detached since, nothing is known.

        :raises NovaException: it cannot be told.
        """
        if instance.deleted:
            return {}
        bdms = objects.BlockDeviceMappingList.get_by_instance_uuid(
            context, instance.uuid
        )
        found: dict[str, Any] = virt_driver.get_block_device_info(
            instance, [bdm for bdm in bdms if not bdm.deleted]
        )
        return found
