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
"""Kills in the middle of an operation, and what systemd does then."""

from __future__ import annotations

import collections.abc
import signal
import time

from tests.minicloud.node import Node
from tests.minicloud.pids import end_pids
from tests.minicloud.world import World

#: Seconds for a move that was cut off to end.
MOVED = 60.0
#: Seconds for nova to see that a guest is off.
NOTICED = 30.0
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


class Kills:
    """
    :param hosts: trusted ones.
    """

    def __init__(
        self, world: World, hosts: collections.abc.Sequence[Node]
    ) -> None:
        self.world = world
        self.hosts = hosts

    def kill(self, server: str, victim: str) -> str:
        """Kill and bring back what was killed, as systemd would.

        :returns: who died; empty where there was nobody.
        """
        found = self.world.admin.compute.get_server(server)
        node = self._node(found.hypervisor_hostname)
        if victim == "qemu":
            name = f"guest={found.instance_name},"
            pids = [
                pid
                for pid in node.namespace.inhabitants()
                if name in _command(pid)
            ]
            if not pids:
                return ""
            end_pids(pids, signals=(signal.SIGKILL,))
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

    def noticed(self, server: str) -> None:
        """Wait until nova has seen that a guest is off: it leaves one that
        may be rebooting alone for a while."""
        end = time.monotonic() + NOTICED
        while time.monotonic() < end:
            found = self.world.admin.compute.get_server(server)
            if found.status not in ("ACTIVE", "PAUSED"):
                return
            node = self._node(found.hypervisor_hostname)
            if server in node.virsh("list", "--uuid").stdout:
                return
            time.sleep(0.5)

    def _node(self, name: str | None) -> Node:
        found = (node for node in self.hosts if node.name == name)
        return next(found, self.hosts[0])

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


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""
