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
"""Images fetched ahead of any launch."""

from typing import Any

from nova.virt import images
from nova.virt.libvirt.driver import LibvirtDriver

from mh_core.errors import MHError
from mh_nova.hook import faults, properties
from mh_nova.hook.base import TrustedDriver


class ImageCache(LibvirtDriver, TrustedDriver):
    """Encrypted ones are hashed by the agent, and never converted."""

    def cache_image(self, context: Any, image_id: str) -> bool:
        image = images.IMAGE_API.get(context, image_id)
        if properties.VERSION not in (image.get("properties") or {}):
            return bool(super().cache_image(context, image_id))
        try:
            return self._mh_precache(context, image)
        except MHError as error:
            # nova logs it, and answers "error" for this image
            raise faults.refusal(error) from error
