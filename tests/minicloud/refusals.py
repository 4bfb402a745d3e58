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
"""Every launch that must be refused, by whom, and how it is put right.

A refusal is a generator: it brings the cause about, yields what it saw of
the refusal, and undoes the cause when it is resumed.  The engine holds the
event id it yields against the one that is meant to refuse, sees that nothing
is left behind, and that the same launch then succeeds.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import importlib
import typing

from tests.minicloud import guest
from tests.minicloud.process import CloudError
from tests.minicloud.world import TrustedImage, World

Seen = collections.abc.Iterator[str]
Case = collections.abc.Callable[[World, TrustedImage], Seen]


@dataclasses.dataclass(frozen=True)
class Refusal:
    """
    :param by: who is meant to refuse.
    :param event: the id it does so by.
    :param again: the same launch is tried once the cause is undone.
    :param clean: nothing of the launch may be left on the hosts.
    :param foul: nova-compute is the operator's own, see foul_compute.
    """

    name: str
    by: str
    event: str
    case: Case
    again: bool = True
    clean: bool = True
    foul: bool = False


REFUSALS: list[Refusal] = []


def refusal(
    name: str,
    by: str,
    event: str,
    again: bool = True,
    clean: bool = True,
    foul: bool = False,
) -> collections.abc.Callable[[Case], Case]:
    """Registers a case."""

    def register(case: Case) -> Case:
        REFUSALS.append(Refusal(name, by, event, case, again, clean, foul))
        return case

    return register


def try_one(world: World, image: TrustedImage, one: Refusal) -> str:
    """Bring one about, check it, undo it, and see the launch succeed.

    :returns: the event id seen.
    :raises CloudError: not refused, or by somebody else.
    """
    world.compute(foul=one.foul)
    before = {server.id for server in world.servers}
    steps = one.case(world, image)
    try:
        with contextlib.closing(steps):
            seen = next(steps)
            if one.event not in seen:
                raise CloudError(
                    f"{one.event} by the {one.by} expected, seen: {seen}"
                )
            mine = [s for s in world.servers if s.id not in before]
            left = [
                found
                for server in mine
                for node in world.cloud.nodes
                for found in world.leftovers(node, server.id)
            ]
            if left and one.clean:
                raise CloudError(f"left behind: {', '.join(left)}")
            with contextlib.suppress(StopIteration):
                next(steps)
                raise CloudError("a case that yields twice")
    finally:
        world.delete(*[s for s in world.servers if s.id not in before])
    if one.again:
        world.delete(world.boots("again", image))
    found = world.events_in(seen)
    return next((e for e in found if e.startswith(one.event)), one.event)


def load() -> list[Refusal]:
    """Every case, registered."""
    importlib.import_module("tests.minicloud.cases")
    return REFUSALS


def fault(world: World, server: typing.Any) -> str:
    """Nova's word on a launch that must not have succeeded."""
    if server.status == "ACTIVE":
        raise CloudError(f"{server.name} was not refused: it is ACTIVE")
    message = guest.fault(server)
    if not message:
        raise CloudError(f"{server.name} is in ERROR, and nobody says why")
    if len(message) > 255:
        raise CloudError(f"the fault is too long: {message}")
    return message


def launch(world: World, image: TrustedImage, **more: typing.Any) -> str:
    """One launch and its fault."""
    return fault(world, world.launch("refused", image, **more))
