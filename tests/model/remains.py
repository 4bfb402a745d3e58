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
"""The keys of a run, and the search for them and for the marker."""

from __future__ import annotations

import collections.abc
import typing

from mh_core.errors import MHError
from tests.minicloud import overlay_write
from tests.minicloud.node import Node
from tests.minicloud.search import (
    Needle,
    Search,
    default_roots,
    key_needles,
    plant,
)
from tests.minicloud.world import TrustedImage, World


class Remains:
    """
    :param hosts: on which instances are.
    """

    def __init__(
        self,
        world: World,
        image: TrustedImage,
        hosts: collections.abc.Sequence[Node],
    ) -> None:
        self._world = world
        self._hosts = {node.name: node for node in hosts}
        self._marker = Needle("marker", image.marker)
        self._disks: dict[bytes, list[Needle]] = {}
        self._images: dict[str, list[Needle]] = {}

    @property
    def disks(self) -> int:
        """How many disks' keys are known."""
        return len(self._disks)

    @property
    def images(self) -> int:
        return len(self._images)

    def remember(self, server: typing.Any) -> bool:
        """The key of a server's root disk as it is now.

        :returns: whether there is one; not where it is offloaded.
        """
        node = self._hosts.get(server.hypervisor_hostname or "")
        if node is None:
            return False
        path = node.folder / "instances" / server.id / "disk"
        try:
            key = overlay_write.disk_key(self._world, node, server.id)
            if key not in self._disks:
                name = f"overlay key of {server.id}"
                self._disks[key] = key_needles(name, key, path)
        except (FileNotFoundError, MHError):
            # it has never run, or runs no more
            return False
        return True

    def remember_images(self) -> None:
        """The keys of the image and of what was made of its instances."""
        tenant = self._world.tenant.image
        for image in tenant.images():
            if image.status != "active" or not image.name.startswith("model"):
                continue
            document = tenant.get(f"/images/{image.id}").json()
            key_id = document["os_encrypt_key_id"]
            self._images[image.id] = key_needles(
                f"DEK of {image.name}",
                overlay_write.dek(self._world, key_id),
                self._world.glance_store / image.id,
            )

    def search(self) -> list[str]:
        """What is in the clear, and what makes the search worth nothing."""
        world = self._world
        folders = [world.glance_store, world.cloud.where.tmp]
        for node in self._hosts.values():
            folders += [
                node.folder / "instances",
                node.path("/var/lib/libvirt/qemu"),
            ]
        known = (*self._disks.values(), *self._images.values())
        with plant(folders) as planted:
            search = Search(
                default_roots(world.cloud.base),
                [world.product.workstation],
                [
                    self._marker,
                    *(needle for needles in known for needle in needles),
                    *planted.needles,
                ],
            )
            hits = search.run()
            missing, others = planted.missing(hits), planted.others(hits)
        base = str(world.cloud.base)
        return [
            *(f"in the clear: {hit}" for hit in others[:20]),
            *(f"planted and not found: {place}" for place in missing),
            *(
                f"not searched: {place}"
                for place in search.unreadable
                if base in place
            ),
        ]
