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

"""nova's image backend for one encrypted disk."""

import os
from typing import Any

from nova import exception
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import utils as libvirt_utils

from mh_core.errors import Denied
from mh_nova.hook import disks, launch, ours, xml
from mh_nova.hook.agent_client import AgentClient
from mh_nova.hook.copies import CopyClient
from mh_nova.hook.rescue import Rescues


class MHImage(imagebackend.Image):
    """A qcow2+LUKS overlay over the tenant's ciphertext.

    Not a ``Qcow2``: nova rebases, resizes and converts those with tools
    that have no key. Nothing here has one either; whatever needs the disk
    opened is refused.

    :param disk_name: nova's name, or the absolute path, of the disk.
    """

    def __init__(
        self,
        client: AgentClient,
        launcher: launch.Launcher,
        rescues: Rescues,
        instance: Any,
        disk_name: str,
        disk_info_mapping: dict[str, Any] | None = None,
    ) -> None:
        self.disk_name = os.path.basename(disk_name)
        if not disks.NAME.fullmatch(self.disk_name):
            raise Denied(
                "hook.launch.disk",
                f"a trusted instance has no disk {self.disk_name!r}",
            )
        self._client = client
        self._launcher = launcher
        self._rescues = rescues
        self._instance = instance
        self._copies = CopyClient(client)
        directory = libvirt_utils.get_instance_path(instance)
        super().__init__(
            os.path.join(directory, self.disk_name),
            "file",
            "qcow2",
            is_block_dev=False,
            disk_info_mapping=disk_info_mapping,
        )
        self.disk_info_path = os.path.join(directory, "disk.info")
        self.resolve_driver_format()

    def create_image(
        self,
        prepare_template: Any,
        base: str,
        size: int | None,
        safe: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Have the base fetched and the overlay made; any number of times.

        ``Image.cache`` looks for a base without our suffix, never finds it,
        and so calls this each time. ``prepare_template`` would convert the
        image, and is not used.

        :raises MHError: everything that refuses.
        """
        if self.disk_name != disks.ROOT:
            # made together with the root disk, or before the rescue
            if ours.header(self.path) is not ours.Header.ENCRYPTED:
                raise Denied(
                    "hook.image.overlay",
                    f"the agent left no encrypted disk {self.disk_name!r}",
                )
            if self._launcher.arriving(self._instance.uuid):
                # a flavor with a larger ephemeral disk
                self.resize_image(size or 0)
            return
        image: str = kwargs.get("image_id") or ""
        own = bool(image) and image == self._instance.image_ref
        arriving = self._launcher.arriving(self._instance.uuid)
        here = self.exists() and os.path.exists(launch.base_path(image))
        if own and here and not arriving:
            self.resize_image(size or 0)
            return
        if self._without_base():
            if arriving:
                self._client.make(self._instance.uuid, downloaded=False)
            self.resize_image(size or 0)
            return
        if not own:
            raise Denied(
                "hook.image.reference",
                "the disk's base is not the instance's own image",
            )
        self._launcher.make(
            kwargs["context"], self._instance, kwargs.get("trusted_certs")
        )
        if not self.exists() or ours.header(self.path) is ours.Header.PLAIN:
            raise Denied(
                "hook.image.overlay", "the agent left no encrypted disk"
            )
        self.resize_image(size or 0)

    def _without_base(self) -> bool:
        """The disk is there, and was flattened: nothing is to be fetched.

        :raises MHError: the agent's.
        """
        return self.exists() and any(
            disk.name == self.disk_name and not disk.base
            for disk in self._client.disks(self._instance.uuid)
        )

    def flatten(self) -> None:
        """nova asks at unshelve, before it deletes the image.

        :raises MHError: the agent's.
        """
        self._copies.flatten(self._instance.uuid)
        try:
            self._copies.wait(self._instance.uuid)
        finally:
            self._copies.end(self._instance.uuid)

    def resize_image(self, size: int) -> None:
        """Nothing, where the disk is large enough: the overlay is made with
        the flavor's size. nova asks at every hard reboot.

        :raises MHError: the agent's, which makes a disk larger only when it
            has just arrived.
        """
        if size > self.get_disk_size(self.path):
            self._client.resize(self._instance.uuid, self.disk_name, size)

    def rollback_to_snap(self, name: str) -> None:
        """The only thing nova does with it: a reverted resize, when the
        disk as it was before has its name again.

        :raises MHError: the agent's.
        """
        self._launcher.came_back(self._instance)

    def libvirt_info(self, *args: Any, **kwargs: Any) -> xml.GuestDisk:
        """nova's disk element with the secrets the agent names.

        :raises Denied: ``hook.image.overlay``; the agent's.
        """
        disk = super().libvirt_info(*args, **kwargs)
        for made in self._client.disks(self._instance.uuid):
            if made.name == self.disk_name:
                base = None
                if made.base:
                    base = (launch.base_path(self._image), made.base_secret)
                if made.name.startswith(disks.CONFIG):
                    disk.readonly = True
                return xml.GuestDisk.over(
                    disk, made.overlay_secret, base, made.base_format
                )
        raise Denied(
            "hook.image.overlay",
            "the agent knows no disk of this name for the instance",
        )

    @property
    def _image(self) -> str:
        """Glance id of the image that the disk lies over."""
        if self.disk_name == disks.RESCUE:
            return self._rescues.image(self._instance.uuid)
        return str(self._instance.image_ref)

    def snapshot_extract(self, target: str, out_format: str) -> None:
        """nova's own snapshot, which our driver never comes to."""
        raise Denied(
            "hook.refused.snapshot", "a snapshot would be in the clear"
        )

    def get_model(self, connection: Any) -> Any:
        """nova would open the disk on the host, e.g. to inject files."""
        raise exception.NovaException(
            "An encrypted disk cannot be opened on the host "
            "[hook.launch.injection]"
        )

    @staticmethod
    def is_file_in_instance_path() -> bool:
        return True
