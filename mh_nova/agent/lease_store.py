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
"""What the agent remembers of leases and of receipts that it owes.

No secret is in it.  Times are those of ``CLOCK_BOOTTIME``: nobody sets that
clock, and it goes on while the host sleeps.  A record of another boot is of
a guest that ended with that boot.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mh_core import jose
from mh_core.encoding import canonical_json, parse_json
from mh_core.errors import InputError
from mh_core.fields import Fields
from mh_core.lease import LEASE_ID, MAX_LEASE
from mh_core.request import Disk
from mh_nova.agent.store import sweep_new, write_atomic

EVENT = "agent.lease"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOST = 1 << 62
#: Receipts that wait at the most; beyond that the oldest are let go of.
MAX_RECEIPTS = 4096


def boottime() -> float:
    """Seconds since the host's start, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    return _BOOT_ID.read_text().strip()


@dataclass(frozen=True)
class LeaseRecord:
    """How long one guest may run.

    :param boot: id of the boot that the times belong to.
    :param lease: id, by which the key server knows it.
    :param jwk: public key of the server's answers.
    :param seconds: as last granted; 0 for no end.
    :param asked: when the granted question was asked, ms of boot time.
    :param ends: ms of boot time; 0 for never.
    :param renewing: the guest is thought to run.
    :param forgotten: the instance is gone from here; what may still run
        ends with the lease.
    :param stopped: why this agent stopped the guest, for people; empty: it
        did not.
    """

    instance: str
    boot: str
    lease: str
    key_id: str
    origin: str
    compat: bool
    host: str
    jwk: jose.Jwk
    seconds: int
    asked: int
    ends: int
    renewing: bool = True
    forgotten: bool = False
    stopped: str = ""

    @classmethod
    def parse(cls, value: Any) -> "LeaseRecord":
        """:raises InputError: ``agent.lease``."""
        fields = Fields(value, EVENT)
        fields.integer("version", 1, 1)
        record = cls(
            instance=fields.uuid("instance"),
            boot=fields.text("boot", maximum=64),
            lease=fields.text("lease", pattern=LEASE_ID),
            key_id=fields.uuid("key_id"),
            origin=fields.text("origin"),
            compat=fields.boolean("compat"),
            host=fields.text("host"),
            jwk=jose.public(fields.object("jwk")),
            seconds=fields.integer("seconds", 0, MAX_LEASE),
            asked=fields.integer("asked", 0, _MOST),
            ends=fields.integer("ends", 0, _MOST),
            renewing=fields.boolean("renewing"),
            forgotten=fields.boolean("forgotten"),
            stopped=fields.text("stopped", maximum=512),
        )
        fields.end()
        return record

    @classmethod
    def damaged(cls, instance: str, boot: str) -> "LeaseRecord":
        """In the place of a record that cannot be read: it is over."""
        return cls(
            instance=instance,
            boot=boot,
            lease="",
            key_id="",
            origin="",
            compat=False,
            host="",
            jwk={},
            seconds=1,
            asked=0,
            ends=1,
            renewing=False,
            forgotten=True,
        )

    def renewed(self, seconds: int, asked: float) -> "LeaseRecord":
        """Counted from the question: the server counts from later on."""
        start = int(asked * 1000)
        return replace(
            self,
            seconds=seconds,
            asked=start,
            ends=start + seconds * 1000 if seconds else 0,
        )


@dataclass(frozen=True)
class ReceiptRecord:
    """A deletion that the key server has not heard of.

    :param disks: name and LUKS uuid of each disk that must be gone.
    :param since: seconds since the epoch.
    """

    lease: LeaseRecord
    disks: tuple[Disk, ...]
    since: int

    @classmethod
    def parse(cls, value: Any) -> "ReceiptRecord":
        """:raises InputError: ``agent.lease``."""
        fields = Fields(value, EVENT)
        record = cls(
            lease=LeaseRecord.parse(fields.object("lease")),
            disks=fields.list("disks", Disk.parse, 16),
            since=fields.integer("since", 0, _MOST),
        )
        fields.end()
        return record

    @property
    def name(self) -> str:
        text = f"{self.lease.key_id}/{self.lease.lease}"
        return hashlib.sha256(text.encode()).hexdigest()


def _dict(lease: LeaseRecord) -> dict[str, Any]:
    return {"version": 1, **asdict(lease)}


class LeaseStore:
    """One small file per lease, one per receipt owed.

    Not synced to the disk: what a crash of the host could lose has ended
    with the host.  A receipt is.

    :param root: the agent's state directory.
    """

    def __init__(self, root: Path) -> None:
        self._leases = root / "leases"
        self._receipts = root / "receipts"
        for path in (self._leases, self._receipts):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            sweep_new(path)

    def all(self) -> Iterator[tuple[str, LeaseRecord | None]]:
        """(instance, record); None for a record that is damaged."""
        for path in sorted(self._leases.glob("*.json")):
            try:
                record = LeaseRecord.parse(parse_json(path.read_bytes()))
                whole = record.instance == path.stem
            except InputError:
                whole = False
            yield path.stem, record if whole else None

    def save(self, record: LeaseRecord) -> None:
        write_atomic(
            self._leases / f"{record.instance}.json",
            canonical_json(_dict(record)),
            durable=False,
        )

    def drop(self, instance: str) -> None:
        (self._leases / f"{instance}.json").unlink(missing_ok=True)

    def receipts(self) -> Iterator[ReceiptRecord]:
        """Those owed, oldest first; a damaged one is dropped."""
        paths = [
            (path.stat().st_mtime, path)
            for path in self._receipts.glob("*.json")
        ]
        for _, path in sorted(paths):
            try:
                yield ReceiptRecord.parse(parse_json(path.read_bytes()))
            except (InputError, FileNotFoundError):
                path.unlink(missing_ok=True)

    def owe(self, record: ReceiptRecord) -> None:
        left = len(os.listdir(self._receipts)) - MAX_RECEIPTS + 1
        for old in [*self.receipts()][: max(0, left)]:
            self.settle(old)
        write_atomic(
            self._receipts / f"{record.name}.json",
            canonical_json(
                {
                    "lease": _dict(record.lease),
                    "disks": [disk.to_dict() for disk in record.disks],
                    "since": record.since,
                }
            ),
        )

    def settle(self, record: ReceiptRecord) -> None:
        (self._receipts / f"{record.name}.json").unlink(missing_ok=True)
