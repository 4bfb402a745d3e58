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

"""Chooses the image class per instance."""

import os
from typing import Any

from nova.virt.libvirt import imagebackend

from mh_nova.hook import disks
from mh_nova.hook.agent_client import AgentClient
from mh_nova.hook.image import MHImage
from mh_nova.hook.launch import Launcher
from mh_nova.hook.ours import Ours
from mh_nova.hook.rescue import PLAIN, Rescues


class MHBackend(imagebackend.Backend):
    """nova's backend, but :class:`MHImage` for instances that are ours.

    By metadata, which is all there is before a disk exists. That metadata
    and host agree is the driver's check, before any operation.
    """

    def __init__(
        self,
        use_cow: bool,
        client: AgentClient,
        launcher: Launcher,
        ours: Ours,
        rescues: Rescues,
    ) -> None:
        super().__init__(use_cow)
        self._client = client
        self._launcher = launcher
        self._ours = ours
        self._rescues = rescues

    def _encrypted(self, instance: Any, name: str) -> bool:
        if instance is None or not self._ours.claimed(instance):
            return False
        # the one disk that may be nova's own, by the release policy
        return not (
            os.path.basename(name) == disks.RESCUE
            and self._rescues.purpose(instance.uuid) == PLAIN
        )

    def by_name(
        self,
        instance: Any,
        name: str,
        image_type: str | None = None,
        disk_info_mapping: dict[str, Any] | None = None,
    ) -> Any:
        if self._encrypted(instance, name):
            return MHImage(
                self._client,
                self._launcher,
                self._rescues,
                instance,
                name,
                disk_info_mapping=disk_info_mapping,
            )
        return super().by_name(
            instance,
            name,
            image_type,
            disk_info_mapping=disk_info_mapping,
        )

    def by_libvirt_path(
        self, instance: Any, path: str, image_type: str | None = None
    ) -> Any:
        if self._encrypted(instance, path):
            return MHImage(
                self._client, self._launcher, self._rescues, instance, path
            )
        return super().by_libvirt_path(instance, path, image_type)
