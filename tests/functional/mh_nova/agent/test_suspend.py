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
"""suspend, and the gate of a start that restores saved memory."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mh_core.errors import MHError, Unavailable
from tests.functional.mh_nova.agent.world import World


class Saved:
    """libvirt's place: which domain stands in saved memory."""

    def __init__(self) -> None:
        self.xml: dict[str, str] = {}
        self.gone = False

    def saved_xml(self, instance: str) -> str | None:
        if self.gone:
            raise Unavailable("agent.libvirt", "gone")
        return self.xml.get(instance)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    (tmp_path / "qemu/save").mkdir(parents=True)
    world.conf.set_override("require_tmpfs", False, group="agent")
    world.conf.set_override(
        "libvirt_domain_dir", str(tmp_path / "qemu"), group="agent"
    )
    yield world
    world.stop()


@pytest.fixture
def saved(world: World) -> Saved:
    saved: Any = Saved()
    world.launcher._p = replace(world.launcher._p, libvirt=saved)
    return saved  # type: ignore[no-any-return]


def refused(call: Any, *args: Any) -> str:
    with pytest.raises(MHError) as caught:
        call(*args)
    return caught.value.event


def file_of(world: World) -> Path:
    name = world.xml().partition("<name>")[2].partition("</name>")[0]
    return world.folder / f"qemu/save/{name}.save"


def test_suspend_in_the_clear(world: World) -> None:
    world.make()
    event = refused(world.launcher.suspend, world.instance)
    assert event == "agent.suspend.clear"
    (world.folder / "qemu/save").rmdir()
    event = refused(world.launcher.suspend, world.instance)
    assert event == "agent.suspend.clear"


def test_suspend_into_memory(world: World) -> None:
    world.make()
    (world.folder / "qemu/save").rmdir()
    (world.folder / "qemu/save").symlink_to("/dev/shm")
    world.launcher.suspend(world.instance)
    assert world.events()[-1] == "agent.suspend.granted"


def test_suspend_of_no_instance_of_ours(world: World) -> None:
    event = refused(world.launcher.suspend, world.instance)
    assert event == "agent.record.unknown"


def test_both_domains_are_admitted(world: World, saved: Saved) -> None:
    world.make()
    saved.xml[world.instance] = world.xml()
    file_of(world).write_bytes(b"memory")
    world.start()
    assert set(world.secrets.defined) == {world.instance}


def test_a_saved_domain_that_is_not_allowed(
    world: World, saved: Saved
) -> None:
    world.make()
    saved.xml[world.instance] = world.xml().replace(
        "</devices>", "<hostdev mode='subsystem' type='pci'/></devices>"
    )
    assert refused(world.start) == "agent.admit.passthrough"
    assert (world.secrets.defined, world.secrets.ever) == ({}, 0)


def test_the_saved_domain_of_another(world: World, saved: Saved) -> None:
    world.make()
    saved.xml[world.instance] = world.xml().replace(
        f"<uuid>{world.instance}", f"<uuid>{world.new_instance()}"
    )
    assert refused(world.start) == "agent.admit.instance"
    assert world.secrets.ever == 0


def test_a_file_that_libvirt_would_restore_unasked(
    world: World, saved: Saved
) -> None:
    """Put there by somebody: libvirt goes by the name alone."""
    world.make()
    file_of(world).write_bytes(b"memory")
    assert refused(world.start) == "agent.start.saved"
    assert world.secrets.ever == 0
    file_of(world).unlink()
    world.make()
    world.start()


def test_libvirt_does_not_say(world: World, saved: Saved) -> None:
    world.make()
    saved.gone = True
    assert refused(world.start) == "agent.start.saved"
    assert world.secrets.ever == 0


@pytest.mark.parametrize("name", ["", "../x", "a b", "x</name><name>y"])
def test_a_domain_without_a_plain_name(
    world: World, saved: Saved, name: str
) -> None:
    world.make()
    xml = world.xml()
    old = xml.partition("<name>")[2].partition("</name>")[0]
    bad = xml.replace(f"<name>{old}<", f"<name>{name}<")
    assert bad != xml
    event = refused(world.start, "launch", bad)
    assert event.startswith(("agent.admit.", "agent.start.saved"))
    assert world.secrets.ever == 0
