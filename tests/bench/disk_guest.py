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
"""The guest of ``make bench-disk``: it boots, measures, and powers off.

It has a disk of each chain, and works on them in turn, a fraction of a second
each: a machine's speed may change by a third from one boot to the next, which
is more than the chains differ.

Where QEMU runs below another hypervisor, one guest in some six was seen to
stop for ever on an idle machine, over any chain, some before they had found
their disk: the vCPU is halted, every thread of QEMU waits, and QMP answers.
Such a guest is known by the processor time it does not use; it is ended and
booted again, and how often is told.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import stat
import subprocess
import tempfile
import time

from mh_core.image import luks1
from tests.minicloud import debian_image

FIGURES = (
    *("rand_read", "rand_write", "first_write"),
    *("seq_read", "seq_write"),
)
#: A guest at work uses most of a processor; in seconds.
STILL, USED = 15.0, 0.5
#: Boots of one guest, the first among them.
BOOTS = 5
PATTERN = re.compile(r"MH-IO (\[.*\])")

INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /dev
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do /bin/busybox insmod $module; done
n=0
until [ -b /dev/LAST ] || [ $n -gt 200 ]; do
    n=$((n + 1))
    /bin/busybox sleep 0.05
done
/guest_io SECONDS SIZE DISKS > /dev/ttyS0 2>&1
/bin/busybox poweroff -f
"""


def memfd(data: bytes) -> int:
    fd = os.memfd_create("bench")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class Secrets:
    """Keys for one run of a tool, each by a descriptor of its own."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.words: list[str] = []

    def add(self, name: str, key: bytes) -> None:
        fd = memfd(luks1.passphrase(key))
        self.fds.append(fd)
        self.words += [
            "--object" if name == "out" else "-object",
            f"secret,id={name},file=/proc/self/fd/{fd}",
        ]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


class Stalled(Exception):
    """The guest used no processor time for :data:`STILL` seconds."""


class Guest:
    """Kernel and initrd of the guest that measures."""

    def __init__(
        self,
        folder: pathlib.Path,
        base: pathlib.Path,
        seconds: float,
        mib: int,
        disks: int,
    ) -> None:
        self.kernel, self.initrd = debian_image.boot_files(base, folder)
        program = folder / "guest_io"
        source = pathlib.Path(__file__).with_name("guest_io.c")
        subprocess.run(
            ["gcc", "-O2", "-static", "-pthread", "-o", program, source],
            check=True,
        )
        names = [f"vd{chr(ord('a') + n)}" for n in range(disks)]
        init = (
            INIT.replace("SECONDS", str(seconds))
            .replace("SIZE", str(mib))
            .replace("LAST", names[-1])
            .replace("DISKS", " ".join(f"/dev/{name}" for name in names))
        )
        mode = stat.S_IFREG | 0o755
        debian_image.extend(
            self.initrd,
            [
                ("init", mode, init.encode()),
                ("guest_io", mode, program.read_bytes()),
            ],
        )

    def run(
        self,
        blockdevs: list[dict[str, object]],
        keys: Secrets,
        kvm: bool,
        timeout: float,
    ) -> list[dict[str, float]]:
        """Boot, measure, power off.

        :returns: blocks per second of each of :data:`FIGURES`, by disk.
        :raises Stalled: the guest stopped; boot it again on new disks.
        :raises RuntimeError: it ended, or had to be ended, without figures.
        """
        argv = (
            ["qemu-system-x86_64", "-nodefaults", "-display", "none"]
            + ["-machine", "pc,accel=" + ("kvm" if kvm else "tcg")]
            + ["-cpu", "host,arch-capabilities=off" if kvm else "max"]
            + ["-m", "256", "-smp", "1", "-serial", "stdio", "-no-reboot"]
            + ["-kernel", str(self.kernel), "-initrd", str(self.initrd)]
            + ["-append", "console=ttyS0 quiet mitigations=off"]
            + keys.words
        )
        for n, blockdev in enumerate(blockdevs):
            # the guest names them by their slots
            node = json.dumps({"node-name": f"disk{n}", **blockdev})
            device = f"virtio-blk-pci,drive=disk{n},addr={n + 4:#x}"
            argv += ["-blockdev", node, "-device", device]
        with tempfile.TemporaryFile() as console:
            qemu = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                pass_fds=keys.fds,
            )
            try:
                watch(qemu, timeout)
            finally:
                qemu.kill()
                qemu.wait()
            console.seek(0)
            text = console.read().decode(errors="replace")
        found = PATTERN.search(text)
        if found is None:
            raise RuntimeError(f"the guest measured nothing: {text[-1200:]}")
        figures: list[dict[str, float]] = json.loads(found.group(1))
        return figures


def watch(process: subprocess.Popen[bytes], timeout: float) -> None:
    """Wait until a process ends, or time is out.

    :raises Stalled: it goes on, and does nothing.
    """
    begun = since = time.monotonic()
    before = processor_time(process.pid)
    while time.monotonic() < begun + timeout:
        try:
            process.wait(timeout=1.0)
            return
        except subprocess.TimeoutExpired:
            used = processor_time(process.pid)
        if used - before > USED:
            since, before = time.monotonic(), used
        elif time.monotonic() - since > STILL:
            raise Stalled


def processor_time(pid: int) -> float:
    """Seconds that all threads of a process had, from proc(5)."""
    line = pathlib.Path(f"/proc/{pid}/stat").read_text()
    words = line.rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
