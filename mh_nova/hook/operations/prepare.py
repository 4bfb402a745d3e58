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
"""Before ``spawn``: time in which the key can already come."""

from typing import Any

from nova.virt.libvirt.driver import LibvirtDriver
from oslo_context import context as oslo_context

from mh_nova.hook.base import TrustedDriver
from mh_nova.hook.launch import Launcher
from mh_nova.hook.ours import Ours


class Prepare(LibvirtDriver, TrustedDriver):
    """By what the metadata claims; ``spawn`` decides, and refuses."""

    _mh_launcher: Launcher
    _mh_ours: Ours
    _mh_forget: Any

    def prepare_for_spawn(self, instance: Any) -> None:
        """Nova's manager is some writes to its database away."""
        super().prepare_for_spawn(instance)
        current = oslo_context.get_current()
        if current is not None and self._mh_ours.claimed(instance):
            self._mh_launcher.early(current, instance, self._mh_require)

    def failed_spawn_cleanup(self, instance: Any) -> None:
        """``spawn`` will not come."""
        super().failed_spawn_cleanup(instance)
        if self._mh_ours.claimed(instance):
            self._mh_forget(instance)
