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
"""What the key server says, before a guest or its disk is gone."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mh_core import jose
from mh_nova.agent import ahead, attempt, keys
from mh_nova.agent.paths import PART, base_name
from mh_nova.agent.store import DiskRecord, InstanceRecord
from tests.functional.mh_nova.agent.test_disks import refused
from tests.functional.mh_nova.agent.test_rescue import RescueWorld
from tests.functional.mh_nova.agent.world import MIB

TICKET = "T" * 43


class AskWorld(RescueWorld):
    """A guest that runs, and another image to rebuild it to."""

    def new(self, **changes: Any) -> InstanceRecord:
        record = self.record(
            image=self.other.image,
            key_url=self.other_kms.url,
            manifest=self.other.manifest,
            # nova's every request has uuids of its own
            disks=(DiskRecord("disk", 16 * MIB, str(uuid.uuid4()), True),),
        )
        return replace(record, **changes)

    def destroy(self) -> None:
        """As nova in the middle of a rebuild."""
        self.launcher.forget(self.instance)
        self.disk.unlink()

    def rebuild(self, ticket: str = TICKET, **changes: Any) -> None:
        self.launcher.prepare(self.new(**changes), "launch", ticket)
        base = self.base.with_name(base_name(self.other.image))
        there = base.exists()
        if not there:
            base.with_name(base.name + PART).write_bytes(self.other.data)
        self.launcher.make(self.instance, not there)

    def refuse(self, kms: Any, event: str = "kms.release.revoked") -> None:
        kms.reply = lambda path: (
            kms.error(403, event) if path.endswith("/release") else None
        )

    def untouched(self) -> None:
        """The guest that runs could start again, as what it was."""
        record = self.store.instance(self.instance)
        assert (record.image, record.made) == (self.tenant.image, True)
        assert self.disk.exists()
        self.kms.reply = lambda path: None
        self.start("start")
        self.launcher.started(self.instance, True)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AskWorld]:
    world = AskWorld(tmp_path)
    world.run()
    yield world
    world.stop()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was released is too old a moment later."""
    for module in (ahead, attempt, keys):
        monkeypatch.setattr(module, "MAX_AGE", 0.2)


def asked(world: AskWorld) -> list[str]:
    return [request.purpose for request in world.kms.requests]


# -- a start -------------------------------------------------------------


def test_a_start_uses_what_was_asked_before(world: AskWorld) -> None:
    world.launcher.ask_start(world.instance)
    # what is kept opens at the gate only
    kept = world.launcher._ahead.get(world.instance)
    assert kept is not None
    assert kept.opened is None
    assert world.secrets.defined == {}
    world.start("start")
    assert asked(world) == ["launch", "start"]
    assert len(world.secrets.defined[world.instance]) == 2
    world.launcher.started(world.instance, True)
    # once
    world.start("start")
    assert asked(world) == ["launch", "start", "start"]


def test_a_soft_reboot_that_becomes_a_hard_one_asks_once(
    world: AskWorld,
) -> None:
    world.launcher.ask_start(world.instance)
    world.launcher.ask_start(world.instance)
    world.start("start")
    assert asked(world) == ["launch", "start"]


def test_too_old_at_the_gate_it_is_asked_again(
    world: AskWorld, late: None
) -> None:
    world.launcher.ask_start(world.instance)
    time.sleep(0.3)
    world.start("start")
    assert asked(world) == ["launch", "start", "start"]


def test_what_nobody_uses_is_let_go(world: AskWorld, late: None) -> None:
    world.launcher.ask_start(world.instance)
    time.sleep(0.3)
    world.launcher._ahead.expire()
    assert world.launcher._ahead._all == {}


def test_a_start_that_the_key_server_refuses(world: AskWorld) -> None:
    world.refuse(world.kms)
    before = world.store.instance(world.instance)
    event = refused(lambda: world.launcher.ask_start(world.instance))
    assert event == "agent.kms.refused"
    assert world.events()[-1] == event
    assert world.store.instance(world.instance) == before
    assert world.secrets.defined == {}
    world.untouched()


def test_a_start_whose_key_server_is_down(world: AskWorld) -> None:
    world.kms.reply = lambda path: (503, {}, b"")
    event = refused(lambda: world.launcher.ask_start(world.instance))
    assert event == "agent.kms.unavailable"
    world.untouched()


@pytest.mark.parametrize("what", ["start", "launch"])
def test_a_host_that_may_not(world: AskWorld, what: str) -> None:
    """Without a word to any key server."""
    before = len(world.kms.asked) + len(world.other_kms.asked)
    world.prover.gone = True
    launcher = world.launcher
    event = refused(
        lambda: (
            launcher.ask_start(world.instance)
            if what == "start"
            else launcher.ask_launch(world.new(), TICKET)
        )
    )
    assert event == "agent.guard.tpm"
    assert len(world.kms.asked) + len(world.other_kms.asked) == before
    world.prover.gone = False
    world.untouched()


