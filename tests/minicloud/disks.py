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
"""What a running guest finds on its disks, and what it would write there."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import typing

from tests.minicloud.node import Node
from tests.minicloud.pids import CloudError
from tests.minicloud.world import World

_HEX = re.compile(r"[0-9a-f]{8,}:((?:  ?[0-9a-f]{2}){16})")


class Disks:
    """The disks of a running guest, as the guest sees them: through the
    block layer of its own QEMU, which holds the keys."""

    def __init__(
        self, world: World, server: typing.Any, node: Node | None = None
    ) -> None:
        self.world = world
        self.server = server
        self.node = node or world.node1
        self.folder = self.node.folder / "instances" / server.id

    def _qmp(self, command: str, **arguments: typing.Any) -> typing.Any:
        answer = self.node.virsh(
            "qemu-monitor-command",
            self.server.id,
            json.dumps({"execute": command, "arguments": arguments}),
        )
        found = json.loads(answer.stdout)
        if "error" in found:
            raise CloudError(f"{command}: {found['error']}")
        return found["return"]

    def _node(self, name: str) -> str:
        """QEMU's name of the opened qcow2 over a file."""
        for node in self._qmp("query-named-block-nodes"):
            if node["drv"] == "file" and node["file"].endswith(
                f"/{self.server.id}/{name}"
            ):
                return str(node["node-name"]).replace("storage", "format")
        raise CloudError(f"no {name}")

    def size(self, name: str) -> int:
        """Bytes, as the guest sees it."""
        wanted = self._node(name)
        [size] = [
            node["image"]["virtual-size"]
            for node in self._qmp("query-named-block-nodes")
            if node["node-name"] == wanted
        ]
        return int(size)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Through a socket, so that no file and no log gets it."""
        export = "mh" + secrets.token_hex(4)
        socket = f"/tmp/mh-{export}.sock"
        address = {"type": "unix", "data": {"path": socket}}
        self._qmp("nbd-server-start", addr=address)
        try:
            self._qmp(
                "block-export-add",
                **{"type": "nbd", "id": export, "name": export},
                **{"node-name": self._node(name)},
            )
            path = self.node.path(socket)
            first = offset // 512 * 512
            size = -(-(offset + length - first) // 512) * 512
            done = subprocess.run(
                [
                    *("qemu-io", "-r", "-f", "raw"),
                    *("-c", f"read -v {first} {size}"),
                    f"nbd+unix:///{export}?socket={path}",
                ],
                capture_output=True,
                text=True,
                check=True,
            )
        finally:
            self._qmp("nbd-server-stop")
        data = b"".join(
            bytes.fromhex(row.replace(" ", ""))
            for row in _HEX.findall(done.stdout)
        )
        if len(data) != size:
            raise CloudError(done.stdout[-300:])
        return data[offset - first :][:length]

    def write(self, name: str, offset: int, byte: int) -> None:
        """4 KiB, as if the guest had."""
        [device] = [
            block["qdev"]
            for block in self._qmp("query-block")
            if block.get("inserted", {}).get("node-name") == self._node(name)
        ]
        self.node.virsh(
            "qemu-monitor-command",
            self.server.id,
            "--hmp",
            f'qemu-io -d {device} "write -P {byte} {offset} 4096"',
        )
        if self.read(name, offset, 512) != bytes([byte]) * 512:
            raise CloudError(f"{name} was not written")

    def write_text(self, name: str, offset: int, text: bytes) -> None:
        """As if the guest had; byte for byte, so that nobody but QEMU has
        the whole of it."""
        [device] = [
            block["qdev"]
            for block in self._qmp("query-block")
            if block.get("inserted", {}).get("node-name") == self._node(name)
        ]
        for number, byte in enumerate(text):
            self.node.virsh(
                "qemu-monitor-command",
                self.server.id,
                "--hmp",
                f'qemu-io -d {device} "write -P {byte} {offset + number} 1"',
            )
        if self.read(name, offset, len(text)) != text:
            raise CloudError(f"{name} was not written")

    def names(self) -> list[str]:
        return sorted(
            path.name
            for path in self.folder.iterdir()
            if path.name.startswith("disk") and path.name != "disk.info"
        )


class Plugged(Disks):
    """Its volumes, by their ids."""

    def _node(self, name: str) -> str:
        for block in self._qmp("query-block"):
            # nova names the device after the volume
            if name in block.get("qdev", ""):
                return str(block["inserted"]["node-name"])
        raise CloudError(f"no volume {name}")
