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
"""Images fetched ahead of any launch, and those that must stay."""

import os
from typing import Any

import nova.conf
from nova import exception
from nova.virt import images
from nova.virt.libvirt import imagecache
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_concurrency import processutils

from mh_core.errors import MHError
from mh_nova.hook import disks, faults, properties
from mh_nova.hook.base import TrustedDriver

CONF = nova.conf.CONF


class CacheManager(imagecache.ImageCacheManager):
    """Nova's, which knows what lies under ``disk``, and of no other disk."""

    def _list_backing_images(self) -> list[str]:
        """With what lies under the disks of encrypted rescue images."""
        found: list[str] = super()._list_backing_images()
        for name in sorted(self.instance_names):
            path = os.path.join(CONF.instances_path, name, disks.RESCUE)
            if not os.path.exists(path):
                continue
            try:
                info = images.qemu_img_info(path)
            except (
                processutils.ProcessExecutionError,
                exception.DiskNotFound,
            ):
                if os.path.exists(path):
                    # as nova does: then this pass removes nothing
                    raise
                continue
            if not info.encrypted or not info.backing_file:
                continue
            base = os.path.join(
                CONF.instances_path,
                CONF.image_cache.subdirectory_name,
                os.path.basename(info.backing_file),
            )
            if base not in found:
                found.append(base)
            if base in self.unexplained_images:
                self.unexplained_images.remove(base)
        return found


class ImageCache(LibvirtDriver, TrustedDriver):
    """Encrypted ones are hashed by the agent, and never converted."""

    def __init__(self, virtapi: Any, read_only: bool = False) -> None:
        super().__init__(virtapi, read_only)
        self.image_cache_manager = CacheManager()

    def cache_image(self, context: Any, image_id: str) -> bool:
        image = images.IMAGE_API.get(context, image_id)
        if properties.VERSION not in (image.get("properties") or {}):
            return bool(super().cache_image(context, image_id))
        try:
            return self._mh_precache(context, image)
        except MHError as error:
            # nova logs it, and answers "error" for this image
            raise faults.refusal(error) from error
