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
"""Image properties that make a Glance image one of ours.

Names and meaning as in the protocol reference, "Image properties".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mh_core import manifest as manifests
from mh_core.errors import InputError
from mh_core.fields import Fields

EVENT = "client.image.properties"
TRAIT = "trait:CUSTOM_MH_TRUSTED_LAUNCH"
NAMES = (
    "os_encrypt_format",
    "os_encrypt_key_id",
    "os_encrypt_key_deletion_policy",
    "os_decrypt_size",
    "mh_version",
    "mh_key_url",
    "mh_manifest",
)


@dataclass(frozen=True)
class ImageProperties:
    """
    :param decrypt_size: bytes the guest sees.
    :param key_url: where hosts ask for the key; its form chooses between
        the native and the seed's request.
    :param manifest: compact JWS.
    """

    key_id: str
    decrypt_size: int
    key_url: str
    manifest: str

    def to_dict(self) -> dict[str, str]:
        """As Glance wants them: text only.

        :raises InputError: ``client.image.properties.manifest-size``.
        """
        if len(self.manifest) > manifests.MAX_PROPERTY:
            raise InputError(
                EVENT + ".manifest-size",
                "the manifest does not fit an image property (32 KiB); "
                "list fewer modules or user-data digests",
            )
        return {
            "os_encrypt_format": "LUKSv1",
            "os_encrypt_key_id": self.key_id,
            "os_encrypt_key_deletion_policy": "do_not_delete",
            "os_decrypt_size": str(self.decrypt_size),
            "mh_version": "1",
            "mh_key_url": self.key_url,
            "mh_manifest": self.manifest,
            TRAIT: "required",
        }

    @classmethod
    def parse(cls, image: Mapping[str, Any]) -> "ImageProperties":
        """Read them from a Glance image document.

        :raises InputError: ``client.image.properties``: not one of ours,
            or stripped of a property.
        """
        fields = Fields({n: image[n] for n in NAMES if n in image}, EVENT)
        fields.choice("mh_version", ("1",))
        fields.choice("os_encrypt_format", ("LUKSv1",))
        fields.choice("os_encrypt_key_deletion_policy", ("do_not_delete",))
        size = fields.text("os_decrypt_size", pattern=r"[1-9][0-9]{0,15}")
        return cls(
            key_id=fields.uuid("os_encrypt_key_id"),
            decrypt_size=int(size),
            key_url=fields.text(
                "mh_key_url", maximum=1024, pattern=r"https?://[!-~]+"
            ),
            manifest=fields.text(
                "mh_manifest", maximum=manifests.MAX_PROPERTY
            ),
        )
