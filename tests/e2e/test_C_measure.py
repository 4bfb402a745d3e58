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
"""What is inside an image is measured before it starts, in the real Nova."""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import typing

import pytest

from mh_core import manifest as manifests
from mh_core.manifest import Manifest
from tests.minicloud import debian_image, guest
from tests.minicloud.story import Story
from tests.minicloud.world import TrustedImage, World

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(900)]
FLAVOR = "m1.measured"
KERNEL = "p1:/vmlinuz"


@pytest.fixture(scope="module", autouse=True)
def ready(world: World, story: Story) -> None:
    """Also where this module runs alone."""
    if not story.key:
        story.enrol()
        story.flavor()
        story.tenant_key()
    world.product.openstack(
        "admin",
        *("trusted", "flavor", "create", FLAVOR),
        *("--ram", "512", "--vcpus", "1", "--disk", "2"),
    )


@pytest.fixture(scope="module")
def debian(world: World, story: Story) -> TrustedImage:
    """Debian, of which hosts are to measure what it boots from."""
    marker = b"marker:" + secrets.token_hex(24).encode()
    disk = debian_image.build(world.product.base.parent / "debian", marker)
    path = world.product.workstation / "measured.qcow2"
    # its clear form is the tenant's, and nobody else's
    shutil.move(disk.path, path)
    return world.create_image(
        "measured",
        story.key,
        *("--measure", "boot"),
        disk=(path, disk.token, marker),
    )


def signed(world: World, image: TrustedImage) -> Manifest:
    key = json.loads((world.product.workstation / "signing.jwk").read_text())
    return Manifest.verify(image.properties["mh_manifest"], [key])


def show(world: World, server: typing.Any) -> dict[str, typing.Any]:
    found = world.product.answer(
        "tenant", "trusted", "server", "show", server.id
    )
    return typing.cast(dict[str, typing.Any], found)


def test_debian_boots_and_the_report_names_each_module(
    world: World, debian: TrustedImage
) -> None:
    manifest = signed(world, debian)
    assert manifest.measure == "boot"
    assert {
        *("disk:@boot-area", "disk:@table", "p1:@boot-area", "p2:@boot-area"),
        *(KERNEL, "p1:/initrd.img", "p1:/syslinux.cfg", "p1:/ldlinux.sys"),
    } <= set(manifest.modules)
    server = world.launch("measured", debian, flavor=FLAVOR)
    try:
        assert server.status == "ACTIVE", guest.fault(server)
        guest.wait_console(world.tenant, server, debian.token, timeout=240)
        shown = show(world, server)
        assert shown["verdict"].startswith("trusted"), shown
        assert "ciphertext, files, " in shown["check_measured"]
        for name in manifest.modules:
            assert f"files:{name}" in shown["check_measured"]
    finally:
        world.delete(server)
    assert world.leftovers(world.node1, server.id) == []


def test_one_module_that_differs_is_named(
    world: World, debian: TrustedImage
) -> None:
    """The tenant's own signature under another kernel's digest."""
    path = world.product.workstation / "signing.jwk"
    key = json.loads(path.read_text())
    honest = signed(world, debian)
    lying = dataclasses.replace(
        honest, modules={**honest.modules, KERNEL: "12" * 32}
    )
    token = lying.sign(key)
    world.kms(
        "POST", f"/v1/keys/{debian.key_id}/manifests", {"manifest": token}
    )
    world.tenant.image.update_image(debian.id, mh_manifest=token)
    changed = dataclasses.replace(
        debian, manifest_digest=manifests.digest(token)
    )
    server = world.launch("differs", changed, flavor=FLAVOR)
    try:
        assert server.status == "ERROR"
        reason = show(world, server)["reason"]
        assert f"{KERNEL} is not what the manifest says" in reason, reason
        assert server.id not in world.running_guests()
        assert world.node1.virsh("secret-list").stdout.strip() == ""
    finally:
        world.delete(server)
        world.tenant.image.update_image(
            debian.id, mh_manifest=debian.properties["mh_manifest"]
        )
    assert world.leftovers(world.node1, server.id) == []
