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
"""Moving a running guest.

The source's agent has the last word before anything leaves
(:meth:`LiveMigration.live_migration`), the destination's before anything is
started, asked by libvirt itself (:mod:`mh_nova.cmd.libvirt_hook`).  What is
checked before that only tells the user sooner.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import nova.conf
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_log import log as logging

from mh_core.errors import Denied, MHError
from mh_nova.hook import disks, faults
from mh_nova.hook.base import TrustedDriver
from mh_nova.hook.departure import ACTION, Departure
from mh_nova.hook.description import carried, carry, uncarry
from mh_nova.hook.pinned import PinnedDomain, require_tls, shared

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
DISKS = "hook.refused.migration-disks"


class LiveMigration(LibvirtDriver, TrustedDriver):
    """Blocks and memory over TLS, to an appraised host, each disk under a
    key of its own there."""

    def __init__(self, virtapi: Any, read_only: bool = False) -> None:
        super().__init__(virtapi, read_only)
        self._mh_departures: dict[str, Departure] = {}
        self._mh_departures_lock = threading.Lock()

    # Asked for by the conductor, on both ends

    def check_can_live_migrate_destination(
        self,
        context: Any,
        instance: Any,
        src_compute_info: Any,
        dst_compute_info: Any,
        block_migration: Any = False,
        disk_over_commit: Any = False,
    ) -> Any:
        """The source is told who this is, in a member that nova sets only
        later, for its word to the key server; nothing else hangs on it."""
        ours = self._mh_can_migrate(instance)
        data = super().check_can_live_migrate_destination(
            context,
            instance,
            src_compute_info,
            dst_compute_info,
            block_migration,
            disk_over_commit,
        )
        if ours:
            data.target_connect_addr = CONF.host
        return data

    def check_can_live_migrate_source(
        self,
        context: Any,
        instance: Any,
        dest_check_data: Any,
        block_device_info: Any = None,
    ) -> Any:
        ours = self._mh_can_migrate(instance)
        if ours:
            self._mh_movable(instance)
        data = super().check_can_live_migrate_source(
            context, instance, dest_check_data, block_device_info
        )
        if ours:
            self._mh_offer(instance, data)
        return data

    def _mh_offer(self, instance: Any, data: Any) -> None:
        """After every other check, and before the destination asks for the
        keys: it may hold a second lease.

        :raises MigrationPreCheckError: the instance stays as it is.
        """
        try:
            if not data.block_migration:
                raise shared()
            to = ""
            if data.obj_attr_is_set("target_connect_addr"):
                to = data.target_connect_addr or ""
            self._mh_client.migrate_offer(instance.uuid, to)
        except MHError as error:
            raise faults.precheck(error) from error

    def _mh_can_migrate(self, instance: Any) -> bool:
        """Ours and movable (True), or not ours.

        :raises MigrationPreCheckError: the instance stays as it is.
        """
        try:
            if not self._mh_decide(instance):
                return False
            require_tls()
            self._mh_require()
            self._mh_client.migration()
        except MHError as error:
            raise faults.precheck(error) from error
        return True

    def _mh_movable(self, instance: Any) -> None:
        """:raises MigrationPreCheckError: ``hook.refused.migration-disks``."""
        try:
            found = self._mh_client.describe(instance.uuid)
            if disks.ROOT not in dict(found.disks):
                raise Denied(DISKS, "only a guest with a disk can move")
        except MHError as error:
            raise faults.precheck(error) from error

    def get_instance_disk_info(
        self, instance: Any, block_device_info: Any = None
    ) -> str:
        """What nova sends to the destination: with it goes whose key the
        disk of an unshelved instance has."""
        found = str(
            super().get_instance_disk_info(instance, block_device_info)
        )
        if not self._mh_protected(instance):
            return found
        try:
            described = self._mh_client.describe(instance.uuid)
        except MHError as error:
            raise faults.precheck(error) from error
        return found if described.based else carry(found, described)

    # The destination

    def pre_live_migration(
        self,
        context: Any,
        instance: Any,
        block_device_info: Any,
        network_info: Any,
        disk_info: Any,
        migrate_data: Any,
    ) -> Any:
        """The disks are made here, with keys of their own.

        1. ours; TLS is on; this host is sound and has a certificate;
        2. the blocks come over the wire, nothing is shared;
        3. a config drive, which is only read, is copied; the agent asks for
           the keys while the base is fetched, measures, finds that the
           drive opens, and makes the other disks as at a launch;
        4. no secret is in libvirt yet: that waits for libvirt's own
           question about the incoming guest.
        """

        def prepare() -> Any:
            return super(LiveMigration, self).pre_live_migration(
                context,
                instance,
                block_device_info,
                network_info,
                disk_info,
                migrate_data,
            )

        if not self._mh_can_migrate(instance):
            return prepare()
        done = False
        try:
            if (
                not migrate_data.block_migration
                or migrate_data.is_shared_block_storage
                or migrate_data.is_shared_instance_path
            ):
                raise shared()
            self._mh_check_shape(instance, block_device_info)
            more, alone = disks.moving(disk_info)
            disk_info, told = uncarry(disk_info or "[]")
            if alone != (told is not None):
                raise Denied(DISKS, "it cannot be told whether it has a base")
            with self._mh_launcher.coming_in(
                context, instance, more, carried(told)
            ):
                result = prepare()
            done = True
        except MHError as error:
            raise faults.precheck(error) from error
        finally:
            if not done:
                self._mh_forget(instance)
        return result

    def post_live_migration_at_destination(
        self,
        context: Any,
        instance: Any,
        network_info: Any,
        block_migration: bool = False,
        block_device_info: Any = None,
    ) -> None:
        if self._mh_protected(instance):
            self._mh_started(instance, True)
        super().post_live_migration_at_destination(
            context,
            instance,
            network_info,
            block_migration,
            block_device_info,
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
        """Secrets first; what nova makes of its own part, the record goes,
        and with it every key request under way."""
        ours = self._mh_protected(instance)
        if ours:
            self._mh_started(instance, False)
        try:
            super().rollback_live_migration_at_destination(
                context,
                instance,
                network_info,
                block_device_info,
                destroy_disks,
                migrate_data,
            )
        finally:
            if ours:
                self._mh_forget(instance)

    # The source

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
        """The gate: nothing has left this host before.

        1. ours; disagreement refuses;
        2. TLS is on, and the disks' blocks are moved with the guest;
        3. the agent's leave: the attestation server has just vouched for
           the destination, and names the TLS key it holds;
        4. nova migrates, to that key only (:class:`PinnedDomain`).

        Where it is refused, nova rolls back as after a migration that
        failed: raising would leave the server in ERROR.
        """
        departure = None
        try:
            if self._mh_decide(instance):
                require_tls()
                if not migrate_data.block_migration:
                    raise shared()
                leave = self._mh_client.migrate_out(instance.uuid, dest)
                LOG.info("May leave [%s]", leave.event, instance=instance)
                departure = Departure(
                    self, instance, leave, post_method, recover_method
                )
                post_method = departure.post
                recover_method = departure.recover
        except MHError as exc:
            error = faults.refusal(exc)
            LOG.warning("%s", error, instance=instance)
            faults.record(context, instance, ACTION, error)
            recover_method(context, instance, dest, migrate_data)
            return
        with self._mh_departing(instance, departure):
            super().live_migration(
                context,
                instance,
                dest,
                post_method,
                recover_method,
                block_migration,
                migrate_data,
            )

    def rollback_live_migration_at_source(
        self, context: Any, instance: Any, migrate_data: Any
    ) -> None:
        if self._mh_protected(instance):
            self._mh_lease(
                instance,
                lambda: self._mh_client.migrate_offer(instance.uuid, ""),
            )
        super().rollback_live_migration_at_source(
            context, instance, migrate_data
        )

    def post_live_migration_at_source(
        self, context: Any, instance: Any, network_info: Any
    ) -> None:
        if self._mh_protected(instance):
            self._mh_lease(
                instance,
                lambda: self._mh_client.migrate_left(instance.uuid),
            )
        super().post_live_migration_at_source(context, instance, network_info)

    @staticmethod
    def _mh_lease(instance: Any, tell: Callable[[], None]) -> None:
        """The key server ends the lease that is too many by itself, within
        the hour."""
        try:
            tell()
        except MHError as error:
            LOG.warning(
                "The key server could not be told of the move: %s",
                error,
                instance=instance,
            )

    @contextlib.contextmanager
    def _mh_departing(
        self, instance: Any, departure: Departure | None
    ) -> Iterator[None]:
        if departure is None:
            yield
            return
        with self._mh_departures_lock:
            self._mh_departures[instance.uuid] = departure
        try:
            yield
        finally:
            with self._mh_departures_lock:
                self._mh_departures.pop(instance.uuid, None)

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
        """nova's call of libvirt; in a thread of its own.

        :raises NovaException: ``hook.refused.migration-gate``: nobody asked
            the agent.
        """
        with self._mh_departures_lock:
            departure = self._mh_departures.get(instance.uuid)
        leave = None if departure is None else departure.take()
        calling: Any = contextlib.nullcontext()
        if departure is not None and leave is not None:
            guest = libvirt_guest.Guest(PinnedDomain(guest._domain, leave))
            calling = departure.calling()
        elif departure is not None or self._mh_protected(instance):
            raise faults.refusal(
                Denied(
                    "hook.refused.migration-gate",
                    "the agent has not allowed this migration",
                )
            )
        with calling:
            super()._live_migration_operation(
                context,
                instance,
                dest,
                block_migration,
                migrate_data,
                guest,
                device_names,
            )
