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

"""Client of the agent's unix socket (protocol page, "Agent socket").

One connection per request: a 4-byte big-endian length and a JSON object in
each direction. The hook hands over uuids and what the cloud says about an
instance; it never receives a key.
"""

import json
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from mh_core.encoding import MAX_JSON, parse_json
from mh_core.errors import Denied, InputError, Unavailable
from mh_core.fields import Fields
from mh_nova.hook import agent_lease, agent_migration
from mh_nova.hook.description import Description
from mh_nova.hook.description import Known as Known

T = TypeVar("T")
ANSWER = "hook.agent.answer"
UNAVAILABLE = "hook.agent.unavailable"
_OURS = 3.0
_EVENT = r"[a-z0-9]+(?:[.\-_][a-z0-9]+)*"


@dataclass(frozen=True)
class Finding:
    """Why this host may not carry trusted launches."""

    event: str
    message: str

    @classmethod
    def parse(cls, value: Any) -> "Finding":
        fields = Fields(value, ANSWER)
        finding = cls(
            fields.text("event", pattern=_EVENT, minimum=1, maximum=128),
            fields.text("message", maximum=4096),
        )
        fields.end()
        return finding


@dataclass(frozen=True)
class Status:
    """
    :param trusted: the host may carry trusted launches.
    :param enrolled: the agent holds an AK certificate.
    :param fs_verity: of bases: ``on``, ``off`` or ``missing``.
    """

    trusted: bool
    findings: tuple[Finding, ...]
    enrolled: bool
    version: str
    fs_verity: str = ""


@dataclass(frozen=True)
class AgentDisk:
    """One disk the agent made.

    :param overlay_secret: libvirt secret uuid of the overlay.
    :param base_secret: that of the base, or empty.
    :param base: the disk lies over the image's base.
    :param base_format: QEMU's name of the base's format, or empty.
    """

    name: str
    overlay_secret: str
    base_secret: str
    base: bool
    base_format: str = "qcow2"

    @classmethod
    def parse(cls, value: Any) -> "AgentDisk":
        fields = Fields(value, ANSWER)
        base = fields.boolean("base")
        name = fields.text("name", pattern=r"disk[A-Za-z0-9._\-]{0,60}")
        overlay = fields.uuid("overlay_secret")
        if base:
            base_secret = fields.uuid("base_secret")
            base_format = fields.choice(
                "base_format", ("qcow2", "luks"), "qcow2"
            )
        else:
            base_secret = fields.text("base_secret", maximum=0)
            base_format = fields.text("base_format", maximum=0, default="")
        fields.end()
        return cls(name, overlay, base_secret, base, base_format)


@dataclass(frozen=True)
class PrepareRequest:
    """What ``prepare`` hands over: the cloud's claims about a launch.

    :param disks: (name, virtual size in bytes) of each disk; 0 stands for
        the image's own size.
    :param based: the root disk lies over the image's base: always, but for
        one that was unshelved.
    :param virtual_size: bytes, as the image's property claims.
    :param user_data_digest: SHA-256 (hex) of the user data, or empty.
    :param vtpm: it has a virtual TPM.
    """

    instance: str
    image: str
    project: str
    user: str
    host: str
    key_url: str
    key_id: str
    manifest: str
    ticket: str
    compat: bool
    purpose: str
    virtual_size: int
    disks: tuple[tuple[str, int], ...]
    user_data_digest: str
    based: bool = True
    vtpm: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "instance": self.instance,
            "image": self.image,
            "project": self.project,
            "user": self.user,
            "host": self.host,
            "key_url": self.key_url,
            "key_id": self.key_id,
            "manifest": self.manifest,
            "ticket": self.ticket,
            "compat": self.compat,
            "purpose": self.purpose,
            "virtual_size": self.virtual_size,
            "disks": [
                {"name": name, "size": size}
                | ({} if self.based or name != "disk" else {"base": False})
                for name, size in self.disks
            ],
            "user_data_digest": self.user_data_digest,
            "vtpm": self.vtpm,
        }

    def __repr__(self) -> str:
        # the launch ticket stays out of logs and tracebacks
        return f"<prepare {self.instance} image {self.image}>"


