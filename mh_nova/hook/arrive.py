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

"""Disks that are there before the agent of this host knows of them.

They come from another host, or are those of before a resize that is
reverted.  Either way the agent looks at them, has the keys released for
them, and finds that they open, before anything is done with them.
"""

import base64
import binascii
import contextlib
import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import nova.conf
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_log import log as logging

from mh_core.errors import Denied, InputError, MHError
from mh_nova.hook import disks, firmware, ours
from mh_nova.hook.agent_client import AgentClient, PrepareRequest
from mh_nova.hook.description import Description

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
PART = ".part"


def user_data_digest(user_data: str | None) -> str:
    """SHA-256 (hex) of what the guest gets as user data; "" for none.

    :param user_data: base64, as nova keeps it.
    :raises InputError: ``hook.launch.user-data``.
    """
    if not user_data:
        return ""
    try:
        data = base64.b64decode(user_data)
    except (binascii.Error, ValueError) as exc:
        raise InputError(
            "hook.launch.user-data", "the user data is not base64"
        ) from exc
    return hashlib.sha256(data).hexdigest()


class Arrivals(ABC):
    """What is under way, and what for."""

    def __init__(self, client: AgentClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        # instance: purpose, and the host its disks came from
        self._under_way: dict[str, tuple[str, str]] = {}

    @abstractmethod
    def prepare(
        self, context: Any, instance: Any, purpose: str, size: int = 0
    ) -> Any:
        """With what the image service says."""

    def prepared(self, instance: str) -> bool:
        with self._lock:
            return instance in self._under_way

    @contextlib.contextmanager
    def _purposely(
        self, instance: str, purpose: str, source: str = ""
    ) -> Iterator[None]:
        with self._lock:
            self._under_way[instance] = (purpose, source)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.pop(instance, None)

    def purpose(self, instance: str) -> str:
        """What the instance is about to be started for."""
        with self._lock:
            return self._under_way.get(instance, ("start", ""))[0]

    def arriving(self, instance: str) -> bool:
        """Its disks were made elsewhere, and are looked at before use."""
        return self.purpose(instance) in ("migrate-in", "resize")

    def launching(self, instance: str) -> bool:
        return self.purpose(instance) == "launch"

    @contextlib.contextmanager
    def arrive(
        self,
        context: Any,
        instance: Any,
        purpose: str,
        described: Description | None,
        source: str,
    ) -> Iterator[None]:
        """Around the arrival of disks, which are there already.

        :param described: by the agent they come from; where that could not,
            the image service is asked.
        :param source: host that has the base as well, should the image
            service have it no longer; empty: none.
        :raises MHError: as :meth:`prepare`.
        """
        if described is None:
            size = ours.virtual_size(ours.root_disk(instance))
            self.prepare(context, instance, purpose, size)
        else:
            self._prepare_described(instance, purpose, described)
        try:
            with self._purposely(instance.uuid, purpose, source):
                yield
        finally:
            self._arrived(instance)

    @contextlib.contextmanager
    def come_back(self, instance: Any) -> Iterator[None]:
        """Around the return of disks that had been set aside here;
        :meth:`came_back` is called meanwhile, when they are there."""
        try:
            with self._purposely(instance.uuid, "start"):
                yield
        finally:
            self._arrived(instance)

    def came_back(self, instance: Any) -> None:
        """Have the agent look at them: they may be others, of other sizes,
        than its record says.

        :raises MHError: the agent's.
        """
        described = self._client.describe(instance.uuid)
        root = tuple(disk for disk in described.disks if disk[0] == disks.ROOT)
        described = replace(described, disks=root + disks.there(instance))
        self._prepare_described(instance, "start", described)
        self._client.make(instance.uuid, downloaded=False)

    def _prepare_described(
        self, instance: Any, purpose: str, described: Description
    ) -> None:
        # what was unshelved may be of a snapshot that is no more
        if described.based and described.image != instance.image_ref:
            raise Denied(
                "hook.image.reference",
                "the disk's base is not the instance's own image",
            )
        self._client.prepare(
            PrepareRequest(
                instance=instance.uuid,
                image=described.image,
                project=instance.project_id,
                user=instance.user_id,
                host=CONF.host,
                key_url=described.key_url,
                key_id=described.key_id,
                manifest=described.manifest,
                # spent when it was launched
                ticket="",
                compat=described.compat,
                purpose=purpose,
                virtual_size=0,
                disks=described.disks,
                user_data_digest=user_data_digest(instance.user_data),
                based=described.based,
                vtpm=bool(firmware.vtpm(instance)),
            )
        )

    def _arrived(self, instance: Any) -> None:
        """The agent lets go by itself, too, only later."""
        try:
            self._client.arrived(instance.uuid)
        except MHError as error:
            LOG.warning(
                "The agent could not be told of the arrival: %s",
                error,
                instance=instance,
            )

    def copy(self, instance: Any, base: str, missing: Denied) -> None:
        """From the host that the disk came from, which is believed no more
        than Glance: the agent hashes what arrives.

        :raises Denied: ``missing``.
        """
        if not self._copied(instance, base, base + PART):
            raise missing

    def _copied(self, instance: Any, path: str, to: str) -> bool:
        """From the host that the instance comes from, where that is
        another one."""
        with self._lock:
            source = self._under_way.get(instance.uuid, ("", ""))[1]
        if not source or source == CONF.host:
            return False
        LOG.info("Copying %s from %s", path, source, instance=instance)
        try:
            libvirt_utils.copy_image(
                src=path, dest=to, host=source, receive=True
            )
        except (OSError, processutils.ProcessExecutionError) as exc:
            LOG.warning("Not copied: %s", exc, instance=instance)
            return False
        return True
