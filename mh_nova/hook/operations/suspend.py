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
"""A guest whose memory goes to a disk, and comes back."""

import threading
from typing import Any

from nova import exception
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_log import log as logging

from mh_core.errors import MHError
from mh_nova.hook import faults, recover
from mh_nova.hook.base import TrustedDriver

LOG = logging.getLogger(__name__)


class Suspend(LibvirtDriver, TrustedDriver):
    """Where the agent says that the memory is written encrypted.

    A resume passes the gate of every start. Where it is refused, the saved
    memory stays and the instance is suspended as before: nova's own clean-up
    after a start that failed would remove it.
    """

    _mh_begun: recover.Begun

    def __init__(self, virtapi: Any, read_only: bool = False) -> None:
        super().__init__(virtapi, read_only)
        self._mh_resuming: set[str] = set()
        self._mh_resuming_lock = threading.Lock()

    def suspend(self, context: Any, instance: Any) -> None:
        try:
            if self._mh_decide(instance):
                self._mh_suspend(instance)
        except MHError as error:
            raise faults.rollback(error) from error
        # it is off from now on, and nova asks how it is
        self._mh_begun.discard(instance.uuid)
        super().suspend(context, instance)

    def resume(
        self,
        context: Any,
        instance: Any,
        network_info: Any,
        block_device_info: Any = None,
        share_info: Any = None,
    ) -> None:
        if self._mh_resumed(instance):
            LOG.info("It has been resumed already", instance=instance)
            return
        with self._mh_resuming_lock:
            self._mh_resuming.add(instance.uuid)
        try:
            super().resume(
                context,
                instance,
                network_info,
                block_device_info,
                share_info,
            )
        except exception.NovaException as exc:
            if isinstance(exc.__cause__, MHError):
                # refused at the gate: nothing has changed
                raise exception.InstanceFaultRollback(
                    inner_exception=exc
                ) from exc
            raise
        finally:
            with self._mh_resuming_lock:
                self._mh_resuming.discard(instance.uuid)

    def _mh_resumed(self, instance: Any) -> bool:
        """An earlier resume was cut off behind the gate.  A second start of
        what runs could only fail, and so would each after it."""
        if not recover.runs(self, instance):
            return False
        try:
            return self._mh_decide(instance)
        except MHError as error:
            raise faults.rollback(error) from error

    def _cleanup(
        self,
        context: Any,
        instance: Any,
        network_info: Any,
        block_device_info: Any = None,
        destroy_vifs: bool = True,
        cleanup_instance_dir: bool = False,
        cleanup_instance_disks: bool = False,
        destroy_secrets: bool = True,
    ) -> None:
        """Not after a resume that failed: the domain, and with it the saved
        memory, would go."""
        with self._mh_resuming_lock:
            resuming = instance.uuid in self._mh_resuming
        if (
            resuming
            and not cleanup_instance_disks
            and self._mh_protected(instance)
        ):
            return
        super()._cleanup(
            context,
            instance,
            network_info,
            block_device_info=block_device_info,
            destroy_vifs=destroy_vifs,
            cleanup_instance_dir=cleanup_instance_dir,
            cleanup_instance_disks=cleanup_instance_disks,
            destroy_secrets=destroy_secrets,
        )
