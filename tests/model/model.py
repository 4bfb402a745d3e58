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
"""A model of what may become of an instance, run against the real thing.

An operation is drawn, done to an instance through Nova's API, and the state
it ends in held against the model: where nothing was killed it is the one
that the operation leads to, or, where the operation was refused, the one it
had before. Where a process was killed meanwhile it may also be ERROR, with
a fault that names the cause; an instance in ERROR must be brought back by a
hard reboot, or it is deleted. Before the end nothing may be in the clear,
neither marker nor key; afterwards nothing may be left: no guest, no secret,
no disk, no record. What is always refused is not seen to work, and is wrong
in a run that is long enough for each operation.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import random
import time
import typing

from openstack import exceptions

from tests.minicloud import guest
from tests.minicloud.node import Node
from tests.minicloud.pids import CloudError
from tests.minicloud.world import TRUSTED_FLAVOR, TrustedImage, World
from tests.model.kills import Kills
from tests.model.operations import OPERATIONS, STATES, Operation
from tests.model.outcome import Outcomes, Request
from tests.model.remains import Remains

#: Operations of a run that comes to each of them.
WHOLE = 200
LARGER = "m1.small2.trusted"
#: Seconds for one operation to end.
SETTLE = 120.0
#: Seconds between an operation and a kill, at most.
KILL_AFTER = 3.0


@dataclasses.dataclass
class Step:
    """One line of the run's protocol."""

    number: int
    server: str
    operation: str
    killed: str
    before: str
    after: str
    seconds: float
    outcome: str


def _say(text: str) -> None:
    print(text, flush=True)


