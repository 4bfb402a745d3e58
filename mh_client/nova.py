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
"""The few calls to nova that a trusted launch needs, as a member."""

import uuid
from dataclasses import dataclass
from typing import Any

from mh_client.flavors import ComputeApi, checked
from mh_core.errors import Conflict, NotFound, VerificationError

EVENT = "client.nova"
#: First version with ``networks: none``.
MICROVERSION = "2.37"


@dataclass(frozen=True)
class Server:
    """:param host: name of the host for who may see it, else its hash."""

    id: str
    name: str
    status: str
    task: str
    project: str
    image: str
    host: str
    fault: str
    metadata: dict[str, str]

    @classmethod
    def parse(cls, document: dict[str, Any]) -> "Server":
        image = document.get("image")
        fault = document.get("fault")
        return cls(
            id=str(document["id"]),
            name=str(document.get("name", "")),
            status=str(document.get("status", "UNKNOWN")),
            task=str(document.get("OS-EXT-STS:task_state") or ""),
            project=str(document.get("tenant_id", "")),
            image=str(image.get("id", "")) if isinstance(image, dict) else "",
            host=str(
                document.get("OS-EXT-SRV-ATTR:host")
                or document.get("hostId")
                or ""
            ),
            fault=str(fault.get("message", ""))
            if isinstance(fault, dict)
            else "",
            metadata=dict(document.get("metadata") or {}),
        )


class Nova:
    def __init__(self, api: ComputeApi) -> None:
        self._api = api

    def flavor(self, name: str) -> str:
        """Id of a flavor, by id or name.

        :raises NotFound: ``client.nova.flavor``.
        """
        found = self._list("/flavors/detail", "flavors", {})
        for member in ("id", "name"):
            for one in found:
                if one.get(member) == name:
                    return str(one["id"])
        raise NotFound(EVENT + ".flavor", f"no flavor {name!r}")

    def create(self, body: dict[str, Any]) -> str:
        """Id of the new server.

        :raises MHError: ``client.nova.create``.
        """
        answer = checked(
            self._api.post(
                "/servers",
                json={"server": body},
                microversion=MICROVERSION,
                raise_exc=False,
            ),
            EVENT + ".create",
        )
        return str(answer.json()["server"]["id"])

    def act(self, server_id: str, action: str, body: dict[str, Any]) -> None:
        """Ask for an action, e.g. ``rescue``.

        :raises MHError: ``client.nova.<action>``.
        """
        checked(
            self._api.post(
                f"/servers/{server_id}/action",
                json={action: body},
                microversion=MICROVERSION,
                raise_exc=False,
            ),
            f"{EVENT}.{action}",
        )

    def tell(self, server_id: str, metadata: dict[str, str]) -> None:
        """Set items of a server's metadata; others stay.

        :raises MHError: ``client.nova.metadata``.
        """
        checked(
            self._api.post(
                f"/servers/{server_id}/metadata",
                json={"metadata": metadata},
                microversion=MICROVERSION,
                raise_exc=False,
            ),
            EVENT + ".metadata",
        )

    def server(self, server_id: str) -> Server:
        """:raises NotFound: ``client.nova.server``.
        :raises VerificationError: ``client.nova.another``."""
        response = self._get(f"/servers/{server_id}")
        if response.status_code == 404:
            raise NotFound(EVENT + ".server", f"no server {server_id!r}")
        answer = checked(response, EVENT + ".server")
        return _asked(Server.parse(answer.json()["server"]), server_id)

    def find(self, name: str) -> Server:
        """By id, or by a name that is used once.

        :raises NotFound: ``client.nova.server``.
        :raises Conflict: ``client.nova.server``.
        :raises VerificationError: ``client.nova.another``.
        """
        response = self._get(f"/servers/{name}")
        if response.status_code == 200:
            return _asked(Server.parse(response.json()["server"]), name)
        found = [
            one
            for one in self._list("/servers", "servers", {"name": name})
            if one.get("name") == name
        ]
        if not found:
            raise NotFound(EVENT + ".server", f"no server {name!r}")
        if len(found) > 1:
            raise Conflict(EVENT + ".server", f"several servers {name!r}")
        return self.server(str(found[0]["id"]))

    def _get(self, path: str, **params: str) -> Any:
        return self._api.get(
            path, params=params, microversion=MICROVERSION, raise_exc=False
        )

    def _list(
        self, path: str, member: str, params: dict[str, str]
    ) -> list[dict[str, Any]]:
        answer = checked(self._get(path, **params), EVENT + ".list")
        return list(answer.json()[member])


def _asked(server: Server, name: str) -> Server:
    """The server asked for, and no other one that would look better."""
    try:
        by_name = str(uuid.UUID(name)) != name and server.name == name
    except ValueError:
        by_name = server.name == name
    if server.id != name and not by_name:
        raise VerificationError(
            EVENT + ".another", f"asked for {name!r}, nova shows another"
        )
    return server
