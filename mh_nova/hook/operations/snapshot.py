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
"""A disk that becomes an image."""

from typing import Any

from nova.virt.libvirt.driver import LibvirtDriver

from mh_core.errors import Denied
from mh_nova.hook import faults
from mh_nova.hook.base import TrustedDriver


class Snapshot(LibvirtDriver, TrustedDriver):
    """Refused for protected instances."""

    def snapshot(
        self,
        context: Any,
        instance: Any,
        image_id: str,
        update_task_state: Any,
    ) -> None:
        if self._mh_protected(instance):
            error = faults.refusal(
                Denied(
                    "hook.refused.snapshot",
                    "a snapshot would be in the clear",
                )
            )
            faults.record(context, instance, "mh_snapshot", error)
            raise error
        super().snapshot(context, instance, image_id, update_task_state)

    def volume_snapshot_create(
        self, context: Any, instance: Any, volume_id: str, create_info: Any
    ) -> None:
        if self._mh_protected(instance):
            raise faults.refusal(
                Denied(
                    "hook.refused.volume-snapshot",
                    "a snapshot would be in the clear",
                )
            )
        super().volume_snapshot_create(
            context, instance, volume_id, create_info
        )
