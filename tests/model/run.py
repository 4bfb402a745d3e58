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
"""``tox -e model``: a long run of the model on a minicloud of its own.

The last line is one JSON object; its ``seed`` repeats the run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import secrets
import sys

from tests.minicloud import save_dir
from tests.minicloud.cloud import Cloud
from tests.minicloud.trusted import TrustedCloud
from tests.minicloud.world import World
from tests.model.model import LARGER, Model

#: What the operations of the model need of a key.
PURPOSES = (
    "launch",
    "start",
    "resize",
    "migrate-in",
    "snapshot",
    "flatten",
    "rescue",
)


def play(
    world: World, seed: int, instances: int, operations: int, kills: float
) -> Model:
    """One run on a cloud that is up, with host 1 enrolled."""
    product = world.product
    second = product.second_host()
    admin = world.admin.compute
    if admin.find_flavor(LARGER) is None:
        product.openstack(
            "admin",
            *("trusted", "flavor", "create", LARGER),
            *("--ram", "96", "--vcpus", "1", "--disk", "2"),
        )
    world.admin.set_compute_quotas(
        world.tenant.current_project_id, instances=-1, cores=-1, ram=-1
    )
    words = [word for name in PURPOSES for word in ("--purpose", name)]
    key = world.create_key("model", *words)
    image = world.create_image("model", key, "--allow-snapshots")
    print(f"seed {seed}", flush=True)
    hosts = (world.node1, second)
    with contextlib.ExitStack() as stack:
        whys = [
            stack.enter_context(save_dir.encrypted(node, "1G"))
            for node in hosts
        ]
        without = ("suspend", "resume") if any(whys) else ()
        if without:
            print(f"without {', '.join(without)}: {whys}", flush=True)
        model = Model(world, image, hosts, seed, without=without)
        model.run(instances, operations, kills)
    return model


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model.run")
    parser.add_argument("--instances", type=int, default=20)
    parser.add_argument("--operations", type=int, default=200)
    parser.add_argument("--kills", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    options = parser.parse_args()
    base = os.environ.get("MH_CLOUD_BASE")
    product = TrustedCloud(Cloud(pathlib.Path(base) if base else None))
    for node in (*product.cloud.nodes, product.cloud.node3):
        node.options.extra = (
            "[DEFAULT]\ncpu_allocation_ratio = 64.0\n"
            "disk_allocation_ratio = 16.0\n"
        )
    try:
        product.start()
        world = World(product)
        world.flavors()
        product.enrol(world.node1)
        world.agent_ready(world.node1)
        model = play(
            world,
            options.seed,
            options.instances,
            options.operations,
            options.kills,
        )
    finally:
        product.stop()
    for name, counts in model.counts().items():
        print(f"{name:<15} {counts}")
    for text in model.wrong:
        print(f"wrong: {text}")
    print(
        json.dumps(
            {
                "model": model.counts(),
                "seed": options.seed,
                "kills": sum(bool(step.killed) for step in model.steps),
                "wrong": len(model.wrong),
            }
        )
    )
    return 1 if model.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