def test_a_start_over_a_disk_that_was_exchanged(world: AskWorld) -> None:
    good = world.disk.read_bytes()
    world.disk.write_bytes(bytes(1 << 20))
    event = refused(lambda: world.launcher.ask_start(world.instance))
    assert event.startswith("agent.")
    assert asked(world) == ["launch"]
    world.disk.write_bytes(good)
    world.untouched()


def test_another_verb_takes_it_away(world: AskWorld) -> None:
    """It is for the start that follows, not for one much later."""
    world.launcher.ask_start(world.instance)
    world.launcher.allow_plain(world.instance)
    assert world.launcher._ahead.get(world.instance) is None


# -- a rebuild -----------------------------------------------------------


def test_a_rebuild_uses_what_was_asked_before(world: AskWorld) -> None:
    world.launcher.ask_launch(world.new(), TICKET)
    assert world.store.instance(world.instance).image == world.tenant.image
    world.destroy()
    world.rebuild()
    world.start("launch", world_xml(world))
    # one release, so the ticket was spent once
    assert [one.ticket for one in world.other_kms.requests] == [TICKET]
    assert len(world.secrets.defined[world.instance]) == 2


def test_too_old_at_the_launch_it_is_asked_again(
    world: AskWorld, late: None
) -> None:
    world.launcher.ask_launch(world.new(), TICKET)
    time.sleep(0.3)
    world.destroy()
    world.rebuild()
    assert [one.ticket for one in world.other_kms.requests] == [TICKET] * 2


@pytest.mark.parametrize("what", ["ticket", "user", "disks"])
def test_a_launch_other_than_the_one_asked_for(
    world: AskWorld, what: str
) -> None:
    world.launcher.ask_launch(world.new(), TICKET)
    world.destroy()
    if what == "ticket":
        world.rebuild("U" * 43)
    elif what == "user":
        world.rebuild(user="v" * 32)
    else:
        world.rebuild(
            disks=(
                *world.new().disks,
                DiskRecord("disk.swap", MIB, str(uuid.uuid4()), False),
            )
        )
    assert len(world.other_kms.requests) == 2


def test_a_rebuild_that_the_key_server_refuses(world: AskWorld) -> None:
    world.refuse(world.other_kms, "kms.release.ticket")
    event = refused(lambda: world.launcher.ask_launch(world.new(), ""))
    assert event == "agent.kms.refused"
    assert world.events()[-1] == event
    world.untouched()


def test_a_rebuild_to_an_image_of_a_stranger(world: AskWorld) -> None:
    """The key server would release the key, but names another signer."""
    forged = world.other.describe().sign(jose.generate_key())
    world.other.manifest = forged
    event = refused(
        lambda: world.launcher.ask_launch(world.new(manifest=forged), TICKET)
    )
    assert event == "agent.measure.manifest-signature"
    assert world.launcher._ahead.get(world.instance) is None
    world.untouched()


def test_a_rebuild_asked_of_another_host(world: AskWorld) -> None:
    event = refused(
        lambda: world.launcher.ask_launch(world.new(host="node2"), TICKET)
    )
    assert event == "agent.prepare.host"
    assert world.other_kms.asked == []


def world_xml(world: AskWorld) -> str:
    return world.xml().replace(
        world.root.base(world.tenant.image), world.root.base(world.other.image)
    )


# -- leases --------------------------------------------------------------


def lease(world: AskWorld) -> tuple[str, str]:
    """(key server, number of the release)."""
    found = world.leases.of(world.instance)
    assert found is not None
    return found.origin, found.lease


def test_a_guest_goes_on_by_the_lease_of_what_was_asked(
    world: AskWorld,
) -> None:
    """The key server has ended the one before, whatever follows."""
    before = lease(world)
    world.launcher.ask_start(world.instance)
    after = lease(world)
    assert after != before
    world.start("start")
    assert lease(world) == after


def test_a_rebuild_under_another_key_leaves_the_lease(
    world: AskWorld,
) -> None:
    before = lease(world)
    world.launcher.ask_launch(world.new(), TICKET)
    assert lease(world) == before
    world.destroy()
    world.rebuild()
    assert lease(world)[0] == world.other_kms.origin


def test_a_rebuild_under_the_same_key_that_comes_to_nothing(
    world: AskWorld,
) -> None:
    """Its release ended the lease by which the guest goes on."""
    before = lease(world)
    same = world.record()
    world.launcher.ask_launch(same, TICKET)
    # the receipt for the old disk names the lease that it was used by
    assert lease(world) == before
    forged = world.tenant.describe().sign(jose.generate_key())
    world.tenant.manifest = forged
    event = refused(
        lambda: world.launcher.ask_launch(
            replace(same, manifest=forged), TICKET
        )
    )
    assert event == "agent.measure.manifest-signature"
    assert lease(world) != before
