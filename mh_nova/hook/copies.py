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
"""Client of the agent's verbs about copies: snapshot and flatten."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mh_core.fields import Fields
from mh_core.manifest import MAX_PROPERTY
from mh_nova.hook.agent_client import AgentClient

_JWS = r"[A-Za-z0-9_\-]+\.[A-Za-z0-9_\-]+\.[A-Za-z0-9_\-]+"


@dataclass(frozen=True)
class Made:
    """What the agent made of a disk: all that an image's properties need.

    :param size: bytes of the file, ``virtual_size``: that the guest sees.
    :param sha512: of the file, hex.
    """

    key_id: str
    key_url: str
    manifest: str
    size: int
    virtual_size: int
    sha512: str

    @classmethod
    def parse(cls, value: Any) -> "Made | None":
        """:raises InputError: ``hook.agent.answer``."""
        if value == {}:
            return None
        fields = Fields(value, "hook.agent.answer")
        made = cls(
            key_id=fields.uuid("key_id"),
            key_url=fields.text(
                "key_url", maximum=2048, pattern=r"https?://[!-~]+"
            ),
            manifest=fields.text(
                "manifest", maximum=MAX_PROPERTY, pattern=_JWS
            ),
            size=fields.integer("size", 1, 1 << 50),
            virtual_size=fields.integer("virtual_size", 512, 1 << 50),
            sha512=fields.hex("sha512", 64).hex(),
        )
        fields.end()
        return made


class CopyClient:
    """One method for each verb; each raises MHError and nothing else.

    :param sleep: seconds, between two looks.
    """

    def __init__(
        self,
        client: AgentClient,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._sleep = sleep

    def check(self, instance: str) -> None:
        """Would a snapshot be allowed?"""
        self._ask("snapshot-check", instance)

    def snapshot(self, instance: str, image: str) -> None:
        self._ask("snapshot", instance, image=image)

    def flatten(self, instance: str) -> None:
        self._ask("flatten", instance)

    def wait(self, instance: str) -> Made | None:
        """Until the copy is made, however long that takes; its end by a
        refusal is the refusal."""
        while True:
            done, made = self._client.answer(
                "copy", {"instance": instance}, _copy, patient=True
            )
            if done:
                return made
            self._sleep(0.2)

    def storing(self, instance: str) -> None:
        """Before the image is stored: nothing of it is yet."""
        self._ask("storing", instance)

    def register(self, instance: str) -> None:
        self._ask("register", instance)

    def end(self, instance: str) -> None:
        self._ask("end", instance)

    def sweep(self) -> None:
        """nova-compute begins anew."""
        self._client.answer("sweep", {}, lambda fields: None, patient=True)

    def _ask(self, verb: str, instance: str, **more: str) -> None:
        self._client.answer(
            verb,
            {"instance": instance, **more},
            lambda fields: None,
            patient=True,
        )


def _copy(fields: Fields) -> tuple[bool, Made | None]:
    return fields.boolean("done"), Made.parse(fields.object("image"))
