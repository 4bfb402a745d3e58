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
"""The agent's verbs about live migration."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from mh_core.fields import Fields, text_item

T = TypeVar("T")
_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_EVENT = r"[a-z0-9]+(?:[.\-_][a-z0-9]+)*"


@dataclass(frozen=True)
class Leave:
    """The agent's leave to move a running guest to one host.

    :param tls_name: the connection must expect exactly this name.
    :param expires_at: seconds since the epoch.
    """

    event: str
    tls_name: str
    expires_at: int


def _ready(fields: Fields) -> int:
    """When this host's certificate ends, seconds since the epoch."""
    return fields.integer("expires_at", 0, 1 << 40)


def _leave(fields: Fields) -> Leave:
    """:raises InputError: ``hook.agent.answer``."""
    fields.text("detail", maximum=4096)
    return Leave(
        event=fields.text("event", pattern=_EVENT, maximum=128),
        tls_name=fields.text("tls_name", pattern=r"[a-z0-9.\-]{1,253}"),
        expires_at=fields.integer("expires_at", 0, 1 << 40),
    )


def _arrived(fields: Fields) -> str:
    """The event a guest was admitted by; empty: not one of ours.

    :raises InputError: ``hook.agent.answer``.
    """
    fields.text("detail", maximum=4096)
    event = fields.text("event", pattern=rf"|{_EVENT}", maximum=128)
    if fields.boolean("ours") is not bool(event):
        raise fields.fail("event", "does not go with 'ours'")
    return event


@dataclass(frozen=True)
class Unfinished:
    """Live migrations that nobody has said to be over.

    :param incoming: instances with disks here that were made for one.
    :param offered: those whose destination was offered a lease.
    """

    incoming: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()


def _unfinished(fields: Fields) -> Unfinished:
    """:raises InputError: ``hook.agent.answer``."""
    one = text_item(fields.event, 36, _UUID)
    return Unfinished(
        fields.list("incoming", one), fields.list("offered", one)
    )


class MigrationVerbs(ABC):
    """Part of :class:`mh_nova.hook.agent_client.AgentClient`."""

    _launch_timeout: float

    @abstractmethod
    def _ask(
        self,
        verb: str,
        members: dict[str, Any],
        timeout: float | None = None,
    ) -> Fields: ...

    @abstractmethod
    def _read(self, fields: Fields, reader: Callable[[Fields], T]) -> T: ...

    @abstractmethod
    def _empty(self, verb: str, members: dict[str, Any]) -> None: ...

    def migration(self) -> None:
        """Could this host be an end of a live migration, now?"""
        self._read(self._ask("migration", {}), _ready)

    def migrate_offer(self, instance: str, destination: str) -> None:
        """Name, or with an empty one take back, a destination's lease."""
        self._empty(
            "migrate-offer",
            {"instance": instance, "destination": destination},
        )

    def migrate_left(self, instance: str) -> None:
        self._empty("migrate-left", {"instance": instance})

    def unfinished(self) -> Unfinished:
        return self._read(self._ask("unfinished", {}), _unfinished)

    def migrate_out(self, instance: str, destination: str) -> Leave:
        fields = self._ask(
            "migrate-out",
            {"instance": instance, "destination": destination},
            self._launch_timeout,
        )
        return self._read(fields, _leave)

    def migrate_in(self, instance: str, xml: str) -> str:
        """:returns: the event the agent admitted the guest by; empty for a
        guest that is not ours."""
        fields = self._ask(
            "migrate-in",
            {"instance": instance, "xml": xml},
            self._launch_timeout,
        )
        return self._read(fields, _arrived)
