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

"""Hosts whose processes stop at named steps, and are killed there.

Nothing is in the product for it: agent and nova-compute run under
``tests.fixture.halting_agent`` and ``tests.minicloud.halting_compute``.
"""

from __future__ import annotations

import collections.abc
import contextlib
import os
import pathlib
import signal
import time
import typing

from tests.fixture.halting import Halt
from tests.minicloud import guest
from tests.minicloud.node import Node
from tests.minicloud.pids import end_pids
from tests.minicloud.process import CloudError
from tests.minicloud.trusted import SOURCES, wait_for
from tests.minicloud.world import TrustedImage, World

AGENT = "tests.fixture.halting_agent"
COMPUTE = "tests.minicloud.halting_compute"


class Mortal:
    """
    :param node: its agent and nova-compute run.
    :param options: for its nova-compute, as they stand in ``nova.conf``.
    """

    # how soon nova looks for what moves of deleted servers left
    SOON = (
        "[DEFAULT]\ninstance_delete_interval = 5\n"
        "running_deleted_instance_poll_interval = 5\n"
    )

    def __init__(self, world: World, node: Node, options: str = SOON) -> None:
        self.world, self.node, self._options = world, node, options
        self.cloud, self.product = world.cloud, world.product
        self._extra = ""
        self.halt = Halt(node.folder / "run/mystery-hill/halt")

    def begin(self) -> None:
        """Run both with their steps named."""
        self.product.stop_agent(self.node)
        self.start_agent()
        self.node.options.command = ["python", "-m", COMPUTE]
        self.node.options.env = SOURCES
        self._extra = self.node.options.extra
        self.node.options.extra += self._options
        self.cloud.restart_compute(self.node)
        self.ready()

    def end(self) -> None:
        """The product's own programs again."""
        self.halt.clear()
        self.product.stop_agent(self.node)
        self.product.start_agent(self.node)
        self.node.options.command = ["mh-nova-compute"]
        self.node.options.env = {}
        self.node.options.extra = self._extra
        self.cloud.restart_compute(self.node)
        self.ready()

    def ready(self) -> None:
        self.cloud.wait_computes()
        self.world.agent_ready(self.node)

    def start_agent(self) -> None:
        socket = self.node.folder / "run/mystery-hill/agent.sock"
        socket.unlink(missing_ok=True)
        self.product.start_agent(self.node, AGENT)

    # -- deaths

    @contextlib.contextmanager
    def standing(self, step: str) -> collections.abc.Iterator[None]:
        """Come there in what the caller has begun by the end of the block;
        the process goes on when this is left."""
        self.halt.order(step)
        try:
            yield
            self.halt.wait(60)
        except BaseException:
            self.halt.clear()
            raise

    def kill(self, victim: str, server: typing.Any = None) -> None:
        if victim == "agent":
            self.node.kill("mh-agent")
        elif victim == "nova-compute":
            self.node.kill_compute()
        elif victim == "qemu":
            end_pids(self.qemu(server), signals=(signal.SIGKILL,))
        else:
            raise ValueError(victim)

    def qemu(self, server: typing.Any) -> list[int]:
        """The guest's process."""
        found = []
        for pid in self.node.namespace.inhabitants():
            try:
                words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if f"\0-uuid\0{server.id}\0".encode() in words:
                found.append(pid)
        if not found:
            raise CloudError("the guest has no process")
        return found

    def revive(self, victim: str) -> None:
        """As systemd would."""
        if victim == "agent":
            self.start_agent()
        elif victim == "nova-compute":
            self.node.start_compute()
            self.cloud.wait_computes()

    # -- what is left

    def settled(self, server: typing.Any) -> typing.Any:
        """Once nova does nothing with it any more."""

        def test() -> typing.Any:
            found = self.world.admin.compute.get_server(server.id)
            if found.task_state is None and found.status in (
                *("ACTIVE", "ERROR", "SHUTOFF", "VERIFY_RESIZE"),
            ):
                return found
            return None

        found = wait_for(f"the end of {server.name}'s task", test, 90)
        if found.status == "ERROR" and not guest.fault(found):
            found = guest.wait_status(self.world.admin, found, "ERROR")
        return found

    def nothing_left(self, server: typing.Any) -> None:
        """Of a server that was deleted: neither file nor record, neither
        secret nor domain; nova looks after some of it in its own time."""

        def left() -> list[str]:
            found = self.world.leftovers(self.node, server.id)
            listed = self.node.virsh("list", "--all", "--uuid").stdout
            if server.id in listed:
                found.append(f"{self.node.name}: domain")
            for name in (server.id, f"{server.id}_resize"):
                if (self.node.folder / "instances" / name).exists():
                    found.append(f"{self.node.name}: {name}")
            state = self.node.folder / "var/lib/mystery-hill/agent"
            inside = self.node.path(str(self.cloud.where.instances))
            for folder in (state, self.node.folder / "instances", inside):
                for parent, _folders, names in os.walk(folder):
                    found += [
                        f"{parent}/{name}"
                        for name in names
                        if name.endswith((".new", ".mh-new", ".part.disk"))
                        or server.id in name
                        and "leases" not in parent
                    ]
            return found

        end = time.monotonic() + 40
        while found := left():
            if time.monotonic() > end:
                raise CloudError("; ".join(found))
            time.sleep(0.3)

    # -- a full disk

    @contextlib.contextmanager
    def small(self) -> collections.abc.Iterator[Small]:
        """nova's instances on a file system that can be made full."""
        path = str(self.cloud.where.instances)
        self.node.command(
            ["mount", "-t", "tmpfs", "-o", f"size={Small.SIZE}", "tmpfs", path]
        )
        small = Small(self.node, path)
        try:
            yield small
        finally:
            # the agent may hold a base
            self.node.command(["umount", "-l", path])
            wait_for("room on the host", self._room, 60)

    def _room(self) -> bool:
        """Whether the scheduler thinks that there is some."""
        placement = self.world.admin.placement
        [found] = placement.get(
            "/resource_providers",
            params={"name": self.node.name},
            microversion="1.20",
        ).json()["resource_providers"]
        inventories = placement.get(
            f"/resource_providers/{found['uuid']}/inventories"
        ).json()["inventories"]
        return bool(inventories.get("DISK_GB", {}).get("total", 0) > 2)


class Small:
    """Two gigabytes, of which the scheduler knows; in memory."""

    SIZE = 2 << 30

    def __init__(self, node: Node, path: str) -> None:
        self._filler = node.path(path) / "filler"

    def fill(self) -> None:
        """Not a page is left."""
        with self._filler.open("wb") as file:
            status = os.fstatvfs(file.fileno())
            os.posix_fallocate(
                file.fileno(), 0, status.f_bfree * status.f_frsize
            )

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)


def launch(world: World, image: TrustedImage) -> typing.Any:
    """Asked for, with its base to be fetched; not waited for."""
    world.forget_base(image.id)
    return world.launch("mortal", image, wait=False)
