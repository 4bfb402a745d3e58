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
"""A guest that comes in by live migration, and its volumes."""

import os
import re
import uuid
from collections.abc import Callable

import pytest

from mh_core import volume
from mh_core.image import luks1
from tests.functional.mh_nova.agent.test_volumes import (
    File,
    _attached,
    refused,
    started,
    with_volumes,
)
from tests.functional.mh_nova.agent.test_volumes import (
    world as world,  # noqa: PLC0414
)
from tests.functional.mh_nova.agent.world import MIB, World


def arrive(world: World) -> None:
    """As the hook of a live migration's destination."""
    world.launcher.forget(world.instance)
    world.disk.unlink()
    world.launcher.prepare(world.record(), "migrate-in", "")
    world.launcher.make(world.instance, False)


def test_a_guest_comes_in_with_its_volumes(world: World) -> None:
    """At the paths of this host; their keys in a release of their own."""
    started(world)
    one, other = _attached(world), _attached(world)
    arrive(world)
    # nothing is looked at, or asked for, before there is a domain
    asked = len(world.kms.requests)
    here = one.path.rename(one.path.with_name("as-connected-here"))
    before = here.read_bytes()
    xml = with_volumes(world, one.xml(path=str(here)), other.xml("vdc"))
    event, _ = world.launcher.migrate_in(world.instance, xml)
    assert event == "agent.start.granted"
    (request,) = world.kms.requests[asked:]
    assert request.purpose == "attach"
    assert request.disks == (volume.wanted(one.id), volume.wanted(other.id))
    defined = world.secrets.defined[world.instance]
    assert {name: defined[name] for name in (one.secret, other.secret)} == {
        one.secret: one.key(world),
        other.secret: other.key(world),
    }
    assert len(defined) == 4
    assert here.read_bytes() == before
    world.launcher.started(world.instance, True)
    assert not world.secrets.defined
    # it is a server's like any other then
    blank = File(world)
    world.launcher.attach(world.instance, blank.xml("vdd"))


def _blank(world: World, one: File) -> str:
    """Connected to another device: written to, the guest would lose all."""
    one.put(bytes(8 * MIB), 0)
    return "agent.volume.blank"


def _full(world: World, one: File) -> str:
    one.put(bytes(6), 0)
    return "agent.volume.not-blank"


def _another(world: World, one: File) -> str:
    other = _attached(world)
    other.path.rename(one.path)
    return "agent.volume.other"


def _gone(world: World, one: File) -> str:
    one.path.unlink()
    return "agent.volume.open"


def _elsewhere(world: World, one: File) -> str:
    world.conf.set_override("volume_dirs", [], group="agent")
    return "agent.volume.path"


def _other_key(world: World, one: File) -> str:
    """A header that names it, of somebody else's making."""
    area, _ = luks1.build(
        luks1.passphrase(os.urandom(32)),
        uuid.UUID(one.id),
        os.urandom,
        volume.CIPHER_MODE,
    )
    one.put(area, 0)
    return "agent.volume.key"


def _not_allowed(world: World, one: File) -> str:
    world.kms.reply = lambda path: (
        world.kms.error(403, "kms.release.purpose")
        if path.endswith("/release")
        else None
    )
    return "agent.kms.refused"


@pytest.mark.parametrize(
    "change",
    [_blank, _full, _another, _gone, _elsewhere, _other_key, _not_allowed],
)
def test_no_guest_comes_in_with_another_volume(
    world: World, change: Callable[[World, File], str]
) -> None:
    started(world)
    one = _attached(world)
    event = change(world, one) if change is _another else ""
    arrive(world)
    if change is not _another:
        event = change(world, one)
    before = one.path.read_bytes() if one.path.exists() else b""
    defined, asked = world.secrets.ever, len(world.kms.requests)
    found = refused(
        world.launcher.migrate_in,
        world.instance,
        with_volumes(world, one.xml()),
    )
    assert found == event
    assert world.secrets.ever == defined
    # what can be seen without a key is seen before
    if event not in ("agent.volume.key", "agent.kms.refused"):
        assert len(world.kms.requests) == asked
    assert (one.path.read_bytes() if one.path.exists() else b"") == before
    # and that was the only try
    found = refused(world.launcher.migrate_in, world.instance, world.xml())
    assert found == "agent.migrate.not-expected"


def test_none_that_is_in_use_gets_a_header(world: World) -> None:
    """Also where it turns blank after it was looked at."""
    started(world)
    one = _attached(world)
    arrive(world)

    def turn(path: str) -> None:
        if path.endswith("/release"):
            _blank(world, one)

    world.kms.reply = turn
    found = refused(
        world.launcher.migrate_in,
        world.instance,
        with_volumes(world, one.xml()),
    )
    assert found == "agent.volume.blank"
    assert not any(one.path.read_bytes())
    assert not world.secrets.defined


def test_a_guest_that_comes_in_has_them_encrypted(world: World) -> None:
    started(world)
    one = _attached(world)
    for pattern, event in (
        (r"<encryption.*</encryption>", "agent.admit.volume"),
        (r"<serial>.*</serial>", "agent.admit.foreign-disk"),
    ):
        arrive(world)
        found = refused(
            world.launcher.migrate_in,
            world.instance,
            with_volumes(world, re.sub(pattern, "", one.xml())),
        )
        assert found == event
    assert not world.secrets.defined
