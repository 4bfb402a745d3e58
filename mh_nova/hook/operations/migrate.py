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
"""Cold migration and resize.

nova copies the disk, which is ciphertext, and starts it where it arrives,
where the agent asks for its keys afresh.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import nova.conf
from nova import exception, objects
from nova.compute import power_state, task_states, vm_states
from nova.virt.libvirt import utils as libvirt_utils
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_concurrency import processutils
from oslo_log import log as logging

from mh_core.errors import Denied, MHError
from mh_nova.hook import disks, faults, firmware, launch
from mh_nova.hook.agent_client import AgentClient
from mh_nova.hook.base import TrustedDriver
from mh_nova.hook.description import Description, carried, carry, uncarry
from mh_nova.hook.guard import TRAIT

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
EVENT = "hook.migrate"


class Migrate(LibvirtDriver, TrustedDriver):
    """Where a protected instance goes to is asked before it is stopped."""

    _mh_client: AgentClient
    _mh_launcher: launch.Launcher

    # Where it is

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
        """Refused while the guest still runs, it runs on.

        1. metadata and host agree that it is ours;
        2. the new flavor has the same virtual TPM;
        3. the destination offers itself for trusted instances.  That is the
           cloud's word, good for an early answer: what counts is whether the
           key is released there;
        4. nova stops the guest and copies the disk; what the destination's
           agent needs to know goes with nova's own list of disks.  Where it
           cannot be copied (``hook.migrate.copy``) the guest starts again.
        """
        described = None
        protected = self._mh_protected(instance)
        if protected:
            try:
                # 1: one that disagrees raises
                self._mh_decide(instance)
                # 2
                firmware.check_resize(instance, flavor)
                # 3
                self._mh_check_destination(context, instance)
            except MHError as error:
                raise faults.rollback(error) from error
            described = self._mh_describe(instance)
        # 4
        try:
            found = super().migrate_disk_and_power_off(
                context,
                instance,
                dest,
                flavor,
                network_info,
                block_device_info,
                timeout,
                retry_interval,
            )
        except (OSError, processutils.ProcessExecutionError) as error:
            if not protected:
                raise
            self._mh_stays(context, instance, network_info, block_device_info)
            raise faults.rollback(_not_copied(error)) from error
        return found if described is None else carry(found, described)

    def _mh_stays(
        self,
        context: Any,
        instance: Any,
        network_info: Any,
        block_device_info: Any,
    ) -> None:
        """nova has put its disk back; it would leave it off, in ERROR."""
        if instance.vm_state != vm_states.ACTIVE:
            return
        try:
            if self.get_info(instance).state == power_state.RUNNING:
                return
            self.power_on(context, instance, network_info, block_device_info)
        except (MHError, exception.NovaException) as error:
            LOG.error("It stays off: %s", error, instance=instance)

    def _mh_check_destination(self, context: Any, instance: Any) -> None:
        """:raises Denied: ``hook.migrate.destination``."""
        try:
            migration = objects.Migration.get_by_id(
                context, instance.migration_context.migration_id
            )
            node = objects.ComputeNode.get_by_host_and_nodename(
                context, migration.dest_compute, migration.dest_node
            )
            found = self.virtapi.reportclient.get_provider_traits(
                context, node.uuid
            )
        except (exception.NovaException, AttributeError) as exc:
            raise Denied(
                EVENT + ".destination",
                "it cannot be told whether the destination is trusted",
            ) from exc
        if TRAIT not in found.traits:
            raise Denied(
                EVENT + ".destination",
                "the destination does not offer itself for trusted instances",
            )

    def _mh_describe(self, instance: Any) -> Description | None:
        """None where the destination must do with the image service."""
        try:
            return self._mh_client.describe(instance.uuid)
        except MHError as error:
            LOG.warning(
                "The agent does not describe it: %s", error, instance=instance
            )
            return None

    def confirm_migration(
        self, context: Any, migration: Any, instance: Any, network_info: Any
    ) -> None:
        """It lives elsewhere from now on: this host forgets it."""
        # asked before the files go, which are part of the answer
        forget = instance.host != CONF.host and self._mh_protected(instance)
        super().confirm_migration(context, migration, instance, network_info)
        if forget:
            self._mh_forget(instance)

    def finish_revert_migration(
        self,
        context: Any,
        instance: Any,
        network_info: Any,
        migration: Any,
        block_device_info: Any = None,
        power_on: bool = True,
        share_info: Any = None,
    ) -> None:
        def finish() -> None:
            super(Migrate, self).finish_revert_migration(
                context,
                instance,
                network_info,
                migration,
                block_device_info,
                power_on,
                share_info=share_info,
            )

        if not self._mh_protected(instance):
            return finish()
        if instance.task_state == task_states.RESIZE_MIGRATING:
            self._mh_broke_off(instance, migration)
        with self._mh_off(context, instance):
            self._mh_decide(instance)
            with self._mh_launcher.come_back(instance):
                finish()

    def _mh_broke_off(self, instance: Any, migration: Any) -> None:
        """nova-compute ended while it copied the disk, and has begun anew:
        nova forgets what it had copied.

        Only once nova has set the disk itself aside: with a shared
        directory, what has its name then is the copy.
        """
        dest = migration.dest_host
        path = libvirt_utils.get_instance_path(instance)
        if (
            not dest
            or migration.dest_compute == CONF.host
            or not os.path.exists(path + "_resize")
        ):
            return
        try:
            self._remotefs.remove_dir(dest, path)
        except processutils.ProcessExecutionError as exc:
            LOG.warning(
                "Half a disk may be left on %s: %s",
                dest,
                exc,
                instance=instance,
            )

    # Where it goes to

    def finish_migration(
        self,
        context: Any,
        migration: Any,
        instance: Any,
        disk_info: str,
        network_info: Any,
        image_meta: Any,
        resize_instance: bool,
        allocations: dict[str, Any],
        block_device_info: dict[str, Any] | None = None,
        power_on: bool = True,
        share_info: Any = None,
    ) -> None:
        """The disk has arrived.

        1. metadata and host agree that it is ours;
        2. the agent asks for the keys, also where the guest is to stay off,
           looks at the disk, and finds that they open it;
        3. it becomes as large as the flavor says, and what other disks the
           flavor has now are made;
        4. it starts, through the gate.
        """
        disk_info, told = uncarry(disk_info)

        def finish() -> None:
            super(Migrate, self).finish_migration(
                context,
                migration,
                instance,
                disk_info,
                network_info,
                image_meta,
                resize_instance,
                allocations,
                block_device_info,
                power_on,
                share_info=share_info,
            )

        if not self._mh_protected(instance):
            return finish()
        source = migration.source_compute
        here = source == migration.dest_compute
        with self._mh_off(context, instance):
            # 1
            self._mh_decide(instance)
            self._mh_check_shape(instance, block_device_info, share_info)
            self._mh_require()
            described = carried(told)
            if described is not None and resize_instance:
                wanted = disks.wanted(instance, block_device_info)
                described = replace(
                    described, disks=disks.resized(described.disks, wanted)
                )
            # 2, 3, 4
            with self._mh_launcher.arrive(
                context,
                instance,
                "resize" if here else "migrate-in",
                described,
                source,
            ):
                finish()

    @contextlib.contextmanager
    def _mh_off(self, context: Any, instance: Any) -> Iterator[None]:
        """Where our side refuses, nova finishes all the same, guest off.

        The guest was stopped on its own host before.  With an error, nova
        would leave the server in ERROR, with its host changed and no way
        back that a tenant has; so it can be reverted, or started when the
        cause is gone.
        """
        try:
            yield
        except (MHError, exception.NovaException) as error:
            cause = error if isinstance(error, MHError) else error.__cause__
            if not isinstance(cause, MHError):
                raise
            refused = faults.refusal(cause, faults.START)
            LOG.error("%s", refused, instance=instance)
            faults.tell(instance, faults.text(cause, faults.START))
            faults.record(context, instance, "mh_finish_move", refused)


def _not_copied(error: Exception) -> Denied:
    """With the copying program's own last words."""
    said = str(getattr(error, "stderr", None) or error).split("\n")
    last = next((line for line in reversed(said) if line.strip()), "")
    return Denied(
        EVENT + ".copy", f"the disk could not be copied: {last[-120:]}"
    )
