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
cloud is in the way. One guest has a disk of each chain, and works on them in
turn; their order is turned from round to round.

Cache modes: ``none`` is what Nova uses where the host can; ``writeback``
with everything in the host's page cache is the worst case, since then there
is no disk to wait for. Run it on a machine that does nothing else. The last
line is one JSON object: encrypted ÷ plain, medians, cache ``none``, for the
ciphers we use.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import secrets
import statistics
import subprocess
import sys
import tempfile
import uuid

from mh_core.image import overlay
from mh_glance import encrypt
from tests.bench.disk_guest import BOOTS, FIGURES, Guest, Secrets, Stalled
from tests.bench.launch import MIB, real_content
from tests.minicloud import debian_image, layout

XTS, CBC = "xts-plain64", "cbc-essiv:sha256"
#: What mh_glance and the agent make: (base, overlay).
OURS = (encrypt.CIPHER, XTS)


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
        self, chain: Chain, direct: bool, keys: Secrets
    ) -> dict[str, object]:
        """A new overlay, and QEMU's description of the two.

        :param keys: theirs are added.
        """
        base, base_key = self.base(chain.base)
        name = chain.name.replace(" ", "-")
        top, top_key = self.folder / f"top-{name}", secrets.token_bytes(32)
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

        blockdev = layer(top, chain.top, f"top-{name}", top_key)
        under = layer(base, chain.base, f"base-{name}", base_key)
        blockdev["backing"] = {**under, "read-only": True}
        return blockdev


Table = dict[tuple[str, str], list[dict[str, float]]]


def measure(
    disks: Disks,
    guest: Guest,
    rounds: dict[str, int],
    kvm: bool,
    timeout: float,
) -> tuple[Table, int]:
    """Every chain in every cache mode.

    :param rounds: by cache mode.
    :returns: the figures, and how many guests stalled.
    """
    table: Table = {}
    stalled = 0
    for chain in CHAINS:
        disks.base(chain.base)
    for number in range(max(rounds.values())):
        for cache in ("none", "writeback"):
            if number >= rounds[cache]:
                continue
            at = number % len(CHAINS)
            order = CHAINS[at:] + CHAINS[:at]
            for boot in range(1, BOOTS + 1):
                keys = Secrets()
                try:
                    chains = [
                        disks.chain(chain, cache == "none", keys)
                        for chain in order
                    ]
                    found = guest.run(chains, keys, kvm, timeout)
                    break
                except Stalled:
                    stalled += 1
                    print("a guest stalled; booted again", flush=True)
                    if boot == BOOTS:
                        raise
                finally:
                    keys.close()
            for chain, sample in zip(order, found, strict=True):
                table.setdefault((cache, chain.name), []).append(sample)
        print(f"round {number + 1} is done", flush=True)
    return table, stalled


def show(table: Table) -> dict[str, dict[str, float]]:
    """Print it; the ratios of each chain, by ``cache/chain``.

    :returns: the median over the guests of encrypted ÷ plain in one guest.
    """
    ratios = {}
    print(
        f"{'cache':<10} {'chain (overlay over base)':<26} "
        + " ".join(f"{figure:>18}" for figure in FIGURES)
    )
    for (cache, chain), samples in sorted(table.items()):
        plain = table[cache, CHAINS[0].name]
        ratio, cells = {}, []
        for figure in FIGURES:
            rate = statistics.median(sample[figure] for sample in samples)
            each = [
                here[figure] / there[figure]
                for here, there in zip(samples, plain, strict=True)
            ]
            ratio[figure] = round(statistics.median(each), 3)
            cells.append(f"{rate:>10.0f}/s {ratio[figure]:>5.2f}")
        ratios[f"{cache}/{chain}"] = ratio
        print(f"{cache:<10} {chain:<26} {' '.join(cells)}")
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
    parser.add_argument(
        "--rounds", type=int, default=5, help="guests with cache none"
    )
    parser.add_argument(
        "--writeback-rounds", type=int, default=2, help="with writeback"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.25, help="a turn of a disk"
    )
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
        guest = Guest(folder, base, options.seconds, options.size, len(CHAINS))
        table, stalled = measure(
            Disks(folder, source),
            guest,
            {"none": options.rounds, "writeback": options.writeback_rounds},
            kvm,
            timeout=240 + 1000 * options.seconds,
        )
    print(f"QEMU: {backend()}; {'KVM' if kvm else 'TCG'}, one vCPU")
    ratios = show(table)
    ours = next(c.name for c in CHAINS if (c.base, c.top) == OURS)
    print(
        json.dumps(
            {
                "benchmark": "disk",
                **ratios[f"none/{ours}"],
                "cache_writeback": ratios.get(f"writeback/{ours}", {}),
                "accelerator": "kvm" if kvm else "tcg",
                "stalled": stalled,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
