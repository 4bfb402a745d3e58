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
"""A guest that writes all the time and moves, and what is asked of it."""

from __future__ import annotations

import collections.abc
import contextlib
import json
import re
import secrets
import subprocess
import sys
import time
import typing

from tests.minicloud import bootimage, guest
from tests.minicloud.layout import REPOSITORY
from tests.minicloud.node import Node
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import TrustedImage, World

_COUNT = re.compile(r"n=([0-9a-f]{4})")
_PURPOSES = ("launch", "start", "migrate-in")


def create_image(
    world: World, name: str, *words: str, purposes: tuple[str, ...] = ()
) -> TrustedImage:
    """A guest that writes, under a key that may follow it.

    :param words: more of ``openstack trusted image create``.
    :param purposes: more of the key's release policy.
    """
    allowed = [
        word for one in (*_PURPOSES, *purposes) for word in ("--purpose", one)
    ]
    key = world.create_key(name, *allowed)
    path = world.product.workstation / f"{name}.raw"
    token, marker = (
        f"token-of-{name}",
        b"marker:" + secrets.token_hex(24).encode(),
    )
    bootimage.write(path, token.encode(), marker=marker, writes=True)
    return world.create_image(name, key, *words, disk=(path, token, marker))


def count(world: World, server: typing.Any) -> int:
    """Where the guest is by now: read back from its disk, and going on."""

    def last() -> int:
        text = guest.console(world.admin, server)
        assert "!" not in text, "the guest's disk failed"
        found = _COUNT.findall(text)
        return int(found[-1], 16) if found else 0

    before = last()
    return int(wait_for("the guest's count", lambda: (
        now if (now := last()) > before else 0
    ), 30))  # fmt: skip


def settle(world: World, server: typing.Any) -> typing.Any:
    """Wait until no task is left; it must be ACTIVE."""

    def test() -> typing.Any:
        found = world.admin.compute.get_server(server.id)
        return found if found.task_state is None else None

    found = wait_for("the end of the task", test, 120, pause=0.5)
    assert found.status == "ACTIVE", guest.fault(found)
    return found


def host_of(world: World, server: typing.Any) -> str:
    found = world.admin.compute.get_server(server.id)
    return str(found.hypervisor_hostname)


def ask(world: World, server: typing.Any, host: str = "node3") -> None:
    world.admin.compute.live_migrate_server(
        server.id, host=host, block_migration="auto"
    )


def move(world: World, server: typing.Any, host: str) -> None:
    ask(world, server, host)
    settle(world, server)
    assert host_of(world, server) == host, reasons(world, server)


def crawl(world: World, server: typing.Any) -> None:
    """Let a migration that leaves node1 go so slowly that it has no end,
    however seldom a busy machine lets the guest change its memory."""
    # bytes per second; libvirt knows whole MiB only
    limit = {"max-bandwidth": 64 << 10}
    command = {"execute": "migrate-set-parameters", "arguments": limit}
    said = world.node1.virsh(
        "qemu-monitor-command", server.id, json.dumps(command)
    )
    assert "error" not in said.stdout, said.stdout


def reasons(world: World, server: typing.Any) -> str:
    """Everything nova tells about the last move."""
    actions = [
        action
        for action in world.admin.compute.server_actions(server.id)
        if action.action == "live-migration"
    ]
    action = world.admin.compute.get_server_action(
        actions[0].request_id, server.id
    )
    found = world.admin.compute.get_server(server.id)
    return f"{action.events} {action.message} {found.fault}"


def stays(world: World, server: typing.Any, *others: Node) -> None:
    """ACTIVE on node1, running and writing; nothing of it elsewhere."""
    settle(world, server)
    assert host_of(world, server) == "node1"
    assert server.id in world.node1.virsh("list", "--uuid").stdout
    count(world, server)
    for node in others or (world.node3,):
        clean(world, server, node)
    # and it stays so: nova has more to say after the roll-back
    found = world.admin.compute.get_server(server.id)
    assert (found.status, found.task_state) == ("ACTIVE", None)


def clean(world: World, server: typing.Any, node: Node) -> None:
    """Neither domain nor file nor secret nor record of it is on a host."""
    wait_for(
        f"{node.name} to be clean",
        lambda: (
            world.leftovers(node, server.id) == []
            and server.id not in node.virsh("list", "--all", "--uuid").stdout
        ),
        30,
    )


@contextlib.contextmanager
def on_the_wire(world: World) -> collections.abc.Iterator[list[bytes]]:
    """What crosses the migration's ports meanwhile."""
    path = world.cloud.where.tmp / "wire"
    argv = [sys.executable, "-m", "tests.minicloud.wire", str(path)]
    seen: list[bytes] = []
    with subprocess.Popen(argv, cwd=REPOSITORY) as sniffer:
        try:
            wait_for("the sniffer", path.exists, 20)
            yield seen
            time.sleep(1)
        finally:
            sniffer.terminate()
    seen.append(path.read_bytes())
    path.unlink()
