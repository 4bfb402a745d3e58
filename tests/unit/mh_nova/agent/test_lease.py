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

"""Leases on the host: renewed in time, and their end, whatever happens."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mh_core import jose
from mh_core.errors import Denied, MHError, Unavailable
from mh_core.lease import LeaseGrant
from mh_core.payload import ReleasePayload
from mh_core.request import PURPOSES, STARTS, Disk
from mh_core.secret import Secret
from mh_nova.agent.attempt import Opened
from mh_nova.agent.journal import Journal
from mh_nova.agent.lease import Leases
from mh_nova.agent.lease_store import (
    LeaseRecord,
    LeaseStore,
    ReceiptRecord,
    boot_id,
    boottime,
)
from mh_nova.agent.store import InstanceRecord
from tests.fixture.softtpm import key_request
from tests.functional.mh_nova.agent.world import NotedGuests

SIGNER = jose.generate_key()
ONE = "4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10"
TWO = "0b7e2d39-3a63-4d53-9d9b-2a5cf4d5c6a7"
KEY = "d5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51"
ORIGIN = "https://kms.test"


@dataclass
class Asked:
    """The key server's place."""

    seconds: int = 600
    error: MHError | None = None
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    gate: threading.Event | None = None

    def ask(
        self, record: LeaseRecord, purpose: str, to: str = ""
    ) -> LeaseGrant:
        self.calls.append((record.instance, purpose, to))
        if self.gate is not None:
            self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return LeaseGrant(b"", b"", self.seconds, 0, "kms#1")


