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
"""Moving a running guest."""

from typing import Any

from nova.virt.libvirt.driver import LibvirtDriver
from oslo_log import log as logging

from mh_core.errors import Denied
from mh_nova.hook import faults
from mh_nova.hook.base import TrustedDriver

LOG = logging.getLogger(__name__)


class LiveMigration(LibvirtDriver, TrustedDriver):
    """Refused for protected instances."""

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


def _no_live_migration() -> Denied:
    return Denied(
        "hook.refused.live-migration", "live migration is not possible yet"
    )
