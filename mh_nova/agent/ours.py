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
"""Ours or not: by the host's own facts, never by metadata.

An instance is ours if the agent has a record of it, or a disk in its
directory has a LUKS header, or its domain names one of our secrets.  Stock
nova 34 makes no LUKS disks, so the second can only err towards protection.
"""

import os

from lxml import etree

from mh_core.errors import InputError, MHError, NotFound
from mh_core.image import qcow2
from mh_core.image.qcow2_header import CRYPT_LUKS
from mh_nova.agent.overlay import secret_uuid
from mh_nova.agent.paths import Root
from mh_nova.agent.secrets import Libvirt
from mh_nova.agent.store import Store

_MAGIC = b"QFI\xfb"
_LUKS = CRYPT_LUKS.to_bytes(4, "big")


class Ours:
    def __init__(self, root: Root, store: Store, libvirt: Libvirt) -> None:
        self._root = root
        self._store = store
        self._libvirt = libvirt

    def why(self, instance: str) -> str:
        """The fact that says so; empty: not ours.

        :raises Unavailable: ``agent.libvirt``: cannot be told.
        """
        try:
            self._store.instance(instance)
            return "record"
        except NotFound:
            pass
        except InputError:
            return "damaged record"
        for name in self._root.names(instance):
            if name.startswith("disk") and self._encrypted(instance, name):
                return f"header of {name}"
        xml = self._libvirt.domain_xml(instance)
        if xml is not None and self.named(instance, xml):
            return "domain"
        return ""

    def source(self, instance: str) -> dict[str, str]:
        """What its root disk lies over, by the agent's record; empty values
        where there is none, or no such disk."""
        try:
            record = self._store.instance(instance)
        except (NotFound, InputError):
            record = None
        if record is None or not any(
            disk.base for disk in record.disks if disk.name == "disk"
        ):
            return {"image": "", "key_id": "", "key_url": ""}
        return {
            "image": record.image,
            "key_id": record.key_id,
            "key_url": record.key_url,
        }

    def _encrypted(self, instance: str, name: str) -> bool:
        try:
            fd = self._root.open(instance, name)
        except MHError:
            return False
        try:
            # not the strict parser: what it refuses may be ours all the same
            head = qcow2.read_at(fd, 36, 0)
            return head[:4] == _MAGIC and head[32:] == _LUKS
        except InputError:
            return True
        finally:
            os.close(fd)

    @staticmethod
    def named(instance: str, xml: str) -> bool:
        """A domain's XML names one of our secrets, or cannot be read."""
        parser = etree.XMLParser(
            resolve_entities=False, no_network=True, load_dtd=False
        )
        try:
            domain = etree.fromstring(xml.encode(), parser)
        except etree.XMLSyntaxError:
            return True
        for disk in domain.iterfind("devices/disk"):
            source = disk.find("source")
            if source is None:
                continue
            name = os.path.basename(source.get("file") or "")
            uuids = {secret.get("uuid") for secret in disk.iter("secret")}
            if secret_uuid(instance, name, "overlay") in uuids:
                return True
        return False
