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
"""Getting a rescue disk: an encrypted image of its own, or a plain one.

Everything that can be refused is asked here, while the guest still runs.
"""

import contextlib
import glob
import os
import threading
from collections.abc import Iterator
from typing import Any

import nova.conf
from nova import exception, utils
from nova.virt import configdrive, images
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging
from oslo_utils import fileutils

from mh_core.errors import Denied, MHError
from mh_nova.hook import disks, launch, properties
from mh_nova.hook.agent_client import AgentClient, PrepareRequest
from mh_nova.hook.arrive import user_data_digest
from mh_nova.hook.disk_client import DiskClient

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
#: Server metadata: a launch ticket for the rescue image's key.
TICKET = "mh_rescue_ticket"
PURPOSE = "rescue"
PLAIN = "rescue-plain"
UNRESCUE = "unrescue.xml"


class Rescues:
    """Rescues that this process is about to start."""

    def __init__(self, client: AgentClient) -> None:
        self._client = DiskClient(client)
        self._lock = threading.Lock()
        self._images: dict[str, tuple[str, str]] = {}
        #: Instance to (timeout, interval), seconds, of the power-off that
        #: nova asked for and :meth:`rescue`'s caller does.
        self.waits: dict[str, tuple[int, int]] = {}

    def purpose(self, instance: str) -> str:
        """Of a start that is under way; empty: no rescue is."""
        with self._lock:
            return self._images.get(instance, ("", ""))[0]

    def image(self, instance: str) -> str:
        """Glance id of the encrypted rescue image; empty: none."""
        with self._lock:
            purpose, image = self._images.get(instance, ("", ""))
        return image if purpose == PURPOSE else ""

    @contextlib.contextmanager
    def rescue(
        self, context: Any, instance: Any, image_id: str
    ) -> Iterator[None]:
        """Around the whole of a rescue: asked and made before, nothing of
        it left where it fails.

        1. an image that is not marked as encrypted: only where the release
           policy of the instance's key says so;
        2. else its base is downloaded, and the agent decides and makes the
           rescue disk.

        :raises MHError: ``hook.image.*``, the agent's.
        """
        try:
            image = images.IMAGE_API.get(context, image_id)
        except exception.ImageNotFound as exc:
            raise Denied(
                "hook.image.missing", "the rescue image is not there"
            ) from exc
        self.sweep(instance)
        done = False
        try:
            encrypted = properties.VERSION in (image.get("properties") or {})
            if encrypted:
                self._make(context, instance, properties.read(image))
            else:
                self._client.allow_plain_rescue(instance.uuid)
            with self._lock:
                self._images[instance.uuid] = (
                    PURPOSE if encrypted else PLAIN,
                    image_id,
                )
            yield
            done = True
        finally:
            with self._lock:
                self._images.pop(instance.uuid, None)
            if not done:
                self._end(instance)
                self.sweep(instance)

    def _end(self, instance: Any) -> None:
        """Or the agent holds the instance to be busy until its next
        start."""
        try:
            self._client.end_rescue(instance.uuid)
        except MHError as error:
            LOG.warning(
                "The agent could not be told that the rescue is over: %s",
                error,
                instance=instance,
            )

    def _make(
        self, context: Any, instance: Any, facts: properties.ImageFacts
    ) -> None:
        more: disks.Disks = ()
        if configdrive.required_by(instance):
            more = (("disk.config.rescue", 0),)
        self._client.prepare_rescue(
            PrepareRequest(
                instance=instance.uuid,
                image=facts.image,
                project=instance.project_id,
                user=instance.user_id,
                host=CONF.host,
                key_url=facts.key_url,
                key_id=facts.key_id,
                manifest=facts.manifest,
                ticket=(instance.metadata or {}).get(TICKET, ""),
                compat=facts.compat,
                purpose=PURPOSE,
                virtual_size=facts.virtual_size,
                disks=((disks.RESCUE, facts.virtual_size), *more),
                user_data_digest=user_data_digest(instance.user_data),
            )
        )
        base = launch.base_path(facts.image)
        fileutils.ensure_tree(os.path.dirname(base))

        @utils.synchronized(
            os.path.basename(base),
            external=True,
            lock_path=os.path.join(CONF.instances_path, "locks"),
        )
        def make() -> None:
            there = os.path.exists(base)
            try:
                if not there:
                    launch.Launcher.download(
                        context, facts.image, base + launch.PART, None
                    )
                self._client.make_rescue(instance.uuid, downloaded=not there)
            finally:
                fileutils.delete_if_exists(base + launch.PART)

        make()

    @staticmethod
    def sweep(instance: Any) -> None:
        """What a rescue that was refused or failed has left."""
        directory = libvirt_utils.get_instance_path(instance)
        left = [
            *glob.glob(os.path.join(glob.escape(directory), "*.rescue")),
            os.path.join(directory, UNRESCUE),
        ]
        for path in left:
            with contextlib.suppress(IsADirectoryError):
                fileutils.delete_if_exists(path)
