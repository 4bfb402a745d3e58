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
"""A rebuild, before nova has destroyed anything."""

from typing import Any

from nova.compute import task_states
from nova.virt.libvirt.driver import LibvirtDriver

from mh_core.errors import MHError
from mh_nova.hook import faults
from mh_nova.hook.base import TrustedDriver


class Rebuild(LibvirtDriver, TrustedDriver):
    """Refused where the image was turned since the instance was launched.

    Otherwise a rebuild is a deletion and a launch, and each is judged as
    what it is.
    """

    def power_off(
        self, instance: Any, timeout: int = 0, retry_interval: int = 0
    ) -> None:
        """The earliest point of a rebuild where nova asks its driver."""
        if instance.task_state == task_states.REBUILDING:
            try:
                self._mh_rebuild(instance)
            except MHError as error:
                raise faults.rollback(error) from error
        super().power_off(instance, timeout, retry_interval)
