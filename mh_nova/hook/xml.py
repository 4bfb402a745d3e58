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

"""The guest's disk as libvirt must see it: both layers decrypted by QEMU."""

from typing import Any

from lxml import etree
from nova.virt.libvirt import config as vconfig

#: With <encryption>, libvirt takes "raw" for QEMU's driver "luks".
_LIBVIRT = {"qcow2": "qcow2", "luks": "raw"}


class GuestDisk(vconfig.LibvirtConfigGuestDisk):
    """nova's disk with ``<encryption>`` and an explicit backing chain.

    The chain is always spelled out, so that QEMU never follows a backing
    link from the disk's header. A subclass rather than work on finished
    XML: nova keeps the object and formats it itself.

    :ivar overlay_secret: libvirt secret uuid of this disk's own key.
    :ivar base: (path, libvirt secret uuid) of the encrypted base, or None.
    :ivar base_format: QEMU's name of the base's format, qcow2 or luks.
    """

    overlay_secret: str
    base: tuple[str, str] | None
    base_format: str

    @classmethod
    def over(
        cls,
        disk: vconfig.LibvirtConfigGuestDisk,
        overlay_secret: str,
        base: tuple[str, str] | None,
        base_format: str = "qcow2",
    ) -> "GuestDisk":
        """A copy of what nova's image backend filled in."""
        made = cls()
        made.__dict__.update(disk.__dict__)
        made.overlay_secret = overlay_secret
        made.base = base
        made.base_format = base_format
        return made

    def format_dom(self) -> Any:
        device = super().format_dom()
        source = device.find("source")
        for stale in source.findall("encryption"):
            source.remove(stale)
        source.append(_encryption(self.overlay_secret))
        backing = etree.Element("backingStore")
        if self.base is not None:
            path, secret = self.base
            backing.set("type", "file")
            etree.SubElement(
                backing, "format", type=_LIBVIRT[self.base_format]
            )
            below = etree.SubElement(backing, "source", file=path)
            below.append(_encryption(secret))
            # the base has no base
            etree.SubElement(backing, "backingStore")
        device.insert(list(device).index(source) + 1, backing)
        return device


def _encryption(secret: str) -> Any:
    # format is never left to probing: without it QEMU opens a plain image
    element = etree.Element("encryption", format="luks", engine="qemu")
    etree.SubElement(element, "secret", type="passphrase", uuid=secret)
    return element