class AgentClient(agent_migration.MigrationVerbs):
    """The verbs, one method each.

    Every method raises :class:`~mh_core.errors.MHError` and nothing else:
    ``Denied`` with the agent's own event where the agent said no,
    ``Unavailable`` ``hook.agent.unavailable`` where it cannot be reached or
    does not answer in time, ``Unavailable`` ``hook.agent.answer`` where
    what it answers is not the protocol.

    :param path: of the unix socket.
    :param timeout: seconds for verbs that need no other server.
    :param launch_timeout: seconds for ``make`` and ``start``.
    """

    def __init__(
        self,
        path: str,
        timeout: float,
        launch_timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._timeout = timeout
        self._launch_timeout = launch_timeout
        self._clock = clock

    def status(self) -> Status:
        fields = self._ask("status", {})
        return self._read(fields, _status)

    def prepare(self, request: PrepareRequest) -> None:
        self._empty("prepare", request.to_dict())

    def make(self, instance: str, downloaded: bool) -> tuple[AgentDisk, ...]:
        fields = self._ask(
            "make",
            {"instance": instance, "downloaded": downloaded},
            self._launch_timeout,
        )
        return self._read(fields, _disks)

    def disks(self, instance: str) -> tuple[AgentDisk, ...]:
        return self._read(self._ask("disks", {"instance": instance}), _disks)

    def start(self, instance: str, xml: str, purpose: str) -> str:
        """:returns: the event id the agent recorded the admission by."""
        fields = self._ask(
            "start",
            {"instance": instance, "xml": xml, "purpose": purpose},
            self._launch_timeout,
        )
        return self._read(fields, _admitted)

    def started(self, instance: str, ok: bool) -> None:
        self._empty("started", {"instance": instance, "ok": ok})

    def ours(self, instance: str) -> bool:
        """Asked about plain instances as well, hence quickly given up."""
        return self.known(instance).ours

    def known(self, instance: str) -> Known:
        """What the agent launched it from; asked as :meth:`ours`."""
        fields = self._ask(
            "ours", {"instance": instance}, min(self._timeout, _OURS)
        )
        return self._read(fields, _known)

    def suspend(self, instance: str) -> None:
        """:raises Denied: its memory would be written in the clear."""
        self._empty("suspend", {"instance": instance})

    def cache(self, image: str, manifest: str, stage: str) -> None:
        """A base fetched ahead: ``begin``, ``end`` or ``failed``."""
        request = {"image": image, "manifest": manifest, "stage": stage}
        fields = self._ask("cache", request, self._launch_timeout)
        self._read(fields, lambda fields: None)

    def lease(self, instance: str) -> agent_lease.Lease:
        """Asked about plain instances as well."""
        fields = self._ask(
            "lease", {"instance": instance}, min(self._timeout, _OURS)
        )
        return self._read(fields, agent_lease.lease)

    def forget(self, instance: str) -> None:
        self._empty("forget", {"instance": instance})

    def answer(
        self,
        verb: str,
        members: dict[str, Any],
        reader: Callable[[Fields], T],
        patient: bool = False,
    ) -> T:
        """Ask, and read the answer; for the clients of further verbs.

        :param patient: the verb may ask other servers.
        """
        timeout = self._launch_timeout if patient else None
        return self._read(self._ask(verb, members, timeout), reader)

    def describe(self, instance: str) -> Description:
        fields = self._ask("describe", {"instance": instance})
        return self._read(fields, Description.parse)

    def resize(self, instance: str, disk: str, size: int) -> None:
        self._empty(
            "resize", {"instance": instance, "disk": disk, "size": size}
        )

    def arrived(self, instance: str) -> None:
        self._empty("arrived", {"instance": instance})

    def _empty(self, verb: str, members: dict[str, Any]) -> None:
        self._read(self._ask(verb, members), lambda fields: None)

    def _read(self, fields: Fields, reader: Callable[[Fields], T]) -> T:
        try:
            value = reader(fields)
            fields.end()
        except InputError as exc:
            raise Unavailable(ANSWER, exc.message) from exc
        return value

    def _ask(
        self,
        verb: str,
        members: dict[str, Any],
        timeout: float | None = None,
    ) -> Fields:
        request = json.dumps({"verb": verb, **members}).encode()
        if len(request) > MAX_JSON:
            raise Unavailable(ANSWER, f"the request {verb!r} is too large")
        deadline = self._clock() + (timeout or self._timeout)
        try:
            data = self._exchange(request, deadline)
        except OSError as exc:
            # TimeoutError is one of them
            why = os.strerror(exc.errno) if exc.errno else "no answer in time"
            raise Unavailable(
                UNAVAILABLE,
                f"this host's trust agent does not answer ({verb}: {why})",
            ) from exc
        try:
            fields = Fields(parse_json(data), ANSWER)
            if fields.boolean("ok"):
                return fields
            error = Finding.parse(fields.object("error"))
        except InputError as exc:
            raise Unavailable(ANSWER, exc.message) from exc
        raise Denied(error.event, error.message)

    def _exchange(self, request: bytes, deadline: float) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(self._left(deadline))
            peer.connect(self._path)
            peer.sendall(struct.pack(">I", len(request)) + request)
            (length,) = struct.unpack(">I", self._receive(peer, 4, deadline))
            if length > MAX_JSON:
                raise Unavailable(ANSWER, "the answer is too large")
            return self._receive(peer, length, deadline)

    def _receive(
        self, peer: socket.socket, length: int, deadline: float
    ) -> bytes:
        parts = []
        while length:
            peer.settimeout(self._left(deadline))
            part = peer.recv(min(length, 65536))
            if not part:
                raise Unavailable(
                    UNAVAILABLE, "this host's trust agent hung up"
                )
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _left(self, deadline: float) -> float:
        left = deadline - self._clock()
        if left <= 0:
            raise TimeoutError
        return left


def _status(fields: Fields) -> Status:
    return Status(
        trusted=fields.boolean("trusted"),
        findings=fields.list("findings", Finding.parse, 64),
        enrolled=fields.boolean("enrolled"),
        version=fields.text("version", maximum=64),
        fs_verity=fields.text("fs_verity", maximum=16, default=""),
    )


def _disks(fields: Fields) -> tuple[AgentDisk, ...]:
    disks = fields.list("disks", AgentDisk.parse, 16)
    if len({disk.name for disk in disks}) != len(disks):
        raise fields.fail("disks", "a name appears twice")
    return disks


def _admitted(fields: Fields) -> str:
    fields.text("detail", maximum=4096)
    return fields.text("event", pattern=_EVENT, maximum=128)


def _known(fields: Fields) -> Known:
    fields.text("why", maximum=1024)
    ours = fields.boolean("ours")
    image = fields.text("image", maximum=36)
    key_id = fields.text("key_id", maximum=36)
    key_url = fields.text("key_url", maximum=2048)
    return Known(ours, image, key_id, key_url)
