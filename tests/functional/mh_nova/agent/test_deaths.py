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

"""The agent dies at each step of its work, by name, and begins again.

Nothing may be left of it: no secret, no half file, no record of an instance
that is gone, no lease that the key server does not hear the end of.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from mh_core.audit import verify_chain
from mh_nova.agent.journal import read
from tests.fixture import steps
from tests.functional.mh_nova.agent import test_secrets
from tests.functional.mh_nova.agent.mortal import Mortal
from tests.functional.mh_nova.agent.test_copies import Registry
from tests.functional.mh_nova.agent.world import World

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("libvirtd") is None,
        reason="needs root and libvirtd",
    ),
    pytest.mark.timeout(300),
]
libvirtd = test_secrets.uri


@pytest.fixture(scope="module")
def host(
    libvirtd: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mortal]:
    host = Mortal(tmp_path_factory.mktemp("mortal"), libvirtd)
    # it takes the keys of snapshots
    Registry(cast(World, host))
    try:
        host.start()
        yield host
    finally:
        host.stop()


def sound(host: Mortal) -> None:
    """What is true after each death, once the agent runs again."""
    assert host.secrets() == []
    assert host.half() == []
    verify_chain(read(host.state / "audit.log"))


def gone(host: Mortal) -> None:
    """nova has no such instance any more, and told an agent that was dead:
    its next look at what the agent has on record ends it."""
    host.remove()
    for instance in host.ask("abandoned")["instances"]:
        assert instance == host.instance
        host.forget()
    assert host.told()
    assert host.records() == []
    host.base.unlink(missing_ok=True)


@pytest.fixture
def disk(host: Mortal) -> Iterator[Mortal]:
    """With an instance that has run."""
    host.new()
    host.spawn()
    yield host
    gone(host)


def walked(host: Mortal, operation: Callable[[], None]) -> set[str]:
    host.halt.clear()
    operation()
    return set(host.halt.walked())


def test_the_steps_of_a_spawn(host: Mortal) -> None:
    host.new()
    assert walked(host, host.spawn) == set(steps.SPAWN)
    gone(host)


@pytest.mark.parametrize("step", steps.SPAWN)
def test_spawn(host: Mortal, step: str) -> None:
    host.new()
    host.dies_at(step, host.spawn)
    sound(host)
    gone(host)


def test_the_steps_of_an_arrival(disk: Mortal) -> None:
    disk.unknown()
    assert walked(disk, disk.arrive) == set(steps.ARRIVE)


@pytest.mark.parametrize("step", steps.ARRIVE)
def test_arrival(disk: Mortal, step: str) -> None:
    """It starts there, if the agent came to know of it, with the disk as
    it was, or larger; else where it came from."""
    disk.unknown()
    disk.dies_at(step, disk.arrive)
    sound(disk)
    if f"instances/{disk.instance}.json" in disk.records():
        disk.again()


def test_the_steps_of_a_snapshot(disk: Mortal) -> None:
    assert walked(disk, disk.snapshot) == set(steps.SNAPSHOT)


@pytest.mark.parametrize("step", steps.SNAPSHOT)
def test_snapshot(disk: Mortal, step: str) -> None:
    disk.dies_at(step, disk.snapshot)
    sound(disk)
    disk.again()


def test_the_steps_of_a_flattening(disk: Mortal) -> None:
    assert walked(disk, disk.flatten) == set(steps.FLATTEN)


@pytest.mark.parametrize("step", steps.FLATTEN)
def test_flattening(disk: Mortal, step: str) -> None:
    disk.dies_at(step, disk.flatten)
    sound(disk)
    # the disk, with a base or without, is the one on record, and opens
    disk.ask("snapshot-check", instance=disk.instance)


def test_the_steps_of_an_end(disk: Mortal) -> None:
    disk.remove()
    assert walked(disk, disk.forget) == set(steps.FORGET)


@pytest.mark.parametrize("step", steps.FORGET)
def test_end(disk: Mortal, step: str) -> None:
    """The key server hears of the deletion all the same."""
    before = len(disk.kms.told)
    disk.remove()
    disk.dies_at(step, disk.forget)
    sound(disk)
    gone(disk)
    assert len(disk.kms.told) > before


# nova-compute dies, and the agent does not


@pytest.mark.parametrize("step", steps.SPAWN)
def test_nova_compute_dies(host: Mortal, step: str) -> None:
    """Its successor has the agent give up whatever is under way."""
    host.new()
    host.left_at(step, host.spawn)
    host.remove()
    end = time.monotonic() + 10
    while host.records() and not host.ask("abandoned")["instances"]:
        assert time.monotonic() < end
        time.sleep(0.02)
    sound(host)
    gone(host)
