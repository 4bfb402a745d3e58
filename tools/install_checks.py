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
"""Whether this machine can run the minicloud, with a reason if not."""

import collections.abc
import os
import pathlib
import shutil
import socket
import subprocess

from tests.minicloud import layout

Say = collections.abc.Callable[[str], None]

DISK = 8 << 30
MEMORY = 4 << 30


def problems(run: pathlib.Path, say: Say) -> list[str]:
    """Return what stands in the way; say what is as it should be."""
    found = []
    for check in (_root, _debian, _path, _disk, _memory, _namespaces, _ports):
        answer = check(run)
        if answer.startswith("!"):
            found.append(answer[1:])
        else:
            say(f"preflight: {answer}")
    say(f"preflight: {_hints()}")
    return found


def _root(run: pathlib.Path) -> str:
    if os.geteuid() != 0:
        return "!root is needed: namespaces, mounts and libvirt; use sudo"
    return "root"


def _debian(run: pathlib.Path) -> str:
    try:
        version = pathlib.Path("/etc/debian_version").read_text().strip()
    except OSError:
        return "!this is not Debian; Debian 12 is what was tried"
    if not version.startswith("12"):
        return f"!Debian {version}: libvirt, QEMU and RabbitMQ of 12 needed"
    return f"Debian {version}"


def _path(run: pathlib.Path) -> str:
    path = str(run / "cloud")
    if len(path) > layout.LONGEST_BASE:
        return (
            f"!{path} is longer than {layout.LONGEST_BASE} characters, too "
            "long for Unix sockets below it; move the project up"
        )
    if " " in path or "@" in path:
        return f"!{path} has characters that configuration files cannot hold"
    return f"run folder {run}"


def _disk(run: pathlib.Path) -> str:
    where = run if run.exists() else run.parent
    free = shutil.disk_usage(where).free
    if free < DISK and not (run / "venv.stamp").exists():
        return f"!{free >> 20} MiB free at {where}; {DISK >> 20} needed"
    if free < DISK // 4:
        return f"!{free >> 20} MiB free at {where}; {DISK >> 22} needed"
    return f"disk: {free >> 30} GiB free"


def _memory(run: pathlib.Path) -> str:
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            total = int(value.split()[0]) << 10
            if total < MEMORY * 9 // 10:
                return f"!{total >> 20} MiB of memory; {MEMORY >> 20} needed"
            return f"memory: {total >> 30} GiB"
    return "memory: unknown"


def _namespaces(run: pathlib.Path) -> str:
    script = "hostname preflight && mount -t tmpfs tmpfs /mnt"
    done = subprocess.run(
        ["unshare", "--mount", "--uts", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return (
            "!mount and UTS namespaces are refused here "
            f"({done.stderr.strip()}); a container needs CAP_SYS_ADMIN"
        )
    return "mount and UTS namespaces"


def _ports(run: pathlib.Path) -> str:
    if any((run / "cloud" / "pids").glob("*.json")):
        return "ports: not looked at, a minicloud was left running"
    taken = []
    for name, port in layout.PORTS.items():
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((layout.ADDRESS, port))
            except OSError:
                taken.append(f"{port} ({name})")
    if taken:
        return (
            "!another program has these ports of 127.0.0.1: "
            f"{', '.join(taken)}; `ss -ltnp` names it"
        )
    return f"{len(layout.PORTS)} ports of 127.0.0.1 are free"


def _hints() -> str:
    kvm = "there" if os.path.exists("/dev/kvm") else "not there"
    loop = "there" if os.path.exists("/dev/loop-control") else "not there"
    return f"KVM {kvm} (not used), loop devices {loop} (not needed)"