class Model:
    """
    :param hosts: trusted ones, between which instances move.
    :param seed: the same seed draws the same operations.
    :param without: names of operations that cannot be done here.
    """

    def __init__(
        self,
        world: World,
        image: TrustedImage,
        hosts: collections.abc.Sequence[Node],
        seed: int,
        say: collections.abc.Callable[[str], None] = _say,
        without: collections.abc.Collection[str] = (),
    ) -> None:
        self.world = world
        self.image = image
        self.hosts = hosts
        self.random = random.Random(seed)  # noqa: S311 - not for secrets
        self.say = say
        self.operations = [
            one for one in OPERATIONS if one.name not in without
        ]
        self.outcomes = Outcomes(world)
        self.kills = Kills(world, hosts)
        self.remains = Remains(world, image, hosts)
        #: What is there of others, and stays.
        self.others = {node.name: self._domains(node) for node in hosts}
        self.states: dict[str, str] = {}
        self.steps: list[Step] = []
        self.wrong: list[str] = []

    # -- a run

    def run(self, instances: int, operations: int, kills: float) -> None:
        """
        :param kills: the share of operations that meet a kill.
        """
        for number in range(operations):
            late = WHOLE <= operations < 2 * number
            # a short run, too, sees one
            due = kills > 0 and operations - number <= 5
            if due and not any(step.killed for step in self.steps):
                self._step(number, instances, 1.0, late)
            else:
                self._step(number, instances, kills, late)
        self._end()
        if operations >= WHOLE:
            for name in self.undone():
                self._is_wrong(-1, f"{name} was never seen to work")

    def _step(
        self, number: int, instances: int, kills: float, late: bool
    ) -> None:
        """One operation; what fails otherwise than the model knows is wrong,
        and the run goes on."""
        server = ""
        try:
            if len(self.states) < instances and (
                len(self.states) < 2 or self.random.random() < 0.4
            ):
                self._launch(number)
                return
            server, operation = self._draw(late)
            self._one(number, server, operation, self.random.random() < kills)
        except (CloudError, exceptions.SDKException) as error:
            self._is_wrong(number, f"{server}: {error}")
            if server in self.states:
                self.states[server] = self._settle(server, number, "failure")

    def counts(self) -> dict[str, dict[str, int]]:
        """By operation and outcome."""
        found: dict[str, dict[str, int]] = {
            one.name: {} for one in self.operations
        }
        for step in self.steps:
            of = found.setdefault(step.operation, {})
            of[step.outcome] = of.get(step.outcome, 0) + 1
        return found

    def undone(self) -> list[str]:
        """Operations that have not been seen to work."""
        counts = self.counts()
        return [name for name, of in counts.items() if not of.get("done")]

    def _draw(self, late: bool) -> tuple[str, Operation | None]:
        """An instance, and what to do to it (None: delete it).

        :param late: prefer what has not been seen to work.
        """
        if late and self.random.random() < 0.5:
            undone = self.undone()
            pairs = [
                (server, one)
                for server, state in sorted(self.states.items())
                for one in self.operations
                if one.name in undone and state in one.before
            ]
            if pairs:
                return self.random.choice(pairs)
        server = self.random.choice(sorted(self.states))
        state = self.states[server]
        fitting = [one for one in self.operations if state in one.before]
        if not fitting or self.random.random() < 0.05:
            return server, None
        return server, self.random.choice(fitting)

    def _launch(self, number: int) -> None:
        begin = time.monotonic()
        server = self.world.launch(f"model-{number}", self.image)
        self.states[server.id] = server.status
        made = server.status == "ACTIVE"
        outcome = "done" if made else "refused"
        self._note(number, server.id, "create", "", "", begin, outcome)
        if not made:
            self._is_wrong(number, f"create: {guest.fault(server)}")
            self._delete(server.id)

    def _one(
        self,
        number: int,
        server: str,
        operation: Operation | None,
        kill: bool,
    ) -> None:
        before = self.states[server]
        begin = time.monotonic()
        if operation is None:
            self._delete(server)
            self._note(number, server, "delete", "", before, begin, "done")
            return
        pause = self.random.random() * KILL_AFTER
        victim = self.random.choice(("agent", "nova-compute", "qemu"))
        request = self._ask(server, operation)
        killed = ""
        if kill and request.accepted:
            time.sleep(pause)
            killed = self.kills.kill(server, victim)
        if operation.name == "confirm" and request.accepted:
            # nova has no word for a server that is being confirmed
            self.outcomes.over(request, 10.0 if killed else 60.0)
        after = self._settle(server, number, operation.name)
        if killed.startswith("qemu"):
            self.kills.noticed(server)
            after = self._settle(server, number, operation.name)
        self.states[server] = after
        done = after in operation.after and self.outcomes.done(
            request, operation.name, 2.0 if killed else 10.0
        )
        outcome = "done" if done else "cut off" if killed else "refused"
        self._note(
            number, server, operation.name, killed, before, begin, outcome
        )
        if outcome == "refused":
            self.say(f"      {self.outcomes.reason(request)}")
        legal = operation.after | {before}
        if killed:
            # whoever was killed, nova may have seen the guest end
            legal |= {"ERROR", "SHUTOFF"}
        if after not in legal:
            self._is_wrong(
                number,
                f"{operation.name} of {server} led from {before} to {after}"
                f": {self._fault(server)}",
            )
        if after not in STATES:
            self._mend(number, server)

    def _ask(self, server: str, operation: Operation) -> Request:
        body = {name: value for name, value in operation.body.items()}
        if operation.name == "rebuild":
            body = {"rebuild": {"imageRef": self.image.id}}
        if operation.name == "resize":
            body = {"resize": {"flavorRef": self._other_flavor(server)}}
        conn = self.world.admin if operation.admin else self.world.tenant
        return self.outcomes.ask(conn, server, body)

    def _other_flavor(self, server: str) -> str:
        name = self._get(server).flavor["original_name"]
        other = LARGER if name == TRUSTED_FLAVOR else TRUSTED_FLAVOR
        return str(self.world.admin.compute.find_flavor(other).id)

    # -- states

    def _get(self, server: str) -> typing.Any:
        return self.world.admin.compute.get_server(server)

    def _fault(self, server: str) -> str:
        return guest.fault(self._get(server)) or "nobody says why"

    def _settle(self, server: str, number: int, name: str) -> str:
        """Wait until nova does nothing with it any more."""
        end = time.monotonic() + SETTLE
        time.sleep(0.3)
        while time.monotonic() < end:
            found = self._get(server)
            if found.task_state is None and found.status not in (
                "RESIZE",
                "REBUILD",
                "MIGRATING",
                "REVERT_RESIZE",
                "BUILD",
                "REBOOT",
                "HARD_REBOOT",
            ):
                return str(found.status)
            time.sleep(0.3)
        self._is_wrong(
            number,
            f"{name} of {server}: {found.status}/{found.task_state} "
            f"after {SETTLE:.0f} s",
        )
        return str(found.status)

    def _mend(self, number: int, server: str) -> None:
        """A way back out of ERROR, as the operator has it."""
        if not guest.fault(self._get(server)):
            self._is_wrong(number, f"{server} is in ERROR without a fault")
        conn = self.world.admin.compute
        conn.reset_server_state(server, "active")
        conn.reboot_server(server, "HARD")
        self.states[server] = self._settle(server, number, "mending")
        if self.states[server] not in STATES:
            self._delete(server)

    def _delete(self, server: str) -> None:
        found = self._get(server)
        self.remains.remember(found)
        self.states.pop(server, None)
        self.world.delete(found)

    # -- words

    def _note(
        self,
        number: int,
        server: str,
        operation: str,
        killed: str,
        before: str,
        begin: float,
        outcome: str,
    ) -> None:
        step = Step(
            number,
            server,
            operation,
            killed,
            before,
            self.states.get(server, "-"),
            time.monotonic() - begin,
            outcome,
        )
        self.steps.append(step)
        self.say(
            f"{number:>4}  {server[:8]}  {operation:<15} "
            f"{step.before:>17} -> {step.after:<17} {step.seconds:6.1f} s  "
            f"{outcome:<7}  {killed}"
        )

    def _is_wrong(self, number: int, text: str) -> None:
        self.wrong.append(f"{number}: {text}")
        self.say(f"{number:>4}  WRONG: {text}")

    @staticmethod
    def _domains(node: Node) -> set[str]:
        return set(node.virsh("list", "--all", "--name").stdout.split())

    # -- the end

    def _end(self) -> None:
        """Nothing is in the clear while instances are there, nor when they
        are deleted; then nothing is left."""
        there = [self.remains.remember(self._get(one)) for one in self.states]
        if self.states and not any(there):
            self._is_wrong(-1, "no instance has a disk")
        self.remains.remember_images()
        self._search("before")
        for server in list(self.states):
            try:
                self._delete(server)
            except exceptions.SDKException as error:
                self._is_wrong(-1, f"delete: {server}: {error}")
        for image in self.world.tenant.image.images():
            # those of a shelved one that was cut off, too
            if image.name.startswith("model"):
                self.world.tenant.image.delete_image(image)
        servers = {step.server for step in self.steps}
        for node in self.hosts:
            for server in sorted(servers):
                for found in self.world.leftovers(node, server):
                    self._is_wrong(-1, f"left on {node.name}: {found}")
            for name in self._domains(node) - self.others[node.name]:
                self._is_wrong(-1, f"left on {node.name}: domain {name}")
            if shown := node.virsh("secret-list").stdout.strip():
                self._is_wrong(-1, f"left on {node.name}: secrets: {shown}")
        self._search("after")

    def _search(self, when: str) -> None:
        found = self.remains.search()
        for text in found:
            self._is_wrong(-1, f"{when} the deletion: {text}")
        self.say(
            f"{when} the deletion: keys of {self.remains.disks} disks and "
            f"{self.remains.images} images looked for, {len(found)} amiss"
        )
