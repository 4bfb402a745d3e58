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
import typing
import uuid

from mh_core import jose
from mh_core.image.luks1 import passphrase
from tests.minicloud.kms_inside import overlay_key
from tests.minicloud.process import CloudError
from tests.minicloud.search import (
    Needle,
    Search,
    default_roots,
    key_needles,
    plant,
)
from tests.minicloud.story import Story

Case = tuple[str, collections.abc.Callable[[], str]]


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
        """As its owner: by the key server's delivery."""
        key = jose.generate_key()
        answer = self.world.kms(
            "POST",
            f"/v1/keys/{self.story.disk_image.key_id}/deliver",
            {"jwk": jose.public(key)},
        )
        return jose.unwrap(answer["jwe"], key, b"mh/key-deliver/v1")

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
        world = self.world
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
                [world.product.workstation],
                [*self.needles(), *planted.needles],
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

    def running(self) -> str:
        if self.story.server.id not in self.world.running_guests():
            raise CloudError("the guest does not run")
        return self._search()

    def deleted(self) -> str:
        self.world.delete(self.story.server)
        return self._search()


def _cached(image_id: str) -> str:
    return hashlib.sha1(image_id.encode()).hexdigest()  # noqa: S324
