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
"""Parts that are down: nothing is released, and nothing is left."""

from __future__ import annotations

from tests.minicloud.cases.hosts import _scheduled
from tests.minicloud.refusals import Seen, launch, refusal
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import FOUL_FLAVOR, TrustedImage, World


def _forced(world: World, image: TrustedImage) -> str:
    """On host 1, whatever placement and filter think."""
    try:
        return launch(
            world,
            image,
            conn=world.operator,
            flavor=FOUL_FLAVOR,
            image_id=world.untraited(image),
            availability_zone="nova:node1",
        )
    finally:
        world.traited(image)


@refusal("the key server down", "agent", "agent.kms.unavailable")
def kms_down(world: World, image: TrustedImage) -> Seen:
    world.product.stop_kms()
    ticket = "A" * 43  # made before it went down, as far as nova knows
    try:
        yield launch(world, image, ticket=ticket)
    finally:
        world.product.start_kms()


@refusal("the attestation server down", "filter", "scheduler.filter.")
def attest_down(world: World, image: TrustedImage) -> Seen:
    world.product.stop_attest()
    world.pause(world.CACHE)
    try:
        yield _scheduled(world, image)
    finally:
        world.product.start_attest()
        world.agent_ready(world.node1)


@refusal(
    "the attestation server down, host forced",
    "key server",
    "kms.release.authority",
)
def attest_down_forced(world: World, image: TrustedImage) -> Seen:
    world.product.stop_attest()
    try:
        yield _forced(world, image)
    finally:
        world.product.start_attest()
        world.agent_ready(world.node1)


@refusal("the agent down, host forced", "hook", "hook.agent.unavailable")
def agent_down(world: World, image: TrustedImage) -> Seen:
    world.product.stop_agent(world.node1)
    try:
        yield _forced(world, image)
    finally:
        world.product.start_agent(world.node1)
        world.agent_ready(world.node1)


@refusal("the TPM gone, host forced", "agent", "agent.tpm.unavailable")
def tpm_gone(world: World, image: TrustedImage) -> Seen:
    node = world.node1
    node.tpm.stop()
    try:
        yield _forced(world, image)
    finally:
        node.tpm.start()
        world.agent_ready(node)


@refusal("the TPM gone", "filter", "scheduler.filter.unknown")
def tpm_gone_scheduled(world: World, image: TrustedImage) -> Seen:
    node = world.node1
    node.tpm.stop()
    wait_for("node1 unknown", lambda: world.level(node) != "trusted", 30)
    world.pause(world.CACHE)
    try:
        # placement is not told, so that the filter has to say no
        world.untraited(image)
        yield _scheduled(world, image, flavor=FOUL_FLAVOR)
    finally:
        world.traited(image)
        node.tpm.start()
        world.agent_ready(node)


@refusal(
    "libvirt's domain directory on a disk, host forced",
    "agent",
    "agent.guard.tmpfs",
)
def not_on_tmpfs(world: World, image: TrustedImage) -> Seen:
    node = world.node1
    where = "/var/lib/libvirt/qemu"
    node.command(["mount", "--bind", "/var/lib/mystery-hill", where])
    try:
        world.wait_trait(node, False)
        yield _forced(world, image)
    finally:
        node.command(["umount", where])
        world.agent_ready(node)
