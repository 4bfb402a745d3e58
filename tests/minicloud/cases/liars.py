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
"""Authorities, hosts and proxies that lie; key URLs that lead elsewhere."""

from __future__ import annotations

import collections.abc
import contextlib
import typing
import uuid

from tests.minicloud.foul import authority, node
from tests.minicloud.foul.glance import Glance
from tests.minicloud.refusals import Seen, launch, refusal
from tests.minicloud.services import port_open
from tests.minicloud.trusted import (
    KMS_ORIGIN,
    LIAR_ORIGIN,
    LIAR_PORT,
    PROXY_ORIGIN,
    PROXY_PORT,
    SOURCES,
)
from tests.minicloud.world import TrustedImage, World


@contextlib.contextmanager
def _liar(world: World) -> collections.abc.Iterator[dict[str, typing.Any]]:
    """A key whose policy names an authority that calls all trusted."""
    key = world.create_key("liar-" + uuid.uuid4().hex[:6])
    signing = world.product.mh / "liar.jwk"
    jwk = authority.signing_key(signing)
    policy = world.kms("GET", f"/v1/keys/{key['id']}")["policy"]
    public = {name: jwk[name] for name in ("kty", "crv", "x", "y")}
    policy["authorities"] = [
        {"issuer": LIAR_ORIGIN, "url": LIAR_ORIGIN, "jwk": public}
    ]
    world.kms("PUT", f"/v1/keys/{key['id']}/policy", policy)
    leaf = world.product.leaf("liar")
    world.cloud.run(
        "mh-liar",
        [
            *("python", "-m", "tests.minicloud.foul.authority"),
            *("--port", str(LIAR_PORT), "--issuer", LIAR_ORIGIN),
            *("--cert", leaf.certificate, "--key-file", leaf.key),
            *("--signing-key", signing),
        ],
        SOURCES,
        ready=lambda: port_open(LIAR_PORT),
    )
    try:
        yield key
    finally:
        world.cloud.end("mh-liar")


def _asks(
    world: World, image: TrustedImage, key_id: str, lie: node.Lie
) -> str:
    """The host asks for the key by itself; what the key server says."""
    request = world.request(image, key_id)
    url = f"{KMS_ORIGIN}/v1/keys/{key_id}"
    answer = node.ask(url, world.product.ca, request, lie)
    recorded = world.kms_audit(key_id)[-1]["event"]
    if answer.released or recorded != answer.event:
        return f"status {answer.status}, recorded: {recorded}"
    return answer.event


@refusal(
    "an authority that calls a software bind key trusted",
    "key server",
    "kms.release.evidence",
    again=False,
)
def software_bind(world: World, image: TrustedImage) -> Seen:
    device, certificate = world.device(world.node1)
    lie = node.software_bind(device, certificate)
    with _liar(world) as key:
        yield _asks(world, image, key["id"], lie)


@refusal(
    "an authority that trusts a bind key the AK never certified",
    "key server",
    "kms.release.evidence",
    again=False,
)
def uncertified_bind(world: World, image: TrustedImage) -> Seen:
    device, certificate = world.device(world.node1)
    other, _none = world.device(world.node2)
    lie = node.uncertified_bind(device, other, certificate)
    with _liar(world) as key:
        yield _asks(world, image, key["id"], lie)


@refusal(
    "host 2 with an AK certificate of its own making",
    "key server",
    "kms.release.evidence",
    again=False,
)
def own_enroller(world: World, image: TrustedImage) -> Seen:
    yield _asks(
        world, image, image.key_id, node.software_host(world.node2.name)
    )


@contextlib.contextmanager
def _proxy(
    world: World, image: TrustedImage, mode: str
) -> collections.abc.Iterator[None]:
    leaf = world.product.leaf("proxy")
    world.cloud.run(
        "mh-proxy",
        [
            *("python", "-m", "tests.minicloud.foul.proxy"),
            *("--port", str(PROXY_PORT), "--upstream", KMS_ORIGIN),
            *("--ca", world.product.ca, "--mode", mode),
            *("--cert", leaf.certificate, "--key-file", leaf.key),
        ],
        SOURCES,
        ready=lambda: port_open(PROXY_PORT),
    )
    url = image.key_url.replace(KMS_ORIGIN, PROXY_ORIGIN)
    glance = Glance(world.cloud.where.mysql_socket, world.glance_store)
    undo = glance.redirect_key(image.id, url)
    try:
        yield
    finally:
        undo()
        world.cloud.end("mh-proxy")


@refusal(
    "a proxy at the key URL that swaps the manifest keys",
    "agent",
    "agent.measure.manifest-signature",
)
def proxy_swaps(world: World, image: TrustedImage) -> Seen:
    with _proxy(world, image, "swap-keys"):
        yield launch(world, image)


@refusal(
    "a proxy that adds manifest keys beside the wrapped key",
    "agent",
    "agent.kms.answer",
)
def proxy_adds(world: World, image: TrustedImage) -> Seen:
    with _proxy(world, image, "extra"):
        yield launch(world, image)


@refusal("a key URL that redirects", "agent", "agent.kms.redirect")
def proxy_redirects(world: World, image: TrustedImage) -> Seen:
    with _proxy(world, image, "redirect"):
        yield launch(world, image)


def _pointed(world: World, image: TrustedImage, origin: str) -> Seen:
    glance = Glance(world.cloud.where.mysql_socket, world.glance_store)
    url = image.key_url.replace(KMS_ORIGIN, origin)
    undo = glance.redirect_key(image.id, url)
    try:
        yield launch(world, image)
    finally:
        undo()


@refusal("a key URL with a link-local address", "agent", "agent.kms.address")
def link_local(world: World, image: TrustedImage) -> Seen:
    yield from _pointed(world, image, world.product.LINK_LOCAL)


@refusal(
    "a key URL pointed at a server not on the operator's list",
    "agent",
    "agent.kms.origin",
)
def other_origin(world: World, image: TrustedImage) -> Seen:
    yield from _pointed(world, image, "https://127.0.0.1:15599")
