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

"""`ssh` and `scp` of the nova-computes: into another node's namespaces.

Nova moves disks by them.  Here every host is the same machine, so that no
server for them needs to listen: `write` makes two shims, which a
nova-compute has first in its PATH, and which run this module with the
standard library alone.  Which cloud it is, they know by the mark that every
process of one carries.
"""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import stat
import sys

MARKER = "MH_MINICLOUD"


def write(folder: pathlib.Path) -> None:
    """Make the shims in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("ssh", "scp"):
        words = [sys.executable, "-I", "-S", __file__, name]
        path = folder / name
        new = folder / f"{name}.{os.getpid()}.new"
        new.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        new.chmod(new.stat().st_mode | stat.S_IXUSR)
        new.replace(path)


def _holder(host: str) -> int:
    """The process that keeps a node's namespaces, by name or address."""
    for number in ("1", "2", "3"):
        if host in (f"node{number}", f"127.0.0.1{number}"):
            base = pathlib.Path(os.environ[MARKER])
            record = base / "pids" / f"node{number}-namespace.json"
            return int(json.loads(record.read_text())["pid"])
    raise ValueError(f"no such host: {host}")


def ssh(words: list[str]) -> list[str]:
    """`ssh -o BatchMode=yes HOST COMMAND…`, as a command of this host's."""
    while words and words[0] == "-o":
        words = words[2:]
    return [
        *("/usr/bin/nsenter", f"--target={_holder(words[0])}"),
        *("--mount", "--uts", "--", *words[1:]),
    ]


def _place(name: str) -> str:
    host, colon, path = name.partition(":")
    return f"/proc/{_holder(host)}/root{path}" if colon else name


def scp(words: list[str]) -> list[str]:
    """`scp [-C] -r FROM TO`, where one is HOST:PATH."""
    names = [word for word in words if not word.startswith("-")]
    return ["/bin/cp", "-r", "--", *map(_place, names)]


def main() -> None:
    command = {"ssh": ssh, "scp": scp}[sys.argv[1]](sys.argv[2:])
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
