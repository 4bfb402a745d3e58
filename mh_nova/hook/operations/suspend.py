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
"""A guest whose memory would lie on a disk."""

from typing import Any

from nova.virt.libvirt.driver import LibvirtDriver

from mh_core.errors import Denied
from mh_nova.hook import faults
from mh_nova.hook.base import TrustedDriver


class Suspend(LibvirtDriver, TrustedDriver):
    """Refused for protected instances."""

    def suspend(self, context: Any, instance: Any) -> None:
        if self._mh_protected(instance):
            raise faults.rollback(
                Denied(
                    "hook.refused.suspend",
                    "its memory would be saved in the clear",
                )
            )
        super().suspend(context, instance)
