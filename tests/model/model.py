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
hard reboot, or it is deleted. At the end nothing may be left: no guest, no
secret, no disk, no record, and nothing in the clear.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import random
import time
import typing

from tests.minicloud import guest
from tests.minicloud.node import Node
from tests.minicloud.pids import CloudError, end_pids
from tests.minicloud.search import Needle, Search, default_roots
from tests.minicloud.world import TRUSTED_FLAVOR, TrustedImage, World

LARGER = "m1.small2.trusted"
#: Seconds for one operation to end.
SETTLE = 120.0
#: Seconds for a move that was cut off to end.
MOVED = 60.0
#: nova's words for a migration that has not.
MOVING = frozenset(
    {
        "accepted",
        "queued",
        "preparing",
        "running",
        "pre-migrating",
        "migrating",
        "post-migrating",
    }
)
#: Seconds between an operation and a kill, at most.
KILL_AFTER = 3.0
STATES = frozenset(
    {
        "ACTIVE",
        "SHUTOFF",
        "PAUSED",
        "SUSPENDED",
        "RESCUE",
        "VERIFY_RESIZE",
        "SHELVED",
        "SHELVED_OFFLOADED",
    }
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """
    :param before: states in which it is done.
    :param after: states that it may lead to.
    :param admin: only the operator may ask for it.
    """

    name: str
    before: frozenset[str]
    after: frozenset[str]
    body: dict[str, typing.Any]
    admin: bool = False


def _operation(
    name: str,
    before: str,
    after: str,
    body: dict[str, typing.Any],
    admin: bool = False,
) -> Operation:
    return Operation(
        name, frozenset(before.split()), frozenset(after.split()), body, admin
    )


OPERATIONS = (
    _operation("stop", "ACTIVE RESCUE", "SHUTOFF", {"os-stop": None}),
    _operation("start", "SHUTOFF", "ACTIVE", {"os-start": None}),
    _operation(
        "soft reboot", "ACTIVE", "ACTIVE", {"reboot": {"type": "SOFT"}}
    ),
    _operation(
        "hard reboot",
        "ACTIVE SHUTOFF PAUSED",
        "ACTIVE",
        {"reboot": {"type": "HARD"}},
    ),
    _operation("pause", "ACTIVE", "PAUSED", {"pause": None}),
    _operation("unpause", "PAUSED", "ACTIVE", {"unpause": None}),
    _operation("suspend", "ACTIVE", "SUSPENDED", {"suspend": None}),
    _operation("resume", "SUSPENDED", "ACTIVE", {"resume": None}),
    _operation("rescue", "ACTIVE", "RESCUE", {"rescue": {}}),
    _operation("unrescue", "RESCUE", "ACTIVE", {"unrescue": None}),
    _operation("rebuild", "ACTIVE SHUTOFF", "ACTIVE SHUTOFF", {"rebuild": {}}),
    _operation(
        "snapshot",
        "ACTIVE SHUTOFF PAUSED",
        "ACTIVE SHUTOFF PAUSED",
        {"createImage": {"name": "model"}},
    ),
    _operation(
        "shelve",
        "ACTIVE SHUTOFF PAUSED",
        "SHELVED SHELVED_OFFLOADED",
        {"shelve": None},
    ),
    _operation(
        "unshelve",
        "SHELVED SHELVED_OFFLOADED",
        "ACTIVE SHUTOFF",
        {"unshelve": None},
    ),
    _operation("resize", "ACTIVE SHUTOFF", "VERIFY_RESIZE", {"resize": {}}),
    _operation(
        "migrate",
        "ACTIVE SHUTOFF",
        "VERIFY_RESIZE",
        {"migrate": None},
        admin=True,
    ),
    _operation(
        "confirm",
        "VERIFY_RESIZE",
        "ACTIVE SHUTOFF",
        {"confirmResize": None},
    ),
    _operation(
        "revert", "VERIFY_RESIZE", "ACTIVE SHUTOFF", {"revertResize": None}
    ),
    _operation(
        "live migration",
        "ACTIVE PAUSED",
        "ACTIVE PAUSED",
        {"os-migrateLive": {"host": None, "block_migration": "auto"}},
        admin=True,
    ),
)


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


def _say(text: str) -> None:
    print(text, flush=True)


class Model:
    """
    :param hosts: trusted ones, between which instances move.
    :param seed: the same seed draws the same operations.
    """

    def __init__(
        self,
        world: World,
        image: TrustedImage,
        hosts: collections.abc.Sequence[Node],
        seed: int,
        say: collections.abc.Callable[[str], None] = _say,
    ) -> None:
        self.world = world
        self.image = image
        self.hosts = hosts
        self.random = random.Random(seed)  # noqa: S311 - not for secrets
        self.say = say
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
            if len(self.states) < instances and (
                len(self.states) < 2 or self.random.random() < 0.4
            ):
                self._launch(number)
                continue
            self._one(number, self.random.random() < kills)
        self._end()

    def counts(self) -> dict[str, int]:
        return dict(collections.Counter(step.operation for step in self.steps))

    def _launch(self, number: int) -> None:
        begin = time.monotonic()
        server = self.world.launch(f"model-{number}", self.image)
        self.states[server.id] = server.status
        self._note(number, server.id, "create", "", "", begin)
        if server.status != "ACTIVE":
            self._is_wrong(number, f"create: {guest.fault(server)}")
            self._delete(server.id)

    def _one(self, number: int, kill: bool) -> None:
        server = self.random.choice(sorted(self.states))
        before = self.states[server]
        fitting = [one for one in OPERATIONS if before in one.before]
        if not fitting or self.random.random() < 0.05:
            begin = time.monotonic()
            self._delete(server)
            self._note(number, server, "delete", "", before, begin)
            return
        operation = self.random.choice(fitting)
        pause = self.random.random() * KILL_AFTER
        victim = self.random.choice(("agent", "nova-compute", "qemu"))
        begin = time.monotonic()
        accepted = self._ask(server, operation)
        killed = ""
        if kill and accepted:
            time.sleep(pause)
            killed = self._kill(server, victim)
        after = self._settle(server, number, operation.name)
        self.states[server] = after
        self._note(number, server, operation.name, killed, before, begin)
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

    def _ask(self, server: str, operation: Operation) -> bool:
        body = {name: value for name, value in operation.body.items()}
        if operation.name == "rebuild":
            body = {"rebuild": {"imageRef": self.image.id}}
        if operation.name == "resize":
            body = {"resize": {"flavorRef": self._other_flavor(server)}}
        conn = self.world.admin if operation.admin else self.world.tenant
        answer = conn.compute.post(f"/servers/{server}/action", json=body)
        if answer.status_code >= 500:
            raise CloudError(f"{operation.name}: {answer.text[:300]}")
        return bool(answer.status_code < 400)

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

    def _moved(self, server: str) -> None:
        """Wait for the end of a move that was cut off.

        A nova-compute that starts again puts an instance it finds in
        ``resize_prep`` back to rest, and only then reads the message which
        tells it to move that instance; the move ends in ERROR, later.
        """
        end = time.monotonic() + MOVED
        while time.monotonic() < end:
            answer = self.world.admin.compute.get(
                "/os-migrations", params={"instance_uuid": server}
            )
            found = answer.json()["migrations"]
            if all(one["status"] not in MOVING for one in found):
                return
            time.sleep(0.5)

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
        self.states.pop(server, None)
        self.world.delete(self._get(server))

    # -- kills

    def _kill(self, server: str, victim: str) -> str:
        """Kill and bring back what was killed, as systemd would."""
        host = self._get(server).hypervisor_hostname
        node = next((n for n in self.hosts if n.name == host), self.hosts[0])
        if victim == "qemu":
            name = f"guest={self._get(server).instance_name},"
            pids = [
                pid
                for pid in node.namespace.inhabitants()
                if name in _command(pid)
            ]
            end_pids(pids)
        elif victim == "agent":
            node.kill("mh-agent")
            self.world.product.start_agent(node)
            self.world.agent_ready(node)
        else:
            node.kill_compute()
            node.start_compute()
            self.world.cloud.wait_computes()
            self._moved(server)
        return f"{victim} on {node.name}"

    # -- words

    def _note(
        self,
        number: int,
        server: str,
        operation: str,
        killed: str,
        before: str,
        begin: float,
    ) -> None:
        step = Step(
            number,
            server,
            operation,
            killed,
            before,
            self.states.get(server, "-"),
            time.monotonic() - begin,
        )
        self.steps.append(step)
        self.say(
            f"{number:>4}  {server[:8]}  {operation:<15} "
            f"{step.before:>17} -> {step.after:<17} {step.seconds:6.1f} s  "
            f"{killed}"
        )

    def _is_wrong(self, number: int, text: str) -> None:
        self.wrong.append(f"{number}: {text}")
        self.say(f"{number:>4}  WRONG: {text}")

    @staticmethod
    def _domains(node: Node) -> set[str]:
        return set(node.virsh("list", "--all", "--name").stdout.split())

    # -- the end

    def _end(self) -> None:
        """Everything is deleted, and nothing is left."""
        everyone = list(self.states)
        for server in everyone:
            self._delete(server)
        for image in self.world.tenant.image.images(name="model"):
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
        search = Search(
            default_roots(self.world.cloud.base),
            [self.world.product.workstation],
            [Needle("marker", self.image.marker)],
        )
        for hit in search.run():
            self._is_wrong(-1, f"in the clear: {hit}")


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""
