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

Also with a TPM that takes 200 and 600 ms for each signature, and many
launches at once. Cold: the image is not in the host's cache. Wall: from the
API call to ACTIVE. CPU: user and system time of the whole machine meanwhile,
so run it on a machine that does nothing else. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import collections.abc
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

from tests.bench import slow_tpm
from tests.minicloud import bootimage, guest, layout
from tests.minicloud.cloud import Cloud
from tests.minicloud.process import CloudError
from tests.minicloud.trusted import TrustedCloud
from tests.minicloud.world import PLAIN_FLAVOR, TrustedImage, World

MIB = 1 << 20
GIB = 1 << 30
#: Seconds that many launches at once may take.
PARALLEL_TIMEOUT = 900.0
# Room for many launches at once; Nova builds ten at a time otherwise.
MANY = """
[DEFAULT]
max_concurrent_builds = 0
cpu_allocation_ratio = 64.0
ram_allocation_ratio = 4.0
disk_allocation_ratio = 16.0
"""
_TREES = ("/usr/bin", "/usr/sbin", "/usr/lib/x86_64-linux-gnu")


@dataclasses.dataclass
class Sample:
    wall: float
    cpu: float


@dataclasses.dataclass
class Many:
    """:param seconds: until the last one was up."""

    failed: int
    seconds: float


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
    used = _fill(tree, int(size * 0.85))
    if used < size * 0.7:
        raise CloudError(f"only {used // MIB} MiB of files to fill with")
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", tree, path, f"{size // 1024}k"],
        check=True,
    )
    subprocess.run(["rm", "-r", tree], check=True)
    return path


def _fill(tree: pathlib.Path, limit: int) -> int:
    """Copy files of this machine's into a folder, again if they are few."""
    used = 0
    for turn in range(6):
        for top in _TREES:
            for source in sorted(pathlib.Path(top).rglob("*")):
                if not source.is_file() or source.is_symlink():
                    continue
                length = source.stat().st_size
                if used + length > limit:
                    continue
                used += length
                target = tree / str(turn) / str(source).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        if used > limit * 0.95:
            break
    return used


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
        kinds: Kinds,
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

    def agent(self, seed: bool = False, tcti: str = "") -> None:
        """The real agent anew, or the one that copies as the seed's design.

        :param tcti: by which it reaches its TPM, where not directly.
        """
        product = self.world.product
        product.stop_agent(self.node)
        product.make_agent(self.node, tcti)
        product.start_agent(
            self.node, module="tests.bench.seed_agent" if seed else None
        )
        self.world.agent_ready(self.node)

    def agent_mib(self) -> float:
        """The most memory that the agent had since its start, MiB."""
        pid = self.node.pid("mh-agent")
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        line = next(x for x in status.splitlines() if x.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024, 1)

    def parallel(self, subject: Subject, encrypted: bool, count: int) -> Many:
        """So many launches at once on one host, cold."""
        world = self.world
        image_id = subject.image.id if encrypted else subject.plain.id
        self._forget(image_id)
        name = "m1.bench.trusted" if encrypted else "m1.bench"
        flavor = world.admin.compute.find_flavor(name)
        more: list[dict[str, typing.Any]] = [
            {"metadata": {"mh_ticket": world.ticket(subject.image)}}
            if encrypted
            else {}
            for _number in range(count)
        ]
        begin = time.monotonic()
        servers = [
            world.tenant.compute.create_server(
                name=f"bench-{number}",
                image_id=image_id,
                flavor_id=flavor.id,
                networks="none",
                **one,
            )
            for number, one in enumerate(more)
        ]
        want = {server.id for server in servers}
        try:
            while True:
                found = {
                    server.id: server
                    for server in world.admin.compute.servers(
                        all_projects=True
                    )
                    if server.id in want
                }
                over = [
                    server
                    for server in found.values()
                    if server.status in ("ACTIVE", "ERROR")
                ]
                seconds = time.monotonic() - begin
                if len(over) == count or seconds > PARALLEL_TIMEOUT:
                    break
                time.sleep(0.5)
        finally:
            for server in servers:
                guest.delete(world.admin, server)
        good = sum(server.status == "ACTIVE" for server in over)
        for server in found.values():
            if server.status != "ACTIVE":
                print(f"{server.name}: {guest.fault(server)}")
        return Many(count - good, seconds)


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


Table = dict[tuple[int, str], list[Sample]]
Kinds = dict[str, tuple[bool, bool]]
COLD: Kinds = {"plain cold": (False, True), "encrypted cold": (True, True)}
WARM: Kinds = {"plain warm": (False, False), "encrypted warm": (True, False)}


#: What is measured beside the launches of every size.
PARTS = ("tpm", "seed", "parallel", "raw")


