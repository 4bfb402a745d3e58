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

"""After a death: of a nova-compute before this one, of the agent, of QEMU."""

import functools
import os
import shutil
import uuid
from typing import Any

import nova.conf
from nova import exception
from nova.compute import power_state, task_states, vm_states
from nova.virt.libvirt import utils as libvirt_utils
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_messaging import (  # type: ignore[import-untyped]
    MessagingException,
)

from mh_core.errors import Denied
from mh_nova.hook import placement, properties, recover
from mh_nova.hook.base import TrustedDriver

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
_ENDED = (power_state.SHUTDOWN, power_state.CRASHED)


class Recover(LibvirtDriver, TrustedDriver):
    """Nothing stays where it was left, and the tenant is told why."""

    _mh_forgetting: recover.Forgetting
    _mh_begun: recover.Begun

    def process_instances_at_startup(
        self, context: Any, instances: Any
    ) -> Any:
        """Before nova looks at each instance of its host.

        One that is about to leave is not among them: nova would take away
        the task that the move, of which it is yet to read, goes by.
        """
        instances = super().process_instances_at_startup(context, instances)
        leaving = set()
        for instance in instances:
            if not properties.claimed(instance.system_metadata):
                continue
            try:
                task = instance.task_state
                self._mh_back_from_move(context, instance)
                recover.broken_off(
                    context,
                    instance,
                    functools.partial(recover.runs, self, instance),
                )
                self._mh_stays_here(context, instance, task)
                if recover.about_to_leave(context, instance):
                    LOG.info("It is about to leave", instance=instance)
                    leaving.add(instance.uuid)
            except (exception.NovaException, MessagingException) as exc:
                # it must not keep nova-compute from starting
                LOG.warning("Not recovered: %s", exc, instance=instance)
        if leaving:
            return [one for one in instances if one.uuid not in leaving]
        return instances

    def _mh_back_from_move(self, context: Any, instance: Any) -> None:
        """A cold move had begun to leave when nova-compute ended.  nova goes
        back to what is here; nobody else knows of the files there, nor gives
        back what the move holds of both hosts in placement."""
        if instance.task_state != task_states.RESIZE_MIGRATING:
            return
        migration = recover.migration_of(context, instance)
        if migration.source_compute != CONF.host:
            return
        self._mh_remove_copy(migration, instance)
        migration.status = "error"
        migration.save()
        placement.give_back(
            self.virtapi.reportclient, context, instance, migration
        )

    def _mh_stays_here(self, context: Any, instance: Any, task: Any) -> None:
        """Of a move whose end was said to have been broken off.

        :param task: what it was in.
        """
        if instance.vm_state != vm_states.ERROR or instance.task_state:
            return
        free = {
            task_states.RESIZE_FINISH: placement.let_go,
            task_states.RESIZE_REVERTING: placement.give_back,
        }.get(task)
        if free is None:
            return
        migration = recover.migration_of(context, instance)
        if task == task_states.RESIZE_REVERTING:
            self._mh_put_back(migration, instance)
        free(self.virtapi.reportclient, context, instance, migration)

    def _mh_put_back(self, migration: Any, instance: Any) -> None:
        """What nova had set aside when the instance left, as a revert does
        that comes to it.  Not under a guest that still runs: of a resize on
        one host, what runs is what was to be reverted."""
        path = libvirt_utils.get_instance_path(instance)
        aside = f"{path}_resize"
        if migration.source_compute != CONF.host or not os.path.exists(aside):
            return
        if recover.runs(self, instance):
            LOG.warning("It runs; %s stays", aside, instance=instance)
            return
        try:
            if os.path.exists(path):
                shutil.rmtree(path)
            os.rename(aside, path)
        except OSError as exc:
            LOG.error("Its disk is in %s: %s", aside, exc, instance=instance)

    def _mh_remove_copy(self, migration: Any, instance: Any) -> None:
        there = migration.dest_host
        if migration.dest_compute == CONF.host or there in (
            None,
            self.get_host_ip_addr(),
        ):
            return
        path = libvirt_utils.get_instance_path(instance)
        try:
            if self._mh_same_files(there):
                return
            self._remotefs.remove_dir(there, path)
        except (OSError, processutils.ProcessExecutionError) as exc:
            LOG.warning(
                "%s may have a part of it, %s: %s",
                migration.dest_compute,
                path,
                exc,
                instance=instance,
            )

    def _mh_same_files(self, there: str) -> bool:
        """Both hosts keep instances on one file system.

        Not nova's own question, which takes an error for a no: what is about
        to be removed there would then be removed here.

        :raises OSError, ProcessExecutionError: it cannot be told.
        """
        path = os.path.join(CONF.instances_path, f"{uuid.uuid4()}.tmp")
        self._remotefs.create_file(there, path)
        try:
            return os.path.exists(path)
        finally:
            self._remotefs.remove_file(there, path)

    def update_provider_tree(
        self, provider_tree: Any, nodename: str, allocations: Any = None
    ) -> None:
        """nova asks every minute or so."""
        self._mh_forgetting.step()
        super().update_provider_tree(
            provider_tree, nodename, allocations=allocations
        )

    def _destroy(self, instance: Any) -> Any:
        """nova waits for it to be off from now on."""
        self._mh_begun.discard(instance.uuid)
        return super()._destroy(instance)

    def get_info(self, instance: Any, use_cache: bool = True) -> Any:
        """How nova learns that a guest it has started runs.

        :raises Denied: ``hook.launch.ended``: it has ended instead.
        """
        info = super().get_info(instance, use_cache=use_cache)
        if info.state == power_state.RUNNING:
            self._mh_begun.runs(instance.uuid)
        elif info.state in _ENDED and self._mh_begun.ended(instance.uuid):
            raise Denied(
                "hook.launch.ended",
                "the guest ended right after its start",
            )
        return info
