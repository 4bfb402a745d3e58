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
"""Reboots, and every other start that nova makes by a hard one."""

import contextlib
from collections.abc import Iterator
from typing import Any

import libvirt
import nova.conf
from nova import exception
from nova.compute import task_states, vm_states
from nova.virt.libvirt.driver import LibvirtDriver

from mh_core.errors import MHError
from mh_nova.hook import faults, recover, restore
from mh_nova.hook.base import TrustedDriver
from mh_nova.hook.launch import Launcher

CONF = nova.conf.CONF
_REBOOTS = (task_states.REBOOT_STARTED, task_states.REBOOT_STARTED_HARD)
#: In which nova leaves no server whose reboot failed.
_OFF = (vm_states.STOPPED, vm_states.PAUSED, vm_states.SUSPENDED)


class Reboot(LibvirtDriver, TrustedDriver):
    """What can be refused is refused before nova destroys the domain, so
    that a running guest goes on."""

    _mh_check_shape: Any
    _mh_begun: recover.Begun
    _mh_launcher: Launcher

    def _hard_reboot(
        self,
        context: Any,
        instance: Any,
        network_info: Any,
        share_info: Any,
        block_device_info: Any = None,
        accel_info: Any = None,
    ) -> None:
        """Also nova's ``power_on`` and its start of guests at host boot."""
        with _kept(instance) as states, faults.at_start(instance):
            if self._mh_decide(instance):
                self._mh_check_shape(instance, block_device_info, share_info)
                self._mh_require()
                if self._mh_at_stake(instance):
                    self._mh_launcher.ask_start(instance)
            # what ran is ended from here on
            states.append(vm_states.STOPPED)
            try:
                super()._hard_reboot(
                    context,
                    instance,
                    network_info,
                    share_info,
                    block_device_info,
                    accel_info,
                )
            finally:
                self._mh_begun.discard(instance.uuid)

    def _soft_reboot(self, instance: Any) -> bool:
        """Never starts the domain by itself: nova's would pass the gate by.

        False makes nova reboot hard, through the gate.
        """
        with faults.at_start(instance):
            if not self._mh_decide(instance):
                return bool(super()._soft_reboot(instance))
            self._mh_require()
            self._mh_launcher.ask_start(instance)
        self._clean_shutdown(
            instance, CONF.libvirt.wait_soft_reboot_seconds, 5
        )
        return False

    def _mh_at_stake(self, instance: Any) -> bool:
        """Has it memory, of a guest or saved, that a reboot would destroy?

        Doubt is a yes. Where it has none, the gate asks early enough; for a
        reboot of what is off, the domain at least stays defined.
        """
        if instance.task_state in _REBOOTS:
            return True
        try:
            guest = self._host.get_guest(instance)
            return bool(
                guest.is_active() or guest._domain.hasManagedSaveImage(0)
            )
        except exception.InstanceNotFound:
            return False
        except (exception.NovaException, libvirt.libvirtError):
            return True


@contextlib.contextmanager
def _kept(instance: Any) -> Iterator[list[str]]:
    """A server whose reboot is refused ends in the state it is really in.

    nova would leave it in ERROR unless its guest runs.

    :returns: states; the last one counts.
    """
    states = [instance.vm_state]
    rebooting = instance.task_state in _REBOOTS
    try:
        yield states
    except exception.NovaException as exc:
        refused = rebooting and isinstance(exc.__cause__, MHError)
        if refused and states[-1] in _OFF:
            restore.vm_state(instance, states[-1])
        raise
