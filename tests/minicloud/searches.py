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
"""The search for what must not be anywhere, and its self-test."""

from __future__ import annotations

import collections.abc
import hashlib
import json
import pathlib
import typing
import uuid

from mh_core.image.luks1 import passphrase
from tests.minicloud.kms_inside import overlay_key
from tests.minicloud.overlay_write import dek
from tests.minicloud.process import CloudError
from tests.minicloud.search import (
    Needle,
    Search,
    default_roots,
    key_needles,
    plant,
)
from tests.minicloud.story import Story
from tests.minicloud.world import World

Case = tuple[str, collections.abc.Callable[[], str]]


def everywhere(
    world: World,
    needles: collections.abc.Sequence[Needle],
    tenants: collections.abc.Sequence[pathlib.Path] = (),
) -> str:
    """Search the whole cloud, all processes, and where they may write.

    :param tenants: folders of the tenant's beside the workstation.
    :returns: how much was searched.
    :raises CloudError: something was found, or not what was planted.
    """
    node = world.node1
    folders = [
        world.cloud.where.glance_store,
        node.folder / "instances",
        world.cloud.where.tmp,
        node.path("/var/lib/libvirt/qemu"),
    ]
    with plant(folders) as planted:
        search = Search(
            default_roots(world.cloud.base),
            [world.product.workstation, *tenants],
            [*needles, *planted.needles],
        )
        hits = search.run()
        missing, others = planted.missing(hits), planted.others(hits)
    if others:
        raise CloudError("found: " + "; ".join(map(str, others[:10])))
    if missing:
        raise CloudError("planted and not found: " + "; ".join(missing))
    ours = [p for p in search.unreadable if str(world.cloud.base) in p]
    if ours:
        raise CloudError("could not read " + "; ".join(ours[:5]))
    return (
        f"{search.files} files, {search.octets >> 20} MiB, "
        f"{search.processes} processes; all that was planted was found"
    )


def of_every_image(world: World) -> list[Needle]:
    """What is in each image that a tenant encrypted, and the keys that are
    not destroyed."""
    world.kms("GET", "/v1/keys")  # it answers: what follows is its word
    needles = {
        image.marker: Needle(f"in image {image.name}", image.marker)
        for image in world.images
        if image.marker
    }
    for key_id in sorted({image.key_id for image in world.images}):
        try:
            key = dek(world, key_id)
        except CloudError:
            continue
        for needle in key_needles(f"key {key_id}", key):
            needles[needle.data] = needle
    return list(needles.values())


class Searches:
    """
    :param story: played as far as the launch; its server runs.
    """

    def __init__(self, story: Story) -> None:
        self.story = story
        self.world = story.world
        self._needles: list[typing.Any] = []

    def while_running(self) -> list[Case]:
        return [
            ("nothing in the clear while a trusted guest runs", self.running),
        ]

    def after_deletion(self) -> list[Case]:
        return [("nothing in the clear after its deletion", self.deleted)]

    # -- the secrets, fetched by those who may ---------------------------

    def _dek(self) -> bytes:
        return dek(self.world, self.story.disk_image.key_id)

    def _overlay_key(self, instance: str, luks_uuid: str) -> bytes:
        """As the key server's own administrator, from its database."""
        return overlay_key(
            self.world.product.mh / "kms" / "mh-kms.conf",
            self.story.disk_image.key_id,
            uuid.UUID(instance),
            "disk",
            uuid.UUID(luks_uuid),
        )

    def needles(self) -> list[typing.Any]:
        """DEK, overlay key, both LUKS master keys, the body's marker."""
        if self._needles:
            return self._needles
        image, server = self.story.disk_image, self.story.server
        instances = self.world.node1.folder / "instances"
        overlay = instances / server.id / "disk"
        [base] = [
            path
            for path in (instances / "_base").iterdir()
            if path.name.startswith(_cached(image.id))
        ]
        record = json.loads(
            (
                self.world.node1.folder
                / "var/lib/mystery-hill/agent/instances"
                / f"{server.id}.json"
            ).read_text()
        )
        [disk] = record["disks"]
        key = self._overlay_key(server.id, disk["luks_uuid"])
        assert passphrase(key) != passphrase(self._dek())
        self._needles = [
            Needle("marker", image.marker),
            *key_needles("DEK", self._dek(), base),
            *key_needles("overlay key", key, overlay),
        ]
        return self._needles

    # -- the searches ----------------------------------------------------

    def _search(self) -> str:
        return everywhere(self.world, self.needles())

    def running(self) -> str:
        if self.story.server.id not in self.world.running_guests():
            raise CloudError("the guest does not run")
        return self._search()

    def deleted(self) -> str:
        self.world.delete(self.story.server)
        return self._search()


def _cached(image_id: str) -> str:
    return hashlib.sha1(image_id.encode()).hexdigest()  # noqa: S324
