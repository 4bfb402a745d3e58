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
"""What a tenant does with volumes, with bounded waits."""

from __future__ import annotations

import pathlib
import typing

from tests.minicloud.node import Node
from tests.minicloud.pids import CloudError, wait_until
from tests.minicloud.world import World

Volume = typing.Any
Server = typing.Any


class Volumes:
    """Of the tenant's project, in a cloud with volumes."""

    def __init__(self, world: World) -> None:
        if not world.cloud.volumes:
            raise CloudError("this cloud was started without volumes")
        self.world = world
        self.storage = world.tenant.block_storage
        self.compute = world.tenant.compute
        self.folder = world.cloud.where.state / "volumes"

    def create(self, name: str, **more: typing.Any) -> Volume:
        """A volume of 1 GiB, or as it is in ERROR.

        :param more: ``image_id``, ``snapshot_id``…
        """
        made = self.storage.create_volume(name=name, size=1, **more)
        return self.wait(made, "available", "error")

    def show(self, volume: Volume) -> Volume:
        return self.storage.get_volume(volume.id)

    def wait(self, volume: Volume, *wanted: str) -> Volume:
        """Until it has one of the states."""
        found = volume

        def test() -> bool:
            nonlocal found
            found = self.show(volume)
            return found.status in wanted

        try:
            wait_until(test, 60, f"volume {volume.name}", pause=0.3)
        except CloudError as error:
            raise CloudError(f"{error}: {found.status}") from None
        return found

    def file(self, volume: Volume) -> pathlib.Path:
        """What the back end keeps it in."""
        return self.folder / f"volume-{volume.id}"

    def connected(self, volume: Volume) -> dict[str, str]:
        """Host to device, of one that is connected as a device."""
        return {
            path.name.partition("@")[2]: path.read_text()
            for path in self.folder.glob(f"volume-{volume.id}@*")
        }

    def content(self, volume: Volume, length: int) -> bytes:
        """The first bytes as they are on the disk of the cloud."""
        with self.file(volume).open("rb") as file:
            return file.read(length)

    def attach(self, server: Server, volume: Volume) -> Volume:
        """Ask for it, and wait until Cinder says that it is."""
        self.compute.create_volume_attachment(server, volume_id=volume.id)
        return self.wait(volume, "in-use")

    def detach(self, server: Server, volume: Volume) -> Volume:
        """Of a server that is off."""
        self.compute.delete_volume_attachment(server, volume.id)
        return self.wait(volume, "available")

    def unplug(self, node: Node, server: Server, volume: Volume) -> Volume:
        """Of one that runs.  A guest must agree, and ours have no ACPI: for
        them the machine does at its next reset."""
        self.compute.delete_volume_attachment(server, volume.id)

        def test() -> bool:
            if self.show(volume).status == "available":
                return True
            node.virsh("reset", server.id)
            return False

        wait_until(test, 60, f"volume {volume.name} to be out", pause=2)
        return self.show(volume)

    def delete(self, volume: Volume) -> None:
        """Until its file, too, is gone."""
        self.storage.delete_volume(volume.id)
        self.storage.wait_for_delete(volume, interval=0.3, wait=60)
        if self.file(volume).exists():
            raise CloudError(f"the file of volume {volume.name} is left")

    def sources(self, node: Node, server: Server) -> dict[str, str]:
        """A guest's disks as libvirt has them: target to file."""
        lines = node.virsh("domblklist", server.id).stdout.split("\n")
        return dict(line.split(maxsplit=1) for line in lines if line.strip())
