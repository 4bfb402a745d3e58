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
"""``make bench-launch``: what a trusted launch costs against a plain one.

Launches through the Nova API on one host of the minicloud, the kinds
interleaved in each round:

* plain: the same disk as an ordinary qcow2 image;
* encrypted: our launch, everything included: key server, attestation
  server, TPM, manifest, hashing;
* seed: the seed's own design, the image decrypted and encrypted again into
  a LUKS file of the instance's own before the launch (with our header).

Cold: the image is not in the host's cache. Wall: from the API call to
ACTIVE. CPU: user and system time of the whole machine meanwhile, so run it on
a machine that does nothing else. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import statistics
import subprocess
import sys
import time
import typing

from tests.minicloud import bootimage, guest, layout
from tests.minicloud.cloud import Cloud
from tests.minicloud.process import CloudError
from tests.minicloud.trusted import TrustedCloud
from tests.minicloud.world import PLAIN_FLAVOR, TrustedImage, World

MIB = 1 << 20
_TREES = ("/usr/bin", "/usr/sbin", "/usr/lib/x86_64-linux-gnu")


@dataclasses.dataclass
class Sample:
    wall: float
    cpu: float


@dataclasses.dataclass
class Subject:
    """One disk in both forms."""

    size: int
    plain: typing.Any
    image: TrustedImage


def cpu_seconds() -> float:
    """User and system time of the machine since its start."""
    fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _idle, _wait, irq, soft = map(int, fields[1:8])
    ticks = user + nice + system + irq + soft
    return ticks / os.sysconf("SC_CLK_TCK")


def real_content(folder: pathlib.Path, size: int) -> pathlib.Path:
    """An ext4 file system full of files of this machine's, ``size`` bytes."""
    path = folder / f"content-{size // MIB}.ext4"
    if path.exists():
        return path
    tree = folder / f"tree-{size // MIB}"
    tree.mkdir()
    used = 0
    for top in _TREES:
        for source in sorted(pathlib.Path(top).rglob("*")):
            if not source.is_file() or source.is_symlink():
                continue
            length = source.stat().st_size
            if used + length > size * 0.85:
                continue
            used += length
            target = tree / str(source).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", tree, path, f"{size // 1024}k"],
        check=True,
    )
    subprocess.run(["rm", "-r", tree], check=True)
    return path


class Bench:
    def __init__(self, world: World) -> None:
        self.world = world
        self.node = world.node1
        self.base = self.node.folder / "instances/_base"

    def prepare(self, sizes: list[int]) -> list[Subject]:
        world = self.world
        key = world.create_key("bench")
        folder = world.product.base.parent / "bench"
        folder.mkdir(exist_ok=True)
        subjects = []
        for size in sizes:
            token = "token-" + secrets.token_hex(8)
            raw = bootimage.write(
                world.product.workstation / "bench.raw",
                token.encode(),
                size=size,
                fill=real_content(folder, size),
            )
            disk = raw.with_suffix(".qcow2")
            subprocess.run(
                ["qemu-img", "convert", "-q", "-O", "qcow2", raw, disk],
                check=True,
            )
            name = f"bench-{size // MIB}"
            plain = guest.upload(world.tenant, name, disk, "qcow2")
            image = world.create_image(name, key, disk=(disk, token, b""))
            raw.unlink()
            disk.unlink()
            subjects.append(Subject(size, plain, image))
        return subjects

    def _forget(self, image_id: str) -> None:
        name = hashlib.sha1(image_id.encode()).hexdigest()  # noqa: S324
        for path in self.base.glob(name + "*"):
            path.unlink()

    def once(self, subject: Subject, encrypted: bool, cold: bool) -> Sample:
        world = self.world
        image_id = subject.image.id if encrypted else subject.plain.id
        if cold:
            self._forget(image_id)
        name = "m1.bench.trusted" if encrypted else "m1.bench"
        flavor = world.admin.compute.find_flavor(name)
        ticket = world.ticket(subject.image) if encrypted else ""
        os.sync()
        cpu, begin = cpu_seconds(), time.monotonic()
        server = world.tenant.compute.create_server(
            name="bench",
            image_id=image_id,
            flavor_id=flavor.id,
            networks="none",
            metadata={"mh_ticket": ticket} if encrypted else {},
        )
        while True:
            found = world.admin.compute.get_server(server.id)
            if found.status in ("ACTIVE", "ERROR"):
                break
            time.sleep(0.05)
        sample = Sample(time.monotonic() - begin, cpu_seconds() - cpu)
        try:
            if found.status != "ACTIVE":
                raise CloudError(guest.fault(found))
            guest.wait_console(
                world.admin, found, subject.image.token, timeout=120
            )
        finally:
            guest.delete(world.admin, found)
        return sample

    def rounds(
        self,
        subject: Subject,
        kinds: dict[str, tuple[bool, bool]],
        count: int,
    ) -> dict[str, list[Sample]]:
        """``kinds``: name to (encrypted, cold); interleaved."""
        out: dict[str, list[Sample]] = {name: [] for name in kinds}
        for number in range(count):
            order = list(kinds) if number % 2 == 0 else list(kinds)[::-1]
            for name in order:
                encrypted, cold = kinds[name]
                out[name].append(self.once(subject, encrypted, cold))
        return out

    def force_raw(self, value: bool) -> None:
        self.node.options.force_raw_images = value
        self.world.cloud.restart_compute(self.node)
        self.world.cloud.wait_computes()
        self.world.agent_ready(self.node)
        for path in self.base.glob("*"):
            path.unlink()

    def agent(self, seed: bool) -> None:
        """The real agent, or the one that copies as the seed's design."""
        self.world.product.stop_agent(self.node)
        self.world.product.start_agent(
            self.node, module="tests.bench.seed_agent" if seed else None
        )
        self.world.agent_ready(self.node)


