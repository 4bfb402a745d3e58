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
"""Verbs of the agent about volumes."""

from mh_core.fields import Fields
from mh_nova.hook.agent_client import AgentClient

_EVENT = r"[a-z0-9]+(?:[.\-_][a-z0-9]+)*"


class VolumeClient:
    """Raises as :class:`~mh_nova.hook.agent_client.AgentClient`."""

    def __init__(self, client: AgentClient) -> None:
        self._client = client

    def attach(self, instance: str, xml: str) -> str:
        """May this be plugged in?  Its secret is in libvirt afterwards.

        :param xml: the ``<disk>``.
        :returns: the event id the agent recorded it by.
        """
        return self._client.answer(
            "attach", {"instance": instance, "xml": xml}, _event, True
        )

    def attached(self, instance: str, ok: bool) -> None:
        """It is, or could not be, plugged in; the secret goes."""
        self._client.answer(
            "attached", {"instance": instance, "ok": ok}, lambda fields: None
        )


def _event(fields: Fields) -> str:
    fields.text("detail", maximum=4096)
    return fields.text("event", pattern=_EVENT, maximum=128)
