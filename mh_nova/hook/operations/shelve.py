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
"""Shelving: a snapshot, after the guest was stopped."""

from typing import Any

from nova.compute import task_states
from nova.virt.libvirt.driver import LibvirtDriver

from mh_core.errors import MHError
from mh_nova.hook import faults, restore
from mh_nova.hook.base import TrustedDriver
from mh_nova.hook.copies import CopyClient


class Shelve(LibvirtDriver, TrustedDriver):
    """Possible where a snapshot is."""

    _mh_copies: CopyClient

    def power_off(
        self, instance: Any, timeout: int = 0, retry_interval: int = 0
    ) -> None:
        """Where the snapshot would be refused, the guest is not stopped.

        This is the earliest point of a shelve where nova asks its driver.
        """
        shelving = instance.task_state == task_states.SHELVING
        if shelving and self._mh_protected(instance):
            try:
                self._mh_decide(instance)
                self._mh_require()
                self._mh_copies.check(instance.uuid)
            except MHError as error:
                restore.queued_image(instance)
                raise faults.refusal(error) from error
        super().power_off(instance, timeout, retry_interval)
