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
"""A rescue, asked for with a ticket and followed to its end."""

import time
from collections.abc import Callable

from mh_client.nova import Server
from mh_client.servers import REFUSED, Servers
from mh_client.steps import Steps
from mh_core.errors import Denied, MHError

EVENT = "client.rescue"
#: Server metadata: a launch ticket for the rescue image's key.
TICKET = "mh_rescue_ticket"
#: Seconds between looks.
INTERVAL = 0.5
#: Seconds that a refused server may be in ERROR, which nova sets before the
#: host puts its state back.
BACK = 10.0


class Rescue:
    """
    :param clock: seconds, monotonic.
    """

    def __init__(
        self,
        servers: Servers,
        steps: Steps,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._servers = servers
        self._steps = steps
        self._clock = clock
        self._sleep = sleep

    def run(self, name: str, image_name: str | None, wait: int) -> Server:
        """Boot a server from a rescue disk, its own disk beside it.

        1. the rescue image's manifest is the tenant's own;
        2. a ticket for it, which the server's metadata carries;
        3. the rescue is asked for;
        4. until the server is in RESCUE, or as it was: then it was refused.

        :param image_name: ``None``: the server's own image, whose key
            needs no other ticket.
        :param wait: seconds; 0 does not wait.
        :raises Denied: ``client.rescue.refused``; the server runs on.
        :raises MHError: ``client.rescue.timeout|failed`` beside those of
            the services.
        """
        server = self._servers.nova.find(name)
        image = self._servers.images.show(image_name or server.image)
        # 1
        self._steps.tick("image", f"{image.id}, manifest verified")
        key_id = image.properties.key_id
        # 2
        if image.id != server.image:
            ticket = self._servers.kms.ticket(key_id, [image.digest])
            word = ticket.secret.reveal().decode()
            self._servers.nova.tell(server.id, {TICKET: word})
            self._steps.tick("ticket", "for this manifest")
        # 3
        asked = {"rescue_image_ref": image.id}
        self._servers.nova.act(server.id, "rescue", asked)
        self._steps.tick("requested", server.id)
        # 4
        return self._follow(server, key_id, wait) if wait > 0 else server

    def _follow(self, before: Server, key_id: str, wait: int) -> Server:
        end = self._clock() + wait
        error = 0.0
        while True:
            server = self._servers.nova.server(before.id)
            if not server.task and server.status == "ERROR":
                error = error or self._clock()
                if self._clock() - error > BACK:
                    break
            elif not server.task and server.status != before.status:
                break
            elif not server.task:
                raise Denied(
                    EVENT + ".refused",
                    f"the server stayed {server.status}: "
                    + self._why(server, key_id),
                )
            if self._clock() > end:
                raise MHError(
                    EVENT + ".timeout",
                    f"server {server.id} is {server.status} ({server.task}) "
                    f"after {wait} s",
                )
            self._sleep(INTERVAL)
        if server.status != "RESCUE":
            raise MHError(
                EVENT + ".failed",
                f"the server is {server.status}: {self._why(server, key_id)}",
            )
        self._steps.tick("started", "RESCUE")
        return server

    def _why(self, server: Server, key_id: str) -> str:
        """The nearest to a cause that anybody tells a member."""
        decisions = list(self._servers.decisions(key_id, server.id))
        if decisions and not decisions[-1].granted:
            last = decisions[-1]
            return f"key refused: {last.detail} [{last.event}]"
        return (
            server.fault
            or server.metadata.get(REFUSED, "")
            or "the host refused it; its administrator sees why in the "
            "server's action log"
        )
