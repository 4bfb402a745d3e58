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

"""Runs the tools, and writes what they made as vectors."""

import base64
import json
import os
import pathlib
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from typing import Any

KEY = b"0123456789abcdef" * 4  # a passphrase for vectors only
HEAD = 4096  # bytes of each header that a vector keeps
SIZE = 64 << 20
KEY_OBJECT = "secret,id=s,file=/dev/fd/{fd}"

Edit = Callable[[bytearray], None]


def run(*command: str) -> str:
    """Run a tool; ``{fd}`` in an argument becomes a descriptor of the key.

    qemu-img fails at random when its PBKDF2 calibration finds that no time
    has passed, so it has more than one chance.
    """
    for _ in range(20):
        fd = os.memfd_create("key")
        os.write(fd, KEY)
        os.lseek(fd, 0, os.SEEK_SET)
        done = subprocess.run(
            [word.replace("{fd}", str(fd)) for word in command],
            pass_fds=[fd],
            capture_output=True,
            text=True,
            check=False,
        )
        os.close(fd)
        if done.returncode == 0:
            return done.stdout
        if "accurate CPU usage" not in done.stderr:
            break
        time.sleep(0.2)
    raise SystemExit(f"{command[0]}: {done.stderr.strip()}")


def pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def put(offset: int, form: str, *values: Any) -> Edit:
    """An edit: write big-endian values at an offset."""

    def edit(head: bytearray) -> None:
        struct.pack_into(">" + form, head, offset, *values)

    return edit


class Maker:
    """Writes vectors into one directory."""

    def __init__(self, directory: pathlib.Path, work: str) -> None:
        self.directory = directory
        self.work = work
        self.tools = {
            "qemu-img": run("qemu-img", "--version").split("\n")[0],
            "cryptsetup": run("cryptsetup", "--version").split("\n")[0],
        }

    def make(self, name: str, *commands: tuple[str, ...]) -> dict[str, Any]:
        """Run the commands, of which the first makes the file ``name``."""
        path = f"{self.work}/{name}"
        for command in commands:
            run(*(word.replace("FILE", path) for word in command))
        with open(path, "rb") as image:
            head = image.read(HEAD)
            size = image.seek(0, os.SEEK_END)
            luks = b""
            pointer = None
            if head[:4] == b"QFI\xfb":
                pointer = head.find(struct.pack(">II", 0x0537BE77, 16))
            if pointer is not None and pointer > 0:
                image.seek(struct.unpack_from(">Q", head, pointer + 8)[0])
                luks = image.read(HEAD)
        return {
            "tool": self.tools[commands[0][0]],
            "commands": [" ".join(command) for command in commands],
            "path": path,
            "pointer": pointer,
            "file_size": size,
            "head": head,
            "luks": luks,
        }

    def vector(
        self,
        name: str,
        made: dict[str, Any],
        expect: str,
        edits: tuple[Edit, ...] = (),
        note: str = "as the tool wrote it",
        backing: tuple[str, str] | None = None,
        **facts: Any,
    ) -> None:
        """Write one vector: ``made`` with edits to its head."""
        head = bytearray(made["head"])
        for edit in edits:
            edit(head)
        document = {
            "title": name.replace("-", " "),
            "tool": made["tool"],
            "commands": made["commands"],
            "edit": note,
            "kind": "qcow2" if made["pointer"] is not None else "luks",
            "file_size": facts.pop("file_size", made["file_size"]),
            "head": pack(bytes(head)),
            "luks": pack(made["luks"]),
            "backing": backing,
            "expect": expect,
            "facts": facts,
        }
        target = self.directory / f"{name}.json"
        target.write_text(json.dumps(document, indent=1) + "\n")
