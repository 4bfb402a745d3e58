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
"""What became of what nova was asked for: its own word, and what is seen."""

from __future__ import annotations

import dataclasses
import time
import typing

from tests.minicloud.process import CloudError
from tests.minicloud.world import World


@dataclasses.dataclass(frozen=True)
class Request:
    """
    :param id: nova's, in its action log.
    :param host: where the server was.
    :param made: the image that is to be, of a snapshot.
    :param answer: nova's, where it is a refusal.
    """

    server: str
    id: str
    accepted: bool
    host: str
    made: str
    answer: str


class Outcomes:
    def __init__(self, world: World) -> None:
        self._world = world

    def ask(self, conn: typing.Any, server: str, body: typing.Any) -> Request:
        """:raises CloudError: nova itself failed."""
        host = self._host(server)
        answer = conn.compute.post(f"/servers/{server}/action", json=body)
        if answer.status_code >= 500:
            raise CloudError(f"{body}: {answer.text[:300]}")
        accepted = answer.status_code < 400
        made = ""
        if accepted and "createImage" in body:
            made = answer.json()["image_id"]
        return Request(
            server,
            answer.headers["x-openstack-request-id"],
            accepted,
            host,
            made,
            "" if accepted else answer.text[:300],
        )

    def over(self, request: Request, patience: float) -> list[str]:
        """The results of the action's events, once all of them have one;
        empty where that takes longer.

        :param patience: seconds.
        """
        end = time.monotonic() + patience
        while True:
            events = self._action(request).get("events", [])
            if events and all(one["finish_time"] for one in events):
                return [one["result"] for one in events]
            if time.monotonic() > end:
                return []
            time.sleep(0.3)

    def done(self, request: Request, name: str, patience: float) -> bool:
        """Whether nova did it, so far as the state cannot tell.

        :param patience: seconds for nova to say so.
        """
        if not request.accepted:
            return False
        results = self.over(request, patience)
        if not results or any(one != "Success" for one in results):
            return False
        if name == "live migration":
            return self._host(request.server) != request.host
        if request.made:
            found = self._world.tenant.image.get(f"/images/{request.made}")
            return bool(
                found.status_code == 200 and found.json()["status"] == "active"
            )
        return True

    def reason(self, request: Request) -> str:
        """Why it was not done, as well as nova knows."""
        if not request.accepted:
            return request.answer
        action = self._action(request)
        details = [
            str(one.get("details") or one.get("traceback") or "")[-300:]
            for one in action.get("events", [])
            if one["result"] != "Success"
        ]
        return f"{action.get('message')} {' '.join(details)}".strip()

    def _action(self, request: Request) -> dict[str, typing.Any]:
        answer = self._world.admin.compute.get(
            f"/servers/{request.server}/os-instance-actions/{request.id}"
        )
        if answer.status_code != 200:
            return {}
        found: dict[str, typing.Any] = answer.json()["instanceAction"]
        return found

    def _host(self, server: str) -> str:
        found = self._world.admin.compute.get_server(server)
        return str(found.hypervisor_hostname)
