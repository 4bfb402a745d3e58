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
"""A trusted launch, followed step by step."""

import base64
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mh_client.audit import entry
from mh_client.images import TrustedImage
from mh_client.nova import Server
from mh_client.servers import NO_HOST, REFUSED, Finding, Servers
from mh_client.steps import Steps
from mh_core.errors import InputError, MHError

EVENT = "client.launch"
#: Seconds between looks.
INTERVAL = 0.5
#: Seconds to wait for the VM report once the guest runs.
REPORT_WAIT = 30.0
MAX_USER_DATA = 49149


@dataclass(frozen=True)
class NewServer:
    """
    :param networks: ``none``, ``auto``, or a tuple of network ids.
    :param wait: seconds to wait for ACTIVE; 0 does not wait.
    """

    name: str
    image: str
    flavor: str
    availability_zone: str | None = None
    networks: str | tuple[str, ...] = "none"
    user_data: str | None = None
    properties: dict[str, str] = field(default_factory=dict)
    wait: int = 600


@dataclass
class _State:
    """What has been said already."""

    key_id: str
    after: int
    scheduled: bool = False
    released: bool = False


class Launch:
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

    def run(self, new: NewServer) -> Finding:
        """Verify the image, get a ticket, create the server, follow it.

        1. the image's manifest is the tenant's own;
        2. user-data is what the manifest allows;
        3. a launch ticket for exactly this manifest;
        4. the server is created, with the ticket;
        5. its steps are shown as they happen;
        6. the key server released the key for this launch, not only for
           an earlier one of a server that nova now calls the new one; and
           the VM report is verified here.

        :raises MHError: ``client.launch.failed|timeout`` beside those of
            the services.
        """
        # 1
        image = self._servers.images.show(new.image)
        self._steps.tick("image", f"{image.id}, manifest verified")
        # 2
        user_data = _user_data(new, image)
        flavor = self._servers.nova.flavor(new.flavor)
        # 3
        key_id = image.properties.key_id
        state = _State(key_id, self._last(key_id))
        ticket = self._servers.kms.ticket(key_id, [image.digest])
        self._ticked_ticket(state)
        # 4
        body = _body(new, image, flavor, user_data)
        body["metadata"]["mh_ticket"] = ticket.secret.reveal().decode()
        server_id = self._servers.nova.create(body)
        self._steps.tick("requested", server_id)
        if new.wait <= 0:
            server = self._servers.nova.server(server_id)
            return Finding(server, image, None, ())
        # 5
        server = self._follow(server_id, state, new.wait)
        # 6
        return self._report(server, image, state)

    def rebuild(self, name: str, image_name: str, wait: int) -> Finding:
        """Give a server a new disk, made of a trusted image; as a launch.

        What was on its disk is lost, as with any rebuild.

        1. the image's manifest is the tenant's own;
        2. a launch ticket for exactly this manifest;
        3. the rebuild is asked for, with the ticket;
        4. its steps are shown, and the VM report is verified, as for a new
           server.

        :param wait: seconds, as :attr:`NewServer.wait`.
        :raises MHError: as :meth:`run`.
        """
        server = self._servers.nova.find(name)
        # 1
        image = self._servers.images.show(image_name)
        self._steps.tick("image", f"{image.id}, manifest verified")
        # 2
        key_id = image.properties.key_id
        state = _State(key_id, self._last(key_id), scheduled=True)
        ticket = self._servers.kms.ticket(key_id, [image.digest])
        self._ticked_ticket(state)
        # 3: nova replaces the metadata as a whole
        metadata = dict(server.metadata)
        metadata.pop(REFUSED, None)
        metadata["mh_ticket"] = ticket.secret.reveal().decode()
        self._servers.nova.act(
            server.id, "rebuild", {"imageRef": image.id, "metadata": metadata}
        )
        self._steps.tick("requested", server.id)
        if wait <= 0:
            return Finding(server, image, None, ())
        # 4
        return self._report(self._follow(server.id, state, wait), image, state)

    def _last(self, key_id: str) -> int:
        records = self._servers.kms.audit(key_id)
        return max((entry(record).number for record in records), default=0)

    def _ticked_ticket(self, state: _State) -> None:
        events = [
            entry(record)
            for record in self._servers.kms.audit(state.key_id, state.after)
        ]
        found = [one for one in events if "ticket" in one.event]
        for one in found[-1:]:
            state.after = max(state.after, one.number)
        self._steps.tick(
            "ticket", "for this manifest", found[-1].event if found else ""
        )

    def _follow(self, server_id: str, state: _State, wait: int) -> Server:
        end = self._clock() + wait
        while True:
            server = self._servers.nova.server(server_id)
            if server.host and not state.scheduled:
                state.scheduled = True
                self._steps.tick("scheduled", server.host)
            self._decisions(server_id, state)
            if server.status == "ACTIVE":
                self._steps.tick("started", "ACTIVE")
                return server
            if server.status == "ERROR":
                self._failed(server)
            if self._clock() > end:
                raise MHError(
                    EVENT + ".timeout",
                    f"server {server_id} is {server.status} "
                    f"({server.task or 'no task'}) after {wait} s",
                )
            self._sleep(INTERVAL)

    def _decisions(self, server_id: str, state: _State) -> None:
        for one in self._servers.decisions(
            state.key_id, server_id, state.after
        ):
            state.after = max(state.after, one.number)
            if one.granted:
                state.released |= one.purpose == "launch"
                self._steps.tick("key released", f"to {one.host}", one.event)
            else:
                text = f"to {one.host}: {one.detail}".rstrip(": ")
                self._steps.cross("key refused", text, one.event)

    def _failed(self, server: Server) -> None:
        fault = server.fault or "nova gives no reason"
        self._steps.cross("failed", fault)
        if NO_HOST in fault:
            for line in self._servers.why_no_host():
                self._steps.note(line)
        raise MHError(
            EVENT + ".failed", f"server {server.id} is in ERROR: {fault}"
        )

    def _report(
        self, server: Server, image: TrustedImage, state: _State
    ) -> Finding:
        if not state.released:
            why = "your key server released no key for this launch"
            self._steps.cross("key released", why, EVENT + ".no-release")
            return Finding(
                server, image, None, (), f"{why} [{EVENT}.no-release]"
            )
        end = self._clock() + REPORT_WAIT
        while True:
            judgement = self._servers.judge(server, image)
            waiting = judgement is None or judgement.refused("current")
            if not waiting or self._clock() > end:
                break
            self._sleep(INTERVAL)
        if judgement is None:
            self._steps.cross("VM report", "none came", EVENT + ".no-report")
        elif judgement.passed and judgement.claims is not None:
            self._steps.tick(
                "measured", ", ".join(sorted(judgement.claims.measured))
            )
            self._steps.tick(
                "VM report", f"verified, by the AK of {judgement.claims.host}"
            )
        else:
            for check in judgement.checks:
                if not check.passed:
                    self._steps.cross(
                        f"VM report, {check.name}", check.detail, check.event
                    )
        decisions = tuple(
            self._servers.decisions(image.properties.key_id, server.id)
        )
        return Finding(server, image, judgement, decisions)


