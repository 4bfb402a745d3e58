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

"""Leases and receipts of real launches, over real TLS."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mh_core import jose
from mh_nova.agent.guests import Guests
from mh_nova.agent.lease import Leases
from mh_nova.agent.secrets import Libvirt
from tests.functional.mh_nova.agent.world import Reply, World


def until(test: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end
        time.sleep(0.02)


def runs(world: World, lease: int) -> None:
    """A guest that was launched and runs, and an agent that watches."""
    world.kms.lease = lease
    world.make()
    world.start()
    world.guests.active.add(world.instance)
    world.launcher.started(world.instance, True)
    world.leases.start()
    world.receipts.start()


def away(path: str) -> Reply | None:
    return (503, {}, b"") if path.endswith("/challenge") else None


def purposes(world: World) -> list[str]:
    return [request.purpose for request in world.kms.told]


def test_renewed_and_then_cut_off(world: World) -> None:
    runs(world, lease=3)
    begun = time.monotonic()
    until(lambda: purposes(world).count("renew") >= 2)
    assert time.monotonic() - begun > 2
    assert world.guests.ended == []
    request = world.kms.told[0]
    assert request.lease == "kms#1"
    assert request.instance == world.instance
    assert request.host == "node1"
    world.kms.reply = away
    cut = time.monotonic()
    until(lambda: world.guests.ended)
    assert world.guests.ended == [(world.instance, "stopped")]
    assert time.monotonic() - cut < 3.8
    until(lambda: "agent.lease.stopped" in world.events())
    facts = world.launcher.lease(world.instance)
    assert "agent.kms.unavailable" in facts["stopped"]


def test_a_liar_cannot_prolong_it(world: World) -> None:
    """An answer that somebody else signed is none."""
    runs(world, lease=2)
    world.kms.signing = jose.generate_key()
    until(lambda: world.guests.ended)
    assert "agent.lease.failing" in world.events()
    facts = world.launcher.lease(world.instance)
    until(lambda: world.launcher.lease(world.instance)["stopped"])
    facts = world.launcher.lease(world.instance)
    assert "agent.lease.answer" in facts["stopped"]


def test_an_old_answer_cannot_prolong_it(world: World) -> None:
    kept: list[Reply] = []
    answer = world.kms.answer

    def keep(path: str, body: bytes) -> Reply:
        found = answer(path, body)
        if path.endswith("/lease"):
            kept.append(found)
            return kept[0]
        return found

    world.kms.answer = keep  # type: ignore[method-assign]
    runs(world, lease=2)
    until(lambda: world.guests.ended)
    assert len(kept) > 1


def test_the_agent_restarts_and_is_cut_off(world: World) -> None:
    runs(world, lease=3)
    begun = time.monotonic()
    world.halt()
    world.kms.reply = away
    world.boot()
    world.leases.start()
    until(lambda: world.guests.ended)
    assert time.monotonic() - begun < 4


def test_without_the_tpm_there_is_no_renewal(world: World) -> None:
    runs(world, lease=2)
    world.prover.gone = True
    until(lambda: world.guests.ended)


def test_receipt(world: World) -> None:
    runs(world, lease=0)
    world.guests.active.clear()
    disk = world.disk
    world.launcher.forget(world.instance)
    time.sleep(0.5)
    # not while the disk is there
    assert purposes(world) == []
    disk.unlink()
    until(lambda: purposes(world) == ["erased"])
    until(lambda: "agent.receipt.accepted" in world.events())
    assert world.kms.told[0].lease == "kms#1"
    assert list((world.folder / "state/receipts").iterdir()) == []
    assert list((world.folder / "state/leases").iterdir()) == []


def test_receipt_when_the_key_server_is_back(world: World) -> None:
    """Deletion does not wait for it, nor for the agent's next start."""
    runs(world, lease=0)
    world.guests.active.clear()
    world.kms.reply = away
    world.disk.unlink()
    world.launcher.forget(world.instance)
    assert not world.store.root.joinpath(
        "instances", world.instance + ".json"
    ).exists()
    time.sleep(0.5)
    world.halt()
    world.kms.reply = lambda path: None
    world.boot()
    world.receipts.start()
    until(lambda: purposes(world) == ["erased"])


def test_receipt_that_is_refused_is_let_go(world: World) -> None:
    runs(world, lease=0)
    world.kms.reply = lambda path: world.kms.error(404, "kms.key.unknown")
    world.disk.unlink()
    world.launcher.forget(world.instance)
    until(lambda: "agent.receipt.refused" in world.events())
    assert list((world.folder / "state/receipts").iterdir()) == []


def test_receipt_of_a_rebuilt_instance(world: World) -> None:
    """The old disk is gone though one of the same name is there."""
    runs(world, lease=0)
    world.disk.unlink()
    world.kms.reply = away
    world.launcher.forget(world.instance)
    world.kms.reply = lambda path: None
    world.make()
    assert world.disk.exists()
    until(lambda: "erased" in purposes(world))


def test_a_guest_forgotten_while_it_runs(world: World) -> None:
    runs(world, lease=2)
    world.launcher.forget(world.instance)
    until(lambda: world.guests.ended)


# -- the process ---------------------------------------------------------


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    name = str(uuid.uuid4())
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "-uuid", name]
    )
    # its arguments show a moment after it began
    line = Path(f"/proc/{process.pid}/cmdline")
    until(lambda: name.encode() in line.read_bytes())
    yield process
    process.kill()
    process.wait()


def guests(folder: Path) -> Guests:
    uri = f"qemu:///system?socket={folder}/none"
    return Guests(Libvirt(uri), str(folder))


def test_killed_by_its_pid_file(
    tmp_path: Path, process: "subprocess.Popen[bytes]"
) -> None:
    instance = str(process.args[-1])  # type: ignore[index]
    found = guests(tmp_path)
    assert found.kill(instance) is False
    (tmp_path / "instance-1.pid").write_text(f"{process.pid}\n")
    # nobody else's
    assert found.kill(str(uuid.uuid4())) is False
    assert process.poll() is None
    assert found.kill(instance) is True
    assert process.wait(5) == -9
    assert found.kill(instance) is False


@pytest.mark.parametrize("text", ["", "x", "1", "0", "-1", "99999999999"])
def test_pid_files_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pid").write_text(text)
    (tmp_path / "b.pid").mkdir()
    assert guests(tmp_path).kill(str(uuid.uuid4())) is False


def test_a_libvirt_that_is_away_stops_at_the_process(
    world: World, process: "subprocess.Popen[bytes]"
) -> None:
    world.instance = str(process.args[-1])  # type: ignore[index]
    os.mkdir(world.instances / world.instance)
    (world.folder / "instance-1.pid").write_text(str(process.pid))
    runs(world, lease=1)
    world.leases.stop()
    leases = Leases(
        world.leases.store,
        guests(world.folder),
        world.journal,
        patience=0.5,
        asker=world.leases.asker,
    )
    world.kms.reply = away
    leases.start()
    assert process.wait(10) == -9
    until(lambda: "agent.lease.stopped" in world.events())
    leases.stop()
