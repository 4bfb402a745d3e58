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
"""Client of the agent's verbs about config drives and rescue disks."""

from collections.abc import Mapping
from typing import Any

from mh_core.encoding import b64u
from mh_core.fields import Fields
from mh_nova.hook.agent_client import AgentClient, AgentDisk, PrepareRequest


class DiskClient:
    """One method for each verb; each raises MHError and nothing else."""

    def __init__(self, client: AgentClient) -> None:
        self._client = client

    def drive(
        self, instance: str, name: str, files: Mapping[str, bytes]
    ) -> None:
        """:param files: path to content; equal contents travel once."""
        paths: dict[bytes, list[str]] = {}
        for path, data in files.items():
            paths.setdefault(data, []).append(path)
        sent = [
            {"paths": names, "data": b64u(data)}
            for data, names in paths.items()
        ]
        self._client.answer(
            "drive",
            {"instance": instance, "name": name, "files": sent},
            _nothing,
        )

    def prepare_rescue(self, request: PrepareRequest) -> None:
        self._client.answer("prepare-rescue", request.to_dict(), _nothing)

    def make_rescue(self, instance: str, downloaded: bool) -> None:
        members = {"instance": instance, "downloaded": downloaded}
        self._client.answer("make-rescue", members, _disks, patient=True)

    def allow_plain_rescue(self, instance: str) -> None:
        self._client.answer(
            "allow-plain-rescue",
            {"instance": instance},
            _nothing,
            patient=True,
        )

    def end_rescue(self, instance: str) -> None:
        self._client.answer("end-rescue", {"instance": instance}, _nothing)


def _nothing(fields: Fields) -> None:
    return None


def _disks(fields: Fields) -> Any:
    return fields.list("disks", AgentDisk.parse, 16)