def tpm_ms(world: World) -> float:
    """TPM time of one release: quote and unwrap, median of 15, ms."""
    from mh_core import jose
    from mh_core.tpm.public import Public
    from mh_nova.agent.prover import Prover
    from mh_nova.agent.tpm import Tpm

    node = world.node1
    state = node.folder / "var/lib/mystery-hill/agent"
    tpm = Tpm(node.tpm.tcti, str(world.cloud.where.tmp / "bench.lock"))
    prover = Prover(tpm, str(state), "")
    times = []
    for _round in range(15):
        begin = time.monotonic()
        evidence = prover.release_evidence(bytes(32), bytes(32))
        quoted = time.monotonic() - begin
        bind = Public.parse(evidence.bind_public)
        token = jose.wrap(b"x", bind.jwk(), bytes(32))
        begin = time.monotonic()
        prover.unwrap(token, bytes(32))
        times.append(quoted + time.monotonic() - begin)
    return round(statistics.median(times) * 1000, 1)


def median(samples: list[Sample]) -> Sample:
    return Sample(
        statistics.median(sample.wall for sample in samples),
        statistics.median(sample.cpu for sample in samples),
    )


def run(world: World, sizes: list[int], rounds: int) -> dict[str, typing.Any]:
    bench = Bench(world)
    subjects = bench.prepare(sizes)
    table: dict[tuple[int, str], list[Sample]] = {}

    def add(subject: Subject, found: dict[str, list[Sample]]) -> None:
        for name, samples in found.items():
            table[subject.size, name] = samples

    both = {
        "plain cold": (False, True),
        "encrypted cold": (True, True),
        "plain warm": (False, False),
        "encrypted warm": (True, False),
    }
    bench.force_raw(False)
    for subject in subjects:
        add(subject, bench.rounds(subject, both, rounds))
    bench.agent(seed=True)
    for subject in subjects:
        add(
            subject, bench.rounds(subject, {"seed cold": (True, True)}, rounds)
        )
    bench.agent(seed=False)
    bench.force_raw(True)
    raw = {
        "plain cold, force_raw": (False, True),
        "encrypted cold, force_raw": (True, True),
    }
    for subject in subjects:
        add(subject, bench.rounds(subject, raw, rounds))
    return _report(table, sizes, tpm_ms(world))


def _report(
    table: dict[tuple[int, str], list[Sample]], sizes: list[int], tpm: float
) -> dict[str, typing.Any]:
    print(f"{'MiB':>5}  {'launch':<27} {'wall s, median (min–max)':<26} CPU s")
    for (size, name), samples in sorted(table.items()):
        walls = [sample.wall for sample in samples]
        mid = median(samples)
        spread = f"{mid.wall:6.2f}  ({min(walls):.2f}–{max(walls):.2f})"
        print(f"{size // MIB:>5}  {name:<27} {spread:<26} {mid.cpu:6.2f}")

    def ratio(over: str, under: str, size: int) -> float:
        a, b = median(table[size, over]), median(table[size, under])
        return round(a.wall / b.wall, 3)

    big = max(sizes)
    out: dict[str, typing.Any] = {
        "benchmark": "launch",
        "ratio_cold": ratio("encrypted cold", "plain cold", big),
        "ratio_warm": ratio("encrypted warm", "plain warm", big),
        "ratio_cold_force_raw": ratio(
            "encrypted cold, force_raw", "plain cold, force_raw", big
        ),
        "ratio_seed_design": ratio("seed cold", "plain cold", big),
        "tpm_ms": tpm,
    }
    for size in sizes:
        if size != big:
            label = size // MIB
            out[f"ratio_cold_{label}"] = ratio(
                "encrypted cold", "plain cold", size
            )
            out[f"ratio_warm_{label}"] = ratio(
                "encrypted warm", "plain warm", size
            )
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.launch")
    parser.add_argument("--sizes", default="64,1024", help="MiB")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sizes = [int(size) * MIB for size in options.sizes.split(",")]
    base = os.environ.get("MH_CLOUD_BASE")
    product = TrustedCloud(
        Cloud(pathlib.Path(base) if base else layout.default_base())
    )
    try:
        product.start()
        world = World(product)
        product.enrol(world.node1)
        world.agent_ready(world.node1)
        guest.flavor(world.admin, PLAIN_FLAVOR)
        guest.flavor(world.admin, "m1.bench", disk=2)
        world.only(world.node1)
        guest.flavor(
            world.admin,
            "m1.bench.trusted",
            disk=2,
            **{"trust:trusted_host": "trusted"},
        )
        found = run(world, sizes, options.rounds)
    finally:
        product.stop()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
