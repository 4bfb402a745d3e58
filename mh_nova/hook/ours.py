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

"""Ours or not: decided by the host's facts; metadata can only add to it."""

import os
import struct
from enum import Enum
from typing import Any

from nova.compute import task_states
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from mh_core.errors import Denied, MHError
from mh_core.image import luks1, qcow2
from mh_core.image.qcow2_header import CRYPT_LUKS
from mh_nova.hook import properties
from mh_nova.hook.agent_client import AgentClient, Known

LOG = logging.getLogger(__name__)
_HEAD = 36
#: Longest value of nova's system_metadata, characters.
_NOVA_CUTS = 255
#: A record the agent may have is then of the instance's life before.
_LAUNCHING = (task_states.SPAWNING, task_states.REBUILD_SPAWNING)


class Header(Enum):
    """What the first bytes of a disk file say."""

    ABSENT = "absent"
    PLAIN = "plain"
    ENCRYPTED = "encrypted"
    UNREADABLE = "unreadable"


def header(path: str) -> Header:
    """Is the file a qcow2 image encrypted with LUKS, or raw LUKS?

    A first look, cheap enough for every start; not the strict parser, which
    the agent runs before each use.
    """
    try:
        with open(path, "rb") as disk:
            head = disk.read(_HEAD)
    except FileNotFoundError:
        return Header.ABSENT
    except OSError:
        return Header.UNREADABLE
    if head.startswith(luks1.MAGIC):
        return Header.ENCRYPTED
    if len(head) < _HEAD or head[:4] != b"QFI\xfb":
        return Header.PLAIN
    (method,) = struct.unpack(">I", head[32:36])
    return Header.ENCRYPTED if method == CRYPT_LUKS else Header.PLAIN


def virtual_size(path: str) -> int:
    """Bytes of an encrypted disk, as its header says.

    :raises MHError: ``hook.image.overlay``, ``core.image.qcow2.*``.
    """
    try:
        with open(path, "rb") as disk:
            return qcow2.read_header(disk.fileno()).virtual_size
    except OSError as exc:
        raise Denied(
            "hook.image.overlay", "the instance has no disk here"
        ) from exc


def root_disk(instance: Any) -> str:
    """Path of the instance's root disk on this host."""
    return os.path.join(libvirt_utils.get_instance_path(instance), "disk")


def _turned(what: str) -> Denied:
    return Denied(
        "hook.ours.turned",
        f"its metadata was changed: its image {what}; the instance can be "
        "stopped and deleted only",
    )


class Ours:
    """The decision, for one instance at a time."""

    def __init__(self, client: AgentClient) -> None:
        self._client = client

    def claimed(self, instance: Any) -> bool:
        """By the cloud's metadata alone, for where nothing exists yet."""
        return properties.claimed(instance.system_metadata)

    def decide(self, instance: Any) -> bool:
        """May the instance's operation take the trusted path (True) or
        stock nova's (False)?

        1. metadata says ours: ours, whatever the host knows; but where it
           names another image, key or key server than the agent launched
           it from, refused: somebody turned it;
        2. the disk's own header, or the agent, says ours while metadata
           does not: refused, because somebody took the protection away;
        3. neither: stock nova's.

        :raises Denied: ``hook.ours.disagree``, ``hook.ours.turned``.
        :raises MHError: the agent is needed to tell, and does not.
        """
        if self.claimed(instance):
            if instance.task_state not in _LAUNCHING:
                self._same(instance, self._client.known(instance.uuid))
            return True
        if self._by_host(instance):
            raise Denied(
                "hook.ours.disagree",
                "this host holds a trusted instance that its metadata does "
                "not mark as one; it can be stopped and deleted only",
            )
        return False

    def rebuild(self, instance: Any) -> None:
        """Before a rebuild destroys the disk: nova's API has taken over the
        new image's properties by now, and for the same image they must be
        what they were.

        :raises Denied: ``hook.ours.turned``.
        :raises MHError: the agent is needed to tell, and does not.
        """
        if not self.protected(instance):
            return
        known = self._client.known(instance.uuid)
        if known.image != instance.image_ref:
            # another image: a launch like any other
            return
        if not self.claimed(instance):
            raise _turned("is no longer marked as encrypted")
        self._same(instance, known)

    @staticmethod
    def _same(instance: Any, known: Known) -> None:
        if not known.image:
            return
        said = instance.system_metadata or {}

        def value(name: str) -> str:
            return str(said.get(properties.INHERITED + name, ""))

        if instance.image_ref != known.image:
            raise _turned("is another one")
        if value("os_encrypt_key_id") != known.key_id:
            raise _turned("has another key")
        # nova cuts values
        if value("mh_key_url") != known.key_url[:_NOVA_CUTS]:
            raise _turned("has another key server")

    def protected(self, instance: Any) -> bool:
        """Is there any sign that it is ours? For refusals and clean-up,
        which must not depend on an agent that answers."""
        try:
            return self.claimed(instance) or self._by_host(instance)
        except MHError:
            return True

    def _by_host(self, instance: Any) -> bool:
        found = header(root_disk(instance))
        if found is Header.ENCRYPTED:
            return True
        try:
            return self._client.ours(instance.uuid)
        except MHError as error:
            if found is Header.UNREADABLE:
                # cannot be told apart: deny
                raise
            # a plain disk, or none: stock nova goes on without an agent
            LOG.debug("Agent not asked: %s", error, instance=instance)
            return False