def run(
    world: World,
    sizes: list[int],
    rounds: int,
    warm: int,
    parallel: int,
    parts: collections.abc.Collection[str] = PARTS,
) -> dict[str, typing.Any]:
    """Everything; see the module.

    :param rounds: of cold launches; fewer of what is 4 GiB or more.
    :param warm: rounds of warm ones, which differ by less and cost little.
    :param sizes: bytes, ascending; the seed's design, Nova's default and
        the slow TPMs are measured at the largest below 4 GiB.
    :param parts: of :data:`PARTS`.
    """
    bench = Bench(world)
    subjects = bench.prepare(sizes)
    table: Table = {}
    out: dict[str, typing.Any] = {}

    def both(subject: Subject, suffix: str = "", again: int = warm) -> None:
        large = subject.size >= 4 * GIB
        add(subject, COLD, suffix, max(3, rounds // 2) if large else rounds)
        add(subject, WARM, suffix, again)

    def add(
        subject: Subject,
        kinds: Kinds,
        suffix: str = "",
        count: int = rounds,
    ) -> None:
        for name, samples in bench.rounds(subject, kinds, count).items():
            table[subject.size, name + suffix] = samples
            print(row(subject.size, name + suffix, samples), flush=True)

    main = max((s for s in subjects if s.size < 4 * GIB), key=lambda s: s.size)
    bench.force_raw(False)
    for subject in subjects:
        bench.agent()
        both(subject)
        out[f"agent_mib_{subject.size // MIB}"] = bench.agent_mib()
    for delay in (200, 600) if "tpm" in parts else ():
        with slow_tpm.SlowTpm(world.node1.tpm.port, delay / 1000) as slow:
            bench.agent(tcti=slow.tcti)
            both(main, f", TPM {delay} ms", rounds)
    if "seed" in parts:
        bench.agent(seed=True)
        add(main, {"seed cold": (True, True)})
    bench.agent()
    out["tpm_ms"] = tpm_ms(world)
    if parallel and "parallel" in parts:
        for encrypted in (False, True):
            many = bench.parallel(subjects[0], encrypted, parallel)
            word = "" if encrypted else "_plain"
            out[f"parallel{parallel}{word}_failed"] = many.failed
            out[f"parallel{parallel}{word}_s"] = round(many.seconds, 1)
    if "raw" in parts:
        bench.force_raw(True)
        add(main, COLD, ", force_raw")
    show(table)
    return {"benchmark": "launch", **ratios(table, sizes, main.size), **out}


def row(size: int, name: str, samples: list[Sample]) -> str:
    walls = [sample.wall for sample in samples]
    mid = median(samples)
    spread = f"{mid.wall:6.2f}  ({min(walls):.2f}–{max(walls):.2f})"
    return f"{size // MIB:>5}  {name:<27} {spread:<26} {mid.cpu:6.2f}"


def show(table: Table) -> None:
    print(f"{'MiB':>5}  {'launch':<27} {'wall s, median (min–max)':<26} CPU s")
    for (size, name), samples in sorted(table.items()):
        print(row(size, name, samples))


def ratios(table: Table, sizes: list[int], main: int) -> dict[str, typing.Any]:
    """Of what was measured; ``cpu_`` in the place of ``ratio_``: of the CPU
    time of all processes."""
    out: dict[str, typing.Any] = {}

    def ratio(label: str, size: int, over: str, under: str) -> None:
        if (size, over) in table:
            a, b = median(table[size, over]), median(table[size, under])
            out[f"ratio_{label}"] = round(a.wall / b.wall, 3)
            out[f"cpu_{label}"] = round(a.cpu / b.cpu, 3)

    def pair(label: str, size: int, kind: str) -> None:
        ratio(label, size, f"encrypted {kind}", f"plain {kind}")

    for kind in ("cold", "warm"):
        pair(kind, main, kind)
        for delay in (200, 600):
            pair(f"{kind}_tpm{delay}", main, f"{kind}, TPM {delay} ms")
    pair("cold_force_raw", main, "cold, force_raw")
    ratio("seed_design", main, "seed cold", "plain cold")
    for size in sizes:
        if size != main:
            gib = size // GIB
            label = f"{gib}g" if gib else str(size // MIB)
            pair(f"cold_{label}", size, "cold")
            pair(f"warm_{label}", size, "warm")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.launch")
    parser.add_argument("--sizes", default="64,1024,4096", help="MiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--warm-rounds", type=int, default=15, help="of warm launches"
    )
    parser.add_argument(
        "--parallel", type=int, default=50, help="launches at once; 0: none"
    )
    parser.add_argument(
        "--parts",
        default=",".join(PARTS),
        help="what is measured beside the launches of every size",
    )
    options = parser.parse_args()
    sizes = [int(size) * MIB for size in options.sizes.split(",")]
    base = os.environ.get("MH_CLOUD_BASE")
    product = TrustedCloud(
        Cloud(pathlib.Path(base) if base else layout.default_base())
    )
    try:
        product.cloud.node1.options.extra = MANY
        product.start()
        world = World(product)
        world.admin.set_compute_quotas(
            world.tenant.current_project_id, instances=-1, cores=-1, ram=-1
        )
        product.enrol(world.node1)
        world.agent_ready(world.node1)
        guest.flavor(world.admin, PLAIN_FLAVOR)
        guest.flavor(world.admin, "m1.bench", disk=5)
        world.only(world.node1)
        guest.flavor(
            world.admin,
            "m1.bench.trusted",
            disk=5,
            **{"trust:trusted_host": "trusted"},
        )
        parts = options.parts.split(",")
        found = run(
            world,
            sizes,
            options.rounds,
            options.warm_rounds,
            options.parallel,
            parts,
        )
    finally:
        product.stop()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