class Host:
    """One agent's leases, over a clock of our own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1000.0
        self.boot = "boot-1"
        self.asker, self.guests = Asked(), NotedGuests()
        self.journal = Journal(folder / "audit.log")
        self.store = LeaseStore(folder)
        self.open()

    def open(self) -> None:
        """As a start of the agent: from what is in its files."""
        self.leases = Leases(
            self.store,
            self.guests,
            self.journal,
            asker=self.asker,
            clock=lambda: self.now,
            boot=self.boot,
            patience=10.0,
        )

    def starts(
        self,
        instance: str = ONE,
        lease: int = 600,
        ok: bool = True,
        purpose: str = "start",
        asked: float | None = None,
        audit: str = "",
    ) -> None:
        payload = ReleasePayload(
            purpose=purpose,
            key_id=KEY,
            dek=Secret(bytes(32)),
            overlay_keys={},
            manifest_keys=(),
            manifest_digests=(),
            kms_origin=ORIGIN,
            transport_jwk=jose.public(SIGNER),
            lease=lease,
            request_digest=bytes(32),
            issued_at=0,
            audit=audit or f"chain#{len(self.asker.calls)}",
            signing_jwk=jose.public(SIGNER),
        )
        request = key_request(KEY, ORIGIN, purpose=purpose)
        opened = Opened(
            request, payload, 0.0, self.now if asked is None else asked
        )
        record = InstanceRecord(
            instance=instance,
            image=TWO,
            project="p",
            user="u",
            host="node1",
            key_url=f"{ORIGIN}/v1/keys/{KEY}",
            key_id=KEY,
            manifest="m",
            compat=False,
            user_data_digest="",
            disks=(),
        )
        self.leases.begin(record, ORIGIN, opened)
        if ok:
            self.guests.active.add(instance)
        self.leases.started(instance)

    def at(self, seconds: float) -> None:
        """So many seconds after the first start."""
        self.now = 1000.0 + seconds
        self.leases.step()

    def until(self, test: Callable[[], object]) -> None:
        """What was begun ends in a moment."""
        end = time.monotonic() + 5
        while not test():
            assert time.monotonic() < end
            time.sleep(0.005)

    def quiet(self) -> None:
        self.until(
            lambda: (
                not any(
                    watched.asking for watched in self.leases._all.values()
                )
                and not self.leases._looking
            )
        )

    def asks(self, seconds: float) -> None:
        """It asks then, and the answer has come."""
        before = len(self.asker.calls)
        self.at(seconds)
        self.until(lambda: len(self.asker.calls) > before)
        self.quiet()

    def does_not_ask(self, seconds: float) -> None:
        before = len(self.asker.calls)
        self.at(seconds)
        self.quiet()
        assert len(self.asker.calls) == before

    def events(self) -> list[str]:
        import json

        lines = (self.folder / "audit.log").read_bytes().splitlines()
        return [
            json.loads(line.rpartition(b"\t")[0])["event"] for line in lines
        ]

    @property
    def record(self) -> LeaseRecord:
        return self.leases._all[ONE].record


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


UNAVAILABLE = Unavailable("agent.kms.unavailable", "away")
DENIED = Denied("agent.kms.refused", "kms.release.lease-moved")


def test_renewed_from_half_its_time_on(host: Host) -> None:
    host.starts()
    host.does_not_ask(200)
    host.asks(301)
    assert host.asker.calls == [(ONE, "renew", "")]
    assert host.record.ends == (1301 + 600) * 1000
    host.does_not_ask(500)
    host.asks(602)
    host.at(901)
    assert host.guests.ended == []


@pytest.mark.parametrize("purpose", sorted({*PURPOSES} - {*STARTS}))
def test_what_starts_nothing_leaves_the_lease(
    host: Host, purpose: str
) -> None:
    """Such a release gives no end, or another, to the guest that runs."""
    host.starts(audit="chain#1")
    before = host.record
    host.starts(purpose=purpose, lease=0, audit="chain#2")
    assert host.record == before


def test_a_release_that_is_used_again_does_not_turn_the_lease_back(
    host: Host,
) -> None:
    """As by a start within the minute that a release is kept for."""
    host.starts(lease=40, audit="chain#1")
    host.asker.seconds = 40
    host.asks(30)
    host.now = 1050.0
    host.starts(asked=1000.0, lease=40, audit="chain#1")
    assert host.record.ends == (1030 + 40) * 1000
    host.at(50)
    host.quiet()
    assert host.guests.ended == []


def test_counted_from_the_question_not_from_the_answer(host: Host) -> None:
    host.starts()
    host.asker.gate = threading.Event()
    host.at(301)
    host.until(lambda: host.asker.calls)
    host.now = 1000.0 + 400
    host.asker.gate.set()
    host.quiet()
    assert host.record.ends == (1301 + 600) * 1000


def test_what_the_policy_says_now(host: Host) -> None:
    host.starts()
    host.asker.seconds = 60
    host.asks(301)
    assert host.record.ends == (1301 + 60) * 1000
    host.asker.seconds = 0
    host.asks(332)
    host.does_not_ask(100_000)
    assert host.guests.ended == []
    assert host.leases.facts(ONE)["ends_in"] == -1


def test_no_lease_has_no_end_and_asks_nobody(host: Host) -> None:
    host.starts(lease=0)
    host.does_not_ask(1_000_000)
    assert host.guests.ended == []


@pytest.mark.parametrize("error", [UNAVAILABLE, DENIED])
def test_stopped_at_the_end_where_nobody_granted_more(
    host: Host, error: MHError
) -> None:
    host.starts()
    host.starts(TWO)
    host.asker.error = error
    for seconds in range(300, 600, 3):
        host.at(seconds)
        host.quiet()
    assert host.guests.ended == []
    tries = len([call for call in host.asker.calls if call[0] == ONE])
    # again and again, yet not all the time
    assert 4 <= tries <= 12
    host.at(600)
    host.until(lambda: len(host.guests.ended) == 2)
    assert set(host.guests.ended) == {(ONE, "stopped"), (TWO, "stopped")}
    host.until(lambda: host.leases.facts(ONE)["stopped"])
    assert error.event in host.leases.facts(ONE)["stopped"]
    assert error.message in host.leases.facts(ONE)["stopped"]
    assert host.events().count("agent.lease.failing") == 2
    host.until(lambda: host.events().count("agent.lease.stopped") == 2)


def test_granted_again_in_time(host: Host) -> None:
    host.starts()
    host.asker.error = UNAVAILABLE
    host.asks(301)
    host.asker.error = None
    host.asks(320)
    assert host.events() == ["agent.lease.failing", "agent.lease.renewed"]
    host.at(601)
    host.quiet()
    assert host.guests.ended == []


def test_an_answer_that_comes_too_late(host: Host) -> None:
    host.starts()
    host.asker.gate = threading.Event()
    host.at(599)
    host.until(lambda: host.asker.calls)
    host.at(600)
    host.until(lambda: host.guests.ended)
    host.asker.gate.set()
    host.quiet()
    assert host.record.ends == 1600 * 1000
    assert not host.record.renewing


def test_the_agent_restarts(host: Host) -> None:
    host.starts()
    host.asks(301)
    ends = host.record.ends
    host.now += 100
    host.open()
    assert host.record.ends == ends
    host.asker.error = UNAVAILABLE
    host.at(700)
    host.quiet()
    host.open()
    host.at(902)
    host.until(lambda: host.guests.ended)


def test_the_agent_was_down_at_the_end(host: Host) -> None:
    host.starts()
    host.now += 10_000
    host.open()
    host.leases.step()
    host.until(lambda: host.guests.ended == [(ONE, "stopped")])
    assert host.asker.calls == []


def test_a_killed_agent_leaves_a_lease_that_begun(host: Host) -> None:
    """Between ``start`` and ``started``: the guest may be running."""
    host.starts(ok=False)
    host.guests.active.add(ONE)
    host.open()
    host.asker.error = UNAVAILABLE
    host.at(600)
    host.until(lambda: host.guests.ended)


def test_a_host_that_restarted(host: Host) -> None:
    host.starts()
    host.boot, host.now = "boot-2", 5.0
    host.guests.active.clear()
    host.open()
    host.leases.step()
    host.until(lambda: host.leases._all[ONE].over)
    assert host.asker.calls == []
    # nothing ran, so nothing was stopped
    assert "agent.lease.stopped" not in host.events()
    # and a guest that passed the gate since then has a lease of its own
    host.starts()
    assert host.record.boot == "boot-2"
    host.asks(301 - 995)


def test_an_old_record_does_not_let_a_guest_run(host: Host) -> None:
    host.starts()
    host.boot, host.now = "boot-2", 5.0
    host.open()
    host.leases.step()
    host.until(lambda: host.guests.ended)


def test_a_damaged_record_does_not_either(host: Host) -> None:
    host.starts()
    path = host.folder / "leases" / f"{ONE}.json"
    path.write_bytes(path.read_bytes()[:-9])
    host.open()
    host.leases.step()
    host.until(lambda: host.guests.ended == [(ONE, "stopped")])
    assert "agent.lease.damaged" in host.events()
    host.until(lambda: not path.exists())


def test_a_guest_that_is_off_is_not_asked_for(host: Host) -> None:
    host.starts()
    host.guests.active.clear()
    host.at(10)
    host.quiet()
    assert host.record.renewing
    host.at(20)
    host.quiet()
    assert not host.record.renewing
    host.does_not_ask(301)
    # it was there after all
    host.guests.active.add(ONE)
    host.does_not_ask(310)
    host.asks(320)


def test_off_or_not_the_end_stays(host: Host) -> None:
    host.starts()
    host.guests.active.clear()
    for seconds in (10, 20):
        host.at(seconds)
        host.quiet()
    host.guests.active.add(ONE)
    host.asker.error = UNAVAILABLE
    host.at(600)
    host.until(lambda: host.guests.ended)


def test_a_libvirt_that_is_away(host: Host) -> None:
    host.starts()
    host.guests.gone = True
    host.asks(301)
    assert host.record.renewing
    host.asker.error = UNAVAILABLE
    host.at(901)
    host.until(lambda: "agent.lease.not-stopped" in host.events())
    host.guests.gone = False
    host.until(lambda: host.guests.ended == [(ONE, "stopped")])


def test_a_libvirt_that_hangs(host: Host) -> None:
    """Renewals go on; at the end the process is killed."""
    host.starts()
    host.guests.hangs = threading.Event()
    host.at(301)
    host.until(lambda: host.record.ends == (1301 + 600) * 1000)
    host.asker.error = UNAVAILABLE
    host.at(901)
    host.at(905)
    assert host.guests.ended == []
    host.at(912)
    host.until(lambda: host.guests.ended == [(ONE, "killed")])
    host.guests.hangs.set()


def test_a_new_start_at_the_end_of_the_old_lease(host: Host) -> None:
    host.starts()
    host.asker.error = UNAVAILABLE
    host.at(599)
    host.quiet()
    host.starts()
    host.at(601)
    time.sleep(0.05)
    assert host.guests.ended == []
    assert host.record.ends == (1599 + 600) * 1000


def test_forgotten(host: Host) -> None:
    host.starts()
    lease = host.leases.of(ONE)
    assert lease is not None
    assert lease.lease == "chain#0"
    host.leases.forget(ONE)
    assert host.leases.of(ONE) is None
    host.does_not_ask(301)
    # what may run all the same ends with the lease
    host.at(600)
    host.until(lambda: host.guests.ended)
    host.until(lambda: list(host.store.all()) == [])
    assert host.leases.of(ONE) is None


def test_forgotten_without_an_end(host: Host) -> None:
    host.starts(lease=0)
    assert host.leases.of(ONE) is not None
    host.leases.forget(ONE)
    assert list(host.store.all()) == []


def test_live_migration(host: Host) -> None:
    host.starts()
    host.leases.handover(ONE, "node3")
    host.leases.left(ONE)
    assert host.asker.calls == [
        (ONE, "handover", "node3"),
        (ONE, "left", ""),
    ]
    host.does_not_ask(301)
    with pytest.raises(Unavailable):
        host.leases.handover(TWO, "node3")


def test_a_release_without_a_lease_begins_none(host: Host) -> None:
    host.starts()
    record = host.record
    payload: Any = Opened(
        key_request(KEY, ORIGIN),
        replace(_payload(), signing_jwk={}),
        0.0,
        host.now,
    )
    host.leases.begin(_instance(TWO), ORIGIN, payload)
    assert TWO not in host.leases._all
    assert host.record == record


def _payload() -> ReleasePayload:
    return ReleasePayload(
        purpose="start",
        key_id=KEY,
        dek=Secret(bytes(32)),
        overlay_keys={},
        manifest_keys=(),
        manifest_digests=(),
        kms_origin=ORIGIN,
        transport_jwk=jose.public(SIGNER),
        lease=0,
        request_digest=bytes(32),
        issued_at=0,
        audit="chain#9",
    )


def _instance(instance: str) -> InstanceRecord:
    return InstanceRecord(
        instance=instance,
        image=TWO,
        project="p",
        user="u",
        host="node1",
        key_url=f"{ORIGIN}/v1/keys/{KEY}",
        key_id=KEY,
        manifest="m",
        compat=False,
        user_data_digest="",
        disks=(),
    )


def test_the_clock_is_the_hosts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed wall clock prolongs nothing."""
    before = boottime()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    assert 0 <= boottime() - before < 5
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert abs(boottime() - uptime) < 60
    assert len(boot_id()) == 36


def test_receipts_owed_are_bounded(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mh_nova.agent.lease_store.MAX_RECEIPTS", 3)
    host.starts()
    for number in range(5):
        lease = replace(host.record, lease=f"chain#{number}")
        host.store.owe(ReceiptRecord(lease, (Disk("disk", TWO),), number))
        time.sleep(0.01)
    found = [record.since for record in host.store.receipts()]
    assert found == [2, 3, 4]
