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
"""``make bench-disk``: a guest's own disk I/O, encrypted against plain.

The chain is what libvirt starts for us: a qcow2+LUKS overlay over the
tenant's qcow2+LUKS image, against a plain qcow2 overlay over a plain qcow2
image, which is what Nova makes with ``force_raw_images`` off. A Linux guest
(Debian's kernel) reads and writes past its own page cache; nothing of the
cloud is in the way. The chains are interleaved in each round, and their
order is turned from round to round.

Cache modes: ``none`` is what Nova uses where the host can; ``writeback``
with everything in the host's page cache is the worst case, since then there
is no disk to wait for. Run it on a machine that does nothing else. The last
line is one JSON object: encrypted ÷ plain, medians, cache ``none``, for the
ciphers we use.
"""

from __future__ import annotations

import argparse
import collections.abc
import dataclasses
import json
import os
import pathlib
import re
import secrets
import stat
import statistics
import subprocess
import sys
import tempfile
import uuid

from mh_core.image import luks1, overlay
from mh_glance import encrypt
from tests.bench.launch import MIB, real_content
from tests.minicloud import debian_image, layout

XTS, CBC = "xts-plain64", "cbc-essiv:sha256"
FIGURES = (
    *("rand_read", "rand_write", "first_write"),
    *("seq_read", "seq_write"),
)
#: What mh_glance and the agent make: (base, overlay).
OURS = (encrypt.CIPHER, XTS)
PATTERN = re.compile(r"MH-IO (\{.*\})")

INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /dev
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do /bin/busybox insmod $module; done
n=0
until [ -b /dev/vda ] || [ $n -gt 200 ]; do
    n=$((n + 1))
    /bin/busybox sleep 0.05
done
/guest_io /dev/vda SECONDS SIZE > /dev/ttyS0 2>&1
/bin/busybox poweroff -f
"""


@dataclasses.dataclass(frozen=True)
class Chain:
    """
    :param base, top: cipher modes; None is in the clear.
    """

    name: str
    base: str | None
    top: str | None


CHAINS = (
    Chain("plain", None, None),
    Chain("xts over xts", XTS, XTS),
    Chain("xts over cbc-essiv", CBC, XTS),
    Chain("cbc-essiv over cbc-essiv", CBC, CBC),
)


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


class Guest:
    """Kernel and initrd of the guest that measures."""

    def __init__(
        self,
        folder: pathlib.Path,
        base: pathlib.Path,
        seconds: float,
        mib: int,
    ) -> None:
        self.kernel, self.initrd = debian_image.boot_files(base, folder)
        program = folder / "guest_io"
        source = pathlib.Path(__file__).with_name("guest_io.c")
        subprocess.run(
            ["gcc", "-O2", "-static", "-pthread", "-o", program, source],
            check=True,
        )
        init = INIT.replace("SECONDS", str(seconds)).replace("SIZE", str(mib))
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
        blockdev: dict[str, object],
        keys: Secrets,
        kvm: bool,
        timeout: float,
    ) -> dict[str, float]:
        """Boot, measure, power off.

        :returns: blocks per second of each of :data:`FIGURES`.
        """
        argv = (
            ["qemu-system-x86_64", "-nodefaults", "-display", "none"]
            + ["-machine", "pc,accel=" + ("kvm" if kvm else "tcg")]
            + [
                "-cpu",
                "host,arch-capabilities=off" if kvm else "max",
                "-m",
                "256",
                "-smp",
                "1",
            ]
            + ["-serial", "stdio", "-no-reboot"]
            + ["-kernel", str(self.kernel), "-initrd", str(self.initrd)]
            + ["-append", "console=ttyS0 quiet mitigations=off"]
            + keys.words
            + ["-blockdev", json.dumps({"node-name": "disk", **blockdev})]
            + ["-device", "virtio-blk-pci,drive=disk"]
        )
        try:
            said = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=keys.fds,
                timeout=timeout,
                check=False,
            ).stdout
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""
        text = said.decode(errors="replace")
        found = PATTERN.search(text)
        if found is None:
            raise RuntimeError(f"the guest measured nothing: {text[-1200:]}")
        figures: dict[str, float] = json.loads(found.group(1))
        return figures


class Disks:
    """The chains of one size, each with its keys."""

    def __init__(self, folder: pathlib.Path, source: pathlib.Path) -> None:
        self.folder = folder
        self.source = source
        self.size = source.stat().st_size
        self.bases: dict[str | None, tuple[pathlib.Path, bytes]] = {}

    def base(self, mode: str | None) -> tuple[pathlib.Path, bytes]:
        """The image of a mode, made once."""
        if mode not in self.bases:
            path = self.folder / f"base-{len(self.bases)}"
            key = secrets.token_bytes(32)
            argv = ["qemu-img", "convert", "-q", "-f", "raw"]
            if mode is None:
                argv += ["-O", "qcow2", str(self.source), str(path)]
                subprocess.run(argv, check=True)
            else:
                self._encrypted(path, key, mode, None)
                keys = Secrets()
                keys.add("out", key)
                target = (
                    "driver=qcow2,encrypt.format=luks,"
                    f"encrypt.key-secret=out,file.filename={path}"
                )
                argv += [*keys.words, "-n", "--target-image-opts"]
                argv += [str(self.source), target]
                subprocess.run(argv, check=True, pass_fds=keys.fds)
                keys.close()
            self.bases[mode] = (path, key)
        return self.bases[mode]

    def _encrypted(
        self,
        path: pathlib.Path,
        key: bytes,
        mode: str,
        backing: tuple[str, str] | None,
    ) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            overlay.write(
                fd, self.size, key, uuid.uuid4(), os.urandom, backing, mode
            )
        finally:
            os.close(fd)

    def chain(
        self, chain: Chain, direct: bool
    ) -> tuple[dict[str, object], Secrets]:
        """A new overlay, and QEMU's description of the two."""
        base, base_key = self.base(chain.base)
        top, top_key = self.folder / "top", secrets.token_bytes(32)
        top.unlink(missing_ok=True)
        backing = (str(base), "qcow2")
        if chain.top is None:
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2"]
                + ["-F", "qcow2", "-b", str(base), str(top)],
                check=True,
            )
        else:
            self._encrypted(top, top_key, chain.top, backing)
        keys = Secrets()

        def layer(
            path: pathlib.Path, mode: str | None, secret: str, key: bytes
        ) -> dict[str, object]:
            out: dict[str, object] = {
                "driver": "qcow2",
                "cache": {"direct": direct, "no-flush": False},
                "file": {
                    "driver": "file",
                    "filename": str(path),
                    "cache": {"direct": direct, "no-flush": False},
                },
            }
            if mode is not None:
                keys.add(secret, key)
                out["encrypt"] = {"format": "luks", "key-secret": secret}
            return out

        blockdev = layer(top, chain.top, "top", top_key)
        under = layer(base, chain.base, "base", base_key)
        blockdev["backing"] = {**under, "read-only": True}
        return blockdev, keys


