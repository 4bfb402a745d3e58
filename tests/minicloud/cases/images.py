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
"""Images and their properties changed behind the tenant's back."""

from __future__ import annotations

from mh_core import jose
from mh_core.encoding import unb64u
from mh_core.manifest import Manifest
from tests.minicloud import guest
from tests.minicloud.foul.glance import Glance
from tests.minicloud.process import CloudError
from tests.minicloud.refusals import Seen, launch, refusal
from tests.minicloud.world import PLAIN_FLAVOR, TrustedImage, World


def _glance(world: World) -> Glance:
    return Glance(world.cloud.where.mysql_socket, world.glance_store)


@refusal(
    "image bytes changed, Glance's own digests updated to match",
    "agent",
    "agent.measure.digest",
)
def changed_bytes(world: World, image: TrustedImage) -> Seen:
    world.forget_base(image.id)
    undo = _glance(world).change_bytes(image.id)
    try:
        yield launch(world, image)
    finally:
        undo()


@refusal(
    "the manifest of another image of the same key",
    "agent",
    "agent.measure.image",
)
def other_manifest(world: World, image: TrustedImage) -> Seen:
    undo = _glance(world).swap_manifest(image.id, world.second(image).id)
    try:
        yield launch(world, image, ticket=world.ticket(world.second(image)))
    finally:
        undo()


@refusal(
    "a manifest signed by another tenant",
    "key server",
    "kms.release.manifest",
)
def foreign_manifest(world: World, image: TrustedImage) -> Seen:
    glance = _glance(world)
    token = glance.properties(image.id)["mh_manifest"]
    manifest = Manifest.parse(unb64u(token.split(".")[1]))
    forged = manifest.sign(jose.generate_key())
    undo = glance.set_properties(image.id, {"mh_manifest": forged})
    try:
        yield launch(world, image)
    finally:
        undo()


@refusal(
    "mh_* properties stripped: does not boot, and no garbage either",
    "nova or the hook",
    "encrypt",
)
def stripped(world: World, image: TrustedImage) -> Seen:
    undo = _glance(world).strip(image.id, "mh_", "trait:")
    try:
        said = launch(world, image, flavor=PLAIN_FLAVOR)
        yield said if "hook.stripped" not in said else "encrypt: " + said
    finally:
        undo()


@refusal(
    "another project launching the tenant's shared image",
    "key server",
    "kms.release.project",
)
def other_project(world: World, image: TrustedImage) -> Seen:
    world.tenant.image.update_image(image.id, visibility="community")
    try:
        yield launch(world, image, conn=world.other)
    finally:
        world.tenant.image.update_image(image.id, visibility="private")


@refusal(
    "another project launching its own copy of the image",
    "key server",
    "kms.release.project",
)
def copied(world: World, image: TrustedImage) -> Seen:
    path = world.product.stranger / "copy.qcow2"
    path.write_bytes(_glance(world).path(image.id).read_bytes())
    kept = {
        name: value
        for name, value in _glance(world).properties(image.id).items()
        if name.startswith(("mh_", "os_encrypt", "os_decrypt", "trait:"))
    }
    copy = guest.upload(world.other, "copy", path, "qcow2", **kept)
    try:
        yield launch(world, image, conn=world.other, image_id=copy.id)
    finally:
        world.other.image.delete_image(copy.id)
        path.unlink()


@refusal(
    "a launch without a ticket, by the operator in the tenant's project",
    "key server",
    "kms.release.ticket",
)
def no_ticket(world: World, image: TrustedImage) -> Seen:
    yield launch(world, image, conn=world.operator, ticket="A" * 43)


@refusal(
    "a ticket used for a second instance", "key server", "kms.release.ticket"
)
def spent_ticket(world: World, image: TrustedImage) -> Seen:
    ticket = world.ticket(image)
    world.boots("first", image, ticket=ticket)
    world.delete(world.servers[-1])
    yield launch(world, image, ticket=ticket)


@refusal(
    "an ordinary instance goes on booting",
    "nobody",
    "plain-boots",
    again=False,
)
def plain_goes_on(world: World, image: TrustedImage) -> Seen:
    """Not a refusal: an ordinary instance boots in between."""
    picture, token = world.plain_disk()
    server = guest.boot(
        world.tenant,
        "plain",
        picture,
        world.admin.compute.find_flavor(PLAIN_FLAVOR),
    )
    try:
        if token not in guest.wait_console(world.admin, server, token):
            raise CloudError("the plain guest did not boot")
    finally:
        guest.delete(world.admin, server)
        world.tenant.image.delete_image(picture.id)
    yield "plain-boots"
