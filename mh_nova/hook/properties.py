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

"""What the properties of an encrypted image say; a claim until the agent
has verified the manifest with keys from the key server."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mh_core.errors import Denied, InputError
from mh_core.fields import Fields
from mh_core.manifest import MAX_PROPERTY

EVENT = "hook.image.properties"
VERSION = "mh_version"
#: Prefix of image properties in an instance's system_metadata.
INHERITED = "image_"
COMPAT_PATH = "/data-encryption-key/request/"
#: (disk_format, container_format) to what the file must look like.
FORMATS = {
    ("qcow2", "bare"): "qcow2",
    # the image service has no name for it
    ("raw", "bare"): "luks",
    ("qcow2", "ova"): "ova",
}
#: Boot without our disk: forbidden beside it.
_DIRECT_BOOT = ("kernel_id", "ramdisk_id", "os_command_line")


@dataclass(frozen=True)
class ImageFacts:
    """
    :param image: Glance id.
    :param virtual_size: bytes the guest sees.
    :param compat: ask for the key in the seed's bare-AK form.
    :param form: what the file is to look like: qcow2, luks or ova.
    """

    image: str
    key_url: str
    key_id: str
    manifest: str
    virtual_size: int
    compat: bool
    form: str = "qcow2"


def claimed(system_metadata: Mapping[str, str] | None) -> bool:
    """Does the cloud's metadata say that the instance is ours?"""
    return INHERITED + VERSION in (system_metadata or {})


def read(image: Mapping[str, Any]) -> ImageFacts:
    """Read an image as nova's image API returns it.

    Read from Glance, not from ``system_metadata``, which cuts values at 255
    characters.

    :raises Denied: ``hook.launch.kernel``, ``hook.image.version``,
        ``hook.image.format``.
    :raises InputError: ``hook.image.properties``.
    """
    properties = image.get("properties") or {}
    if not isinstance(properties, Mapping):
        raise InputError(EVENT, "the image has no properties")
    if any(properties.get(name) for name in _DIRECT_BOOT):
        raise Denied(
            "hook.launch.kernel",
            "a trusted image boots from its own disk, not from a kernel or "
            "ramdisk image, and takes no kernel command line",
        )
    version = properties.get(VERSION)
    if str(version) != "1":
        raise Denied(
            "hook.image.version",
            "the image is not, or no longer, marked as a trusted image of "
            "version 1",
        )
    form = (image.get("disk_format"), image.get("container_format"))
    if form not in FORMATS:
        raise Denied(
            "hook.image.format",
            "a trusted image must be qcow2 or raw and bare, or qcow2 in an "
            "OVA",
        )
    wanted = (
        "os_encrypt_key_id",
        "os_encrypt_format",
        "os_decrypt_size",
        "mh_key_url",
        "mh_manifest",
    )
    fields = Fields({"image": image.get("id")}, EVENT)
    image_id = fields.uuid("image")
    fields = Fields(
        {
            name: str(properties[name])
            for name in wanted
            if properties.get(name) is not None
        },
        EVENT,
    )
    fields.choice("os_encrypt_format", ("LUKSv1", "luks"))
    key_url = fields.text("mh_key_url", minimum=8, maximum=2048)
    try:
        path = urlsplit(key_url).path
    except ValueError as exc:
        raise fields.fail("mh_key_url", "is not a URL") from exc
    size = fields.text(
        "os_decrypt_size", pattern=r"[0-9]{1,15}", minimum=1, maximum=15
    )
    facts = ImageFacts(
        image=image_id,
        key_url=key_url,
        key_id=fields.uuid("os_encrypt_key_id"),
        manifest=fields.text(
            "mh_manifest",
            minimum=1,
            maximum=MAX_PROPERTY,
            pattern=r"[A-Za-z0-9_\-]+\.[A-Za-z0-9_\-]*\.[A-Za-z0-9_\-]+",
        ),
        virtual_size=int(size),
        compat=COMPAT_PATH in path,
        form=FORMATS[form],
    )
    fields.end()
    return facts
