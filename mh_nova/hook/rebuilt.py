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
"""An instance's image, put back after a rebuild that was refused.

nova's API writes the new image into the instance before its host is asked,
and takes it back for no refusal. Left so, the rows would name another image
than the disk lies over, and every later operation would be refused.
"""

from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from nova import exception, objects, utils
from nova.virt import images
from nova.virt.libvirt.config import NOVA_NS
from oslo_log import log as logging
from oslo_messaging import (  # type: ignore[import-untyped]
    MessagingException,
)

from mh_nova.hook import properties
from mh_nova.hook.description import Known

LOG = logging.getLogger(__name__)
#: nova's own description of a guest, in its domain, by element.
_FORMATS = {
    "containerFormat": "container_format",
    "diskFormat": "disk_format",
    "minDisk": "min_disk",
    "minRam": "min_ram",
}
#: Longest value of nova's system_metadata, characters.
_NOVA_CUTS = 255


@dataclass(frozen=True)
class _Said:
    """
    :param image: empty: it boots from a volume.
    :param properties: name to value, of those that nova knows.
    """

    image: str
    properties: dict[str, str]


def _said(domain: str) -> _Said | None:
    """What the domain says it was started from; None: it does not."""
    ns = {"nova": NOVA_NS}
    try:
        root = ElementTree.fromstring(domain)  # noqa: S314
    except ElementTree.ParseError:
        return None
    if root.find(".//nova:image", ns) is None:
        return None
    found = {
        name: value
        for element, name in _FORMATS.items()
        if (value := root.findtext(f".//nova:image/nova:{element}", "", ns))
    }
    for one in root.iterfind(".//nova:image/nova:properties/*", ns):
        found[one.get("name", "")] = one.text or ""
    image = root.find(".//nova:root[@type='image']", ns)
    return _Said("" if image is None else image.get("uuid", ""), found)


def put_back(
    context: Any, instance: Any, domain: str, known: Known | None
) -> None:
    """In memory, but for the scheduler's note; the caller saves.

    The image is the one that the agent, else the domain, names. Properties
    are the image service's; those that say what is ours, the agent's.

    :param domain: XML, or empty.
    :param known: by the agent; None: it did not say.
    """
    said = _said(domain)
    ours = known if known is not None and known.image else None
    if ours is not None:
        before = ours.image
    elif said is not None:
        before = said.image
    else:
        LOG.warning("What it was is not known", instance=instance)
        return
    found = {
        properties.INHERITED + name: value
        for name, value in (said.properties if said else {}).items()
    }
    if before:
        try:
            found = utils.get_system_metadata_from_image(
                images.IMAGE_API.get(context, before), instance.flavor
            )
        except exception.NovaException as exc:
            # gone, or out of reach
            LOG.info("By its domain: %s", exc, instance=instance)
    found["image_base_image_ref"] = before
    if ours is not None:
        found.setdefault(properties.INHERITED + properties.VERSION, "1")
        found["image_os_encrypt_key_id"] = ours.key_id
        found["image_mh_key_url"] = ours.key_url[:_NOVA_CUTS]
    instance.image_ref = before
    instance.system_metadata = {
        name: value
        for name, value in (instance.system_metadata or {}).items()
        if not name.startswith(properties.INHERITED)
    } | {name: str(value) for name, value in found.items()}
    for name in ("os_type", "architecture", "vm_mode"):
        setattr(instance, name, found.get(properties.INHERITED + name))
    for name in ("kernel_id", "ramdisk_id"):
        setattr(instance, name, found.get(properties.INHERITED + name, ""))
    _tell_scheduler(context, instance)


def _tell_scheduler(context: Any, instance: Any) -> None:
    try:
        spec = objects.RequestSpec.get_by_instance_uuid(context, instance.uuid)
        spec.image = objects.ImageMeta.from_instance(instance)
        spec.save()
    except (exception.NovaException, MessagingException) as exc:
        # it would be scheduled by the other image's properties
        LOG.warning(
            "The scheduler still names the new image: %s",
            exc,
            instance=instance,
        )
