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
"""Who runs a server, as its owner's key server knows it."""

from dataclasses import dataclass
from typing import Any

from mh_client import times
from mh_core.fields import LINE, Fields

EVENT = "client.lease"
_LATEST = 1 << 40


@dataclass(frozen=True)
class Lease:
    """One host's time with an instance; times in seconds since the epoch.

    :param seconds: as last granted, 0 for no end.
    :param ended_at: 0: it has not ended before its time.
    :param why: replaced, moved, left, cancelled or revoked.
    :param erased_at: of the receipt that disks and secrets are gone; 0:
        none came.
    """

    id: str
    host: str
    purpose: str
    granted_at: int
    renewed_at: int
    seconds: int
    expires_at: int
    ended_at: int
    why: str
    erased_at: int

    @classmethod
    def parse(cls, value: Any) -> "Lease":
        """:raises InputError: ``client.lease``."""
        fields = Fields(value, EVENT)

        def moment(name: str) -> int:
            if fields.has(name) and value[name] is None:
                fields.take(name, object)
                return 0
            return fields.integer(name, 0, _LATEST)

        lease = cls(
            id=fields.text("id", pattern=LINE),
            host=fields.text("host", pattern=LINE),
            purpose=fields.text("purpose", pattern=LINE),
            granted_at=moment("granted_at"),
            renewed_at=moment("renewed_at"),
            seconds=fields.integer("seconds", 0, 1 << 31),
            expires_at=moment("expires_at"),
            ended_at=moment("ended_at"),
            why=fields.text("why", pattern=LINE),
            erased_at=moment("erased_at"),
        )
        fields.end()
        return lease

    def text(self, now: float) -> str:
        """For people."""
        words = [f"{self.host}:"]
        if self.ended_at:
            words.append(f"{self.why} at {times.text(self.ended_at)}")
        elif not self.expires_at:
            words.append(f"without end, since {times.text(self.granted_at)}")
        elif self.expires_at > now:
            words.append(f"until {times.text(self.expires_at)}")
        else:
            words.append(
                f"over since {times.text(self.expires_at)}; last asked for "
                f"at {times.text(self.renewed_at)}"
            )
        if self.erased_at:
            words.append(f"(erased at {times.text(self.erased_at)})")
        return " ".join(words)


@dataclass(frozen=True)
class Tenure:
    """:param leases: oldest first."""

    instance: str
    revoked: bool
    leases: tuple[Lease, ...]

    @classmethod
    def parse(cls, value: Any) -> "Tenure":
        """:raises InputError: ``client.lease``."""
        fields = Fields(value, EVENT)
        tenure = cls(
            instance=fields.uuid("instance"),
            revoked=fields.boolean("revoked"),
            leases=fields.list("leases", Lease.parse, 256),
        )
        fields.end()
        return tenure

    @property
    def shown(self) -> tuple[Lease, ...]:
        """Those that have not ended; else the last one."""
        held = tuple(one for one in self.leases if not one.ended_at)
        return held or self.leases[-1:]

    def text(self, now: float) -> str:
        words = [one.text(now) for one in self.shown]
        if self.revoked:
            words.append("revoked by its owner: no host may start it")
        return "; ".join(words)

    def ended(self, now: float) -> bool:
        """No host may run it now."""
        return not any(
            not one.ended_at and (not one.expires_at or one.expires_at > now)
            for one in self.leases
        )
