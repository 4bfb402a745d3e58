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
"""What a live migration leaves where nobody was there for its end.

nova's roll-back is the source's work: a nova-compute that died there does
not tell the destination, which keeps a directory, a record of the agent's
and a lease, and refuses the next try.  And where the guest had moved by
then, the source would take it for its own, not found, and start it again.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import libvirt
import nova.conf
import nova.context
from nova import exception, objects
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_concurrency import lockutils
from oslo_log import log as logging
from oslo_messaging import (  # type: ignore[import-untyped]
    MessagingException,
)

from mh_core.errors import Denied, MHError
from mh_nova.hook import disks, ours
from mh_nova.hook.agent_client import AgentClient
from mh_nova.hook.agent_migration import Unfinished
from mh_nova.hook.base import TrustedDriver
from mh_nova.hook.launch import Launcher

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
_OFF = (exception.NovaException, MessagingException)


class Incoming(LibvirtDriver, TrustedDriver):
    """Ends what is over; beside and after :class:`LiveMigration`."""

    _mh_client: AgentClient
    _mh_launcher: Launcher

    # The destination

    def get_available_resource(self, nodename: str) -> dict[str, Any]:
        """Asked for every minute, and at the start of nova-compute."""
        self._mh_end_all()
        found: dict[str, Any] = super().get_available_resource(nodename)
        return found

    def pre_live_migration(
        self,
        context: Any,
        instance: Any,
        block_device_info: Any,
        network_info: Any,
        disk_info: Any,
        migrate_data: Any,
    ) -> Any:
        """One at a time for an instance: what an earlier try left is gone,
        and a roll-back waits for what it is to roll back."""
        with _turn(instance.uuid):
            if self._mh_protected(instance):
                if instance.uuid in self._mh_unfinished().incoming:
                    self._mh_roll_back(context, instance)
            return super().pre_live_migration(
                context,
                instance,
                block_device_info,
                network_info,
                disk_info,
                migrate_data,
            )

    def _create_images_and_backing(
        self,
        context: Any,
        instance: Any,
        instance_dir: str,
        disk_info: Any,
        fallback_from_host: Any = None,
    ) -> None:
        """The agent makes all disks with the root disk; nova would make in
        the clear whatever it does not find.  Also called at a hard reboot.

        :raises Denied: ``hook.image.overlay``,
            ``hook.migration.config-drive``.
        """
        own = self._mh_protected(instance)
        if own:
            self._mh_launcher.came_in(context, instance, instance_dir)

        def made_by_nova(disk: Any) -> bool:
            return not own or os.path.basename(disk["path"]) == disks.ROOT

        super()._create_images_and_backing(
            context,
            instance,
            instance_dir,
            [disk for disk in disk_info or [] if made_by_nova(disk)],
            fallback_from_host,
        )
        for disk in disk_info or []:
            name = os.path.basename(disk["path"])
            found = ours.header(os.path.join(instance_dir, name))
            if own and found is not ours.Header.ENCRYPTED:
                raise Denied(
                    "hook.image.overlay",
                    f"the agent left no encrypted disk {name!r}",
                )

    def rollback_live_migration_at_destination(
        self,
        context: Any,
        instance: Any,
        network_info: Any,
        block_device_info: Any,
        destroy_disks: bool = True,
        migrate_data: Any = None,
    ) -> None:
        with _turn(instance.uuid):
            super().rollback_live_migration_at_destination(
                context,
                instance,
                network_info,
                block_device_info,
                destroy_disks,
                migrate_data,
            )

    def _mh_unfinished(self) -> Unfinished:
        try:
            return self._mh_client.unfinished()
        except MHError as error:
            LOG.debug("Agent not asked what is unfinished: %s", error)
            return Unfinished()

    def _mh_end_all(self) -> None:
        found = self._mh_unfinished()
        for uuids, end in (
            (found.incoming, self._mh_end),
            (found.offered, self._mh_take_back),
        ):
            for uuid in uuids:
                # what was deleted meanwhile, too
                context = nova.context.get_admin_context(read_deleted="yes")
                with _turn(uuid):
                    try:
                        end(
                            context,
                            objects.Instance.get_by_uuid(context, uuid),
                        )
                    except _OFF as error:
                        LOG.warning("%s is unfinished: %s", uuid, error)

    def _mh_take_back(self, _context: Any, instance: Any) -> None:
        """The destination's lease, where a migration has ended and nobody
        could say so: the key server was away, or nova did not ask."""
        if instance.task_state is not None or instance.host != CONF.host:
            return
        try:
            self._mh_client.migrate_offer(instance.uuid, "")
        except MHError as error:
            LOG.warning("A lease stays: %s", error, instance=instance)

    def _mh_end(self, context: Any, instance: Any) -> None:
        """Under way, arrived, or to be rolled back?  nova's record of the
        instance says; what runs here is never ended.

        :raises NovaException: it cannot be told, or not be done.
        """
        if not instance.deleted:
            if instance.task_state is not None:
                return
            if instance.host == CONF.host:
                LOG.info("It has arrived", instance=instance)
                self._mh_started(instance, True)
                return
        self._mh_roll_back(context, instance)

    def _mh_roll_back(self, context: Any, instance: Any) -> None:
        if self._mh_active(instance):
            LOG.error(
                "It runs here, and nova holds it to be on %s",
                instance.host,
                instance=instance,
            )
            return
        LOG.warning(
            "Its live migration is over: what was made here goes",
            instance=instance,
        )
        super().rollback_live_migration_at_destination(
            context,
            instance,
            instance.get_network_info(),
            self._mh_volumes_of(context, instance),
        )

    def _mh_active(self, instance: Any) -> bool:
        """:raises NovaException: libvirt does not answer."""
        try:
            return bool(self._host.get_guest(instance).is_active())
        except exception.InstanceNotFound:
            return False
        except libvirt.libvirtError as error:
            raise exception.InternalError(str(error)) from error

    # The source

    def check_can_live_migrate_source(
        self,
        context: Any,
        instance: Any,
        dest_check_data: Any,
        block_device_info: Any = None,
    ) -> Any:
        """It offers a lease, which is not that of the last try."""
        with _turn(instance.uuid):
            return super().check_can_live_migrate_source(
                context, instance, dest_check_data, block_device_info
            )

    def live_migration_abort(self, instance: Any) -> None:
        """Also asked for by a nova-compute that starts, about migrations
        that it had not seen the end of."""
        try:
            super().live_migration_abort(instance)
        except exception.InstanceNotFound:
            watched = instance.uuid in self.active_migrations
            if watched or not self._mh_protected(instance):
                raise
            self._mh_moved(instance)

    def _mh_moved(self, instance: Any) -> None:
        """The guest has moved, and nobody was there to say so.

        1. nova's record names the destination of a migration that runs;
        2. libvirt there says that the guest runs, as libvirt here said that
           it does not know it;
        3. the instance is the destination's; nova, which called, saves that;
        4. what is here goes, as after every migration.

        :raises NovaException: nothing has changed.
        """
        context = nova.context.get_admin_context()
        # 1
        migration = objects.Migration.get_by_instance_and_status(
            context, instance.uuid, "running"
        )
        dest = migration.dest_compute
        nodes = objects.ComputeNodeList.get_all_by_host(context, dest)
        # 2
        if not self._mh_runs_at(dest, instance.uuid):
            raise exception.InstanceNotFound(instance_id=instance.uuid)
        volumes = self._mh_volumes_of(context, instance)
        LOG.warning("It has moved to %s", dest, instance=instance)
        # 3
        instance.host = dest
        instance.node = nodes[0].hypervisor_hostname
        instance.compute_id = nodes[0].id
        instance.progress = 0
        # 4
        network = instance.get_network_info()
        self.post_live_migration_at_source(context, instance, network)
        self.cleanup(context, instance, network, volumes)

    def _mh_runs_at(self, dest: str, uuid: str) -> bool:
        """In doubt no: its disk here is kept."""
        try:
            connection = libvirt.openReadOnly(self._live_migration_uri(dest))
            try:
                state, _ = connection.lookupByUUIDString(uuid).state()
            finally:
                connection.close()
        except libvirt.libvirtError as error:
            LOG.warning("libvirt of %s was asked: %s", dest, error)
            return False
        return bool(state == libvirt.VIR_DOMAIN_RUNNING)

    def resume_state_on_host_boot(
        self,
        context: Any,
        instance: Any,
        network_info: Any,
        share_info: Any,
        block_device_info: Any = None,
    ) -> None:
        """Not what has just been found to have moved."""
        if instance.host != CONF.host and self._mh_protected(instance):
            return
        super().resume_state_on_host_boot(
            context, instance, network_info, share_info, block_device_info
        )


@contextlib.contextmanager
def _turn(instance: str) -> Iterator[None]:
    with lockutils.lock(f"mh-incoming-{instance}"):
        yield