def _user_data(new: NewServer, image: TrustedImage) -> str | None:
    if new.user_data is None:
        return None
    try:
        data = Path(new.user_data).read_bytes()
    except OSError as exc:
        raise InputError(
            EVENT + ".user-data",
            f"cannot read {new.user_data}: {exc.strerror}",
        ) from exc
    if len(data) > MAX_USER_DATA:
        raise InputError(EVENT + ".user-data", "user-data is over 48 KiB")
    digest = hashlib.sha256(data).hexdigest()
    if digest not in image.manifest.launch_policy.user_data:
        raise InputError(
            EVENT + ".user-data",
            "the image's launch policy does not list this user-data "
            f"({digest}); make the image with --user-data",
        )
    return base64.b64encode(data).decode()


def _body(
    new: NewServer, image: TrustedImage, flavor: str, user_data: str | None
) -> dict[str, Any]:
    networks: Any = new.networks
    if isinstance(networks, tuple):
        networks = [{"uuid": network} for network in networks]
    body: dict[str, Any] = {
        "name": new.name,
        "imageRef": image.id,
        "flavorRef": flavor,
        "networks": networks,
        "metadata": dict(new.properties),
    }
    if new.availability_zone:
        body["availability_zone"] = new.availability_zone
    if user_data is not None:
        body["user_data"] = user_data
    return body
