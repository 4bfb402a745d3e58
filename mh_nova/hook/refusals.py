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

"""Operations that would leak: refused, the instance unharmed."""

from typing import Any

from nova import exception
from nova.compute import task_states
from nova.network import model as network_model
from nova.virt import images
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_log import log as logging

from mh_core.errors import Denied
from mh_nova.hook import faults, properties, restore
from mh_nova.hook.base import TrustedDriver

LOG = logging.getLogger(__name__)
#: Operations that begin with a power-off, by the task they run under.
_BEGUN_BY_POWER_OFF = {
    task_states.SHELVING: "shelve",
    task_states.RESCUING: "rescue",
}
#: Ports whose traffic QEMU itself hands on. The others are devices of the
#: host's, or share the guest's memory with a switch.
_PLAIN_VNICS = (
    network_model.VNIC_TYPE_NORMAL,
    network_model.VNIC_TYPE_MACVTAP,
)
_SHARED = (
    network_model.VIF_TYPE_VHOSTUSER,
    network_model.VIF_TYPE_HOSTDEV,
    network_model.VIF_TYPE_IB_HOSTDEV,
)


class RefusingDriver(LibvirtDriver, TrustedDriver):
    """The half of the driver that only says no.

    Whether an instance is protected is asked first of all; the error is of
    the kind after which nova leaves the instance in the state it was in.
    """

    def cache_image(self, context: Any, image_id: str) -> bool:
        image = images.IMAGE_API.get(context, image_id)
        if properties.VERSION in (image.get("properties") or {}):
            raise faults.refusal(
                Denied(
                    "hook.refused.cache-image",
                    "a trusted image is fetched when it is launched",
                )
            )
        return bool(super().cache_image(context, image_id))

    def suspend(self, context: Any, instance: Any) -> None:
        if self._mh_protected(instance):
            raise faults.rollback(
                Denied(
                    "hook.refused.suspend",
                    "its memory would be saved in the clear",
                )
            )
        super().suspend(context, instance)

    def snapshot(
        self,
        context: Any,
        instance: Any,
        image_id: str,
        update_task_state: Any,
    ) -> None:
        if self._mh_protected(instance):
            error = faults.refusal(
                Denied(
                    "hook.refused.snapshot",
                    "a snapshot would be in the clear",
                )
            )
            faults.record(context, instance, "mh_snapshot", error)
            raise error
        super().snapshot(context, instance, image_id, update_task_state)

    def power_off(
        self, instance: Any, timeout: int = 0, retry_interval: int = 0
    ) -> None:
        """Stopping is always possible, but shelve and rescue stop first.

        This is the earliest point of both where nova asks its driver.
        """
        operation = _BEGUN_BY_POWER_OFF.get(instance.task_state)
        if operation and self._mh_protected(instance):
            if operation == "rescue":
                restore.vm_state(instance)
            else:
                restore.queued_image(instance)
            raise faults.refusal(
                Denied(
                    f"hook.refused.{operation}",
                    f"{operation} is not possible; the guest was not touched",
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

    def check_can_live_migrate_destination(
        self,
        context: Any,
        instance: Any,
        src_compute_info: Any,
        dst_compute_info: Any,
        block_migration: Any = False,
        disk_over_commit: Any = False,
    ) -> Any:
        if self._mh_protected(instance):
            raise faults.precheck(_no_live_migration())
        return super().check_can_live_migrate_destination(
            context,
            instance,
            src_compute_info,
            dst_compute_info,
            block_migration,
            disk_over_commit,
        )

    def check_can_live_migrate_source(
        self,
        context: Any,
        instance: Any,
        dest_check_data: Any,
        block_device_info: Any = None,
    ) -> Any:
        if self._mh_protected(instance):
            raise faults.precheck(_no_live_migration())
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
        if self._mh_protected(instance):
            raise faults.precheck(_no_live_migration())
        return super().pre_live_migration(
            context,
            instance,
            block_device_info,
            network_info,
            disk_info,
            migrate_data,
        )

    def live_migration(
        self,
        context: Any,
        instance: Any,
        dest: str,
        post_method: Any,
        recover_method: Any,
        block_migration: Any = False,
        migrate_data: Any = None,
    ) -> None:
        """The checks before are asked for by the destination, which may
        leave them out; this one it cannot.

        nova rolls back, as for a migration that failed: raising would leave
        the server in ERROR.
        """
        if self._mh_protected(instance):
            error = faults.refusal(_no_live_migration())
            LOG.warning("%s", error, instance=instance)
            faults.record(context, instance, "mh_live_migration", error)
            recover_method(context, instance, dest, migrate_data)
            return
        super().live_migration(
            context,
            instance,
            dest,
            post_method,
            recover_method,
            block_migration,
            migrate_data,
        )

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
            raise exception.InvalidVolume(
                reason=faults.text(
                    Denied(
                        "hook.refused.attach-volume",
                        "a volume would be written in the clear",
                    ),
                    faults.OPERATION,
                    faults.LIMIT - 20,
                )
            )
        super().attach_volume(
            context,
            connection_info,
            instance,
            mountpoint,
            disk_bus=disk_bus,
            device_type=device_type,
            encryption=encryption,
        )

    def attach_interface(
        self, context: Any, instance: Any, image_meta: Any, vif: Any
    ) -> None:
        """To a running guest: past the agent, which sees each start only."""
        plain = vif["vnic_type"] in _PLAIN_VNICS and vif["type"] not in _SHARED
        if not plain and self._mh_protected(instance):
            raise faults.refusal(
                Denied(
                    "hook.refused.attach-interface",
                    "a port that reaches into the guest's memory",
                )
            )
        super().attach_interface(context, instance, image_meta, vif)

    def volume_snapshot_create(
        self, context: Any, instance: Any, volume_id: str, create_info: Any
    ) -> None:
        if self._mh_protected(instance):
            raise faults.refusal(
                Denied(
                    "hook.refused.volume-snapshot",
                    "a snapshot would be in the clear",
                )
            )
        super().volume_snapshot_create(
            context, instance, volume_id, create_info
        )


def _no_live_migration() -> Denied:
    return Denied(
        "hook.refused.live-migration", "live migration is not possible yet"
    )
