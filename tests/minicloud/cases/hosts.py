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
"""Hosts that are not what they should be."""

from __future__ import annotations

from mh_core.encoding import unb64u
from mh_core.errors import MHError
from mh_nova.agent.prover import Prover
from tests.minicloud.foul.glance import Glance
from tests.minicloud.node import Node
from tests.minicloud.process import CloudError
from tests.minicloud.refusals import Seen, launch, refusal
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import FOUL_FLAVOR, TrustedImage, World

_EXTENDED = b"something else was started"


def _scheduled(world: World, image: TrustedImage, **more: str) -> str:
    """A launch that finds no host: nova's word, then our filter's."""
    log = world.cloud.where.log / "nova-scheduler.log"
    mark = log.stat().st_size
    said = launch(world, image, **more)
    if "No valid host" not in said:
        return said
    return said + world.log_since(log, mark)


def _extend(world: World, node: Node) -> None:
    """After boot, something that is not in the policy is measured."""
    node.tpm.extend(4, _EXTENDED)
    wait_for(
        f"{node.name} untrusted",
        lambda: world.level(node) != "trusted",
        30,
    )
    world.pause(world.CACHE)


def _reboot_tpm(world: World, node: Node) -> None:
    node.tpm.reset()
    world.agent_ready(node)


@refusal("a host that is not enrolled", "filter", "scheduler.filter.unknown")
def not_enrolled(world: World, image: TrustedImage) -> Seen:
    glance = Glance(world.cloud.where.mysql_socket, world.glance_store)
    undo = glance.strip(image.id, "trait:")
    world.only(world.node2)
    try:
        yield _scheduled(world, image, flavor=FOUL_FLAVOR)
    finally:
        world.only(world.node1, world.node2)
        undo()


@refusal(
    "no trusted host left: server show says what each host is",
    "placement",
    "attest.appraise.passed",
    again=False,
)
def no_host_left(world: World, image: TrustedImage) -> Seen:
    world.only(world.node2)
    try:
        server = world.launch("refused", image)
        shown = world.product.answer(
            "tenant", "trusted", "server", "show", server.id
        )
        if "No valid host" not in shown["reason"]:
            raise CloudError(f"{shown}")
        yield shown["reason"]
    finally:
        world.only(world.node1, world.node2)


@refusal(
    "a host whose boot changed (PCR 4 extended)",
    "filter",
    "scheduler.filter.untrusted",
)
def extended(world: World, image: TrustedImage) -> Seen:
    _extend(world, world.node1)
    try:
        yield _scheduled(world, image)
    finally:
        _reboot_tpm(world, world.node1)


@refusal(
    "the same host, forced by the operator (nova:node1, no trait)",
    "key server",
    "kms.release.attestation",
)
def extended_forced(world: World, image: TrustedImage) -> Seen:
    glance = Glance(world.cloud.where.mysql_socket, world.glance_store)
    undo = glance.strip(image.id, "trait:")
    _extend(world, world.node1)
    try:
        said = launch(
            world, image, conn=world.operator, availability_zone="nova:node1"
        )
        last = world.releases(image.key_id)[-1]
        if (last["event"], last["detail"]) != (
            "kms.release.attestation",
            "attest.appraise.host-policy",
        ):
            said = f"audit: {last['event']} {last['detail']}"
        yield said
    finally:
        undo()
        _reboot_tpm(world, world.node1)


@refusal(
    "the host that is not enrolled, forced by the operator",
    "agent",
    "agent.",
)
def not_enrolled_forced(world: World, image: TrustedImage) -> Seen:
    glance = Glance(world.cloud.where.mysql_socket, world.glance_store)
    undo = glance.strip(image.id, "trait:")
    try:
        yield launch(
            world,
            image,
            conn=world.operator,
            flavor=FOUL_FLAVOR,
            availability_zone="nova:node2",
        )
    finally:
        undo()


def _wrapped(world: World, image: TrustedImage) -> tuple[Prover, str, bytes]:
    """A key of the image wrapped to host 1, as its agent would get it."""
    device, _certificate = world.device(world.node1)
    state = world.node1.folder / "var/lib/mystery-hill/agent"
    log = world.node1.folder / "var/lib/mystery-hill/eventlog"
    prover = Prover(device, str(state), str(log))
    request = world.request(image)
    url = f"/v1/keys/{image.key_id}"
    nonce = world.kms("POST", url + "/challenge", {})["nonce"]
    evidence = prover.release_evidence(unb64u(nonce), request.digest())
    answer = world.kms(
        "POST",
        url + "/release",
        {
            "nonce": nonce,
            "request": request.to_dict(),
            "evidence": evidence.to_dict(),
        },
    )
    jwe = str(answer["jwe"])
    prover.unwrap(jwe, request.digest())  # opens, as long as nothing changes
    return prover, jwe, request.digest()


def _opened(prover: Prover, jwe: str, digest: bytes) -> str:
    try:
        prover.unwrap(jwe, digest)
    except MHError as error:
        return error.event
    return "the old wrapped key opened"


@refusal(
    "a key wrapped before a PCR was extended",
    "TPM",
    "agent.tpm.policy",
    again=False,
)
def wrapped_before_extend(world: World, image: TrustedImage) -> Seen:
    prover, jwe, digest = _wrapped(world, image)
    world.node1.tpm.extend(4, _EXTENDED)
    try:
        yield _opened(prover, jwe, digest)
    finally:
        world.node1.tpm.reset()


@refusal("a key wrapped before the host was reset", "TPM", "agent.tpm.boot")
def wrapped_before_reset(world: World, image: TrustedImage) -> Seen:
    prover, jwe, digest = _wrapped(world, image)
    world.node1.tpm.reset()
    try:
        yield _opened(prover, jwe, digest)
    finally:
        world.agent_ready(world.node1)
