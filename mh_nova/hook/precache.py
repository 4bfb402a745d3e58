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
"""A base before any launch: nova's image precaching."""

import os
from collections.abc import Mapping
from typing import Any

import nova.conf
from nova import utils
from oslo_log import log as logging
from oslo_utils import fileutils

from mh_core.errors import Denied, MHError
from mh_nova.hook import launch, properties
from mh_nova.hook.agent_client import AgentClient

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)


def precache(
    client: AgentClient, context: Any, image: Mapping[str, Any]
) -> bool:
    """Have the ciphertext of an image in the cache, hashed by the agent.

    :param image: as nova's image API returns it.
    :returns: False: it was there; its time stamp is new.
    :raises MHError: ``hook.refused.cache-image``: an OVA; as
        :func:`~mh_nova.hook.properties.read`; ``hook.image.download``; the
        agent's.
    """
    facts = properties.read(image)
    if facts.form == "ova":
        raise Denied(
            "hook.refused.cache-image",
            "the disk of an OVA is taken out when it is launched",
        )
    base = launch.base_path(facts.image)
    part = base + launch.PART
    fileutils.ensure_tree(os.path.dirname(base))

    @utils.synchronized(
        os.path.basename(base),
        external=True,
        lock_path=os.path.join(CONF.instances_path, "locks"),
    )
    def fetch() -> bool:
        if os.path.exists(base):
            launch.Launcher._touch(base)
            return False
        client.cache(facts.image, facts.manifest, "begin")
        done = False
        try:
            launch.Launcher.download(context, facts.image, part, None)
            client.cache(facts.image, facts.manifest, "end")
            done = True
        finally:
            fileutils.delete_if_exists(part)
            if not done:
                _failed(client, facts)
        return True

    return bool(fetch())


def _failed(client: AgentClient, facts: properties.ImageFacts) -> None:
    try:
        client.cache(facts.image, facts.manifest, "failed")
    except MHError as error:
        LOG.warning("The agent still waits for an image: %s", error)