Table = dict[tuple[str, str], list[dict[str, float]]]


def measure(
    disks: Disks,
    guest: Guest,
    chains: collections.abc.Sequence[Chain],
    rounds: int,
    kvm: bool,
    timeout: float,
) -> Table:
    """Every chain in every cache mode, ``rounds`` times."""
    table: Table = {}
    for chain in chains:
        disks.base(chain.base)
    for number in range(rounds):
        for cache in ("none", "writeback"):
            order = chains if number % 2 == 0 else chains[::-1]
            for chain in order:
                blockdev, keys = disks.chain(chain, cache == "none")
                try:
                    found = guest.run(blockdev, keys, kvm, timeout)
                finally:
                    keys.close()
                table.setdefault((cache, chain.name), []).append(found)
    return table


def medians(table: Table, cache: str, chain: str) -> dict[str, float]:
    samples = table[cache, chain]
    return {
        figure: statistics.median(sample[figure] for sample in samples)
        for figure in FIGURES
    }


def show(
    table: Table, chains: collections.abc.Sequence[Chain]
) -> dict[str, dict[str, float]]:
    """Print it; the ratios of each chain, by ``cache/chain``."""
    ratios = {}
    print(
        f"{'cache':<10} {'chain (overlay over base)':<26} "
        + " ".join(f"{figure:>18}" for figure in FIGURES)
    )
    for cache in ("none", "writeback"):
        plain = medians(table, cache, chains[0].name)
        for chain in chains:
            here = medians(table, cache, chain.name)
            ratio = {f: round(here[f] / plain[f], 3) for f in FIGURES}
            ratios[f"{cache}/{chain.name}"] = ratio
            cells = " ".join(
                f"{here[f]:>10.0f}/s {ratio[f]:>5.2f}" for f in FIGURES
            )
            print(f"{cache:<10} {chain.name:<26} {cells}")
    return ratios


def backend() -> str:
    """The library whose code encrypts inside this QEMU."""
    path = "/usr/bin/qemu-system-x86_64"
    version = subprocess.run(
        [path, "--version"], check=True, capture_output=True, text=True
    ).stdout.split("\n", 1)[0]
    linked = subprocess.run(
        ["ldd", path], check=True, capture_output=True, text=True
    ).stdout
    names = [n for n in ("nettle", "gcrypt") if f"lib{n}" in linked]
    # linked for TLS as well, so it is the ciphers' only where it is alone
    alone = "gnutls" if "libgnutls" in linked else "QEMU's own"
    return f"{version}; ciphers by {', '.join(names) or alone}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.disk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--size", type=int, default=512, help="MiB")
    parser.add_argument("--accel", choices=("tcg", "kvm"), default="tcg")
    options = parser.parse_args()
    kvm = options.accel == "kvm"
    run = layout.RUN
    cached = run / "bench"
    cached.mkdir(parents=True, exist_ok=True)
    base = debian_image.cached(run / "debian")
    source = real_content(cached, options.size * MIB)
    with tempfile.TemporaryDirectory(dir=cached) as name:
        folder = pathlib.Path(name)
        guest = Guest(folder, base, options.seconds, options.size)
        table = measure(
            Disks(folder, source),
            guest,
            CHAINS,
            options.rounds,
            kvm,
            timeout=120 + 40 * options.seconds,
        )
    print(f"QEMU: {backend()}; {'KVM' if kvm else 'TCG'}, one vCPU")
    ratios = show(table, CHAINS)
    ours = next(c.name for c in CHAINS if (c.base, c.top) == OURS)
    print(
        json.dumps(
            {
                "benchmark": "disk",
                **ratios[f"none/{ours}"],
                "cache_writeback": ratios[f"writeback/{ours}"],
                "accelerator": "kvm" if kvm else "tcg",
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
