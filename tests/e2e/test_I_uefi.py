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
"""A trusted guest with UEFI firmware, which keeps no variables.

The guest is a FAT disk with a script for the firmware's own shell: what it
prints on the console says that this firmware has read this disk.

Nothing here of plain guests: what nova 34 writes for their firmware, libvirt
9.0 refuses ("loader attribute 'secure' cannot be specified when firmware
autoselection is enabled"), with or without this product.
"""

from __future__ import annotations

import collections.abc
import os
import pathlib
import secrets
import subprocess
import typing

import pytest

from tests.minicloud import guest
from tests.minicloud.story import Story
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import TrustedImage, World

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]

FLAVOR = "m1.uefi.trusted"
_NVRAM = "/var/lib/libvirt/qemu/nvram"
_FIRMWARE = "/usr/share/OVMF/OVMF_CODE_4M.fd"


def disk(folder: pathlib.Path, name: str) -> tuple[pathlib.Path, str, bytes]:
    """A disk that only UEFI boots: its path, console token, marker."""
    token = "token-" + secrets.token_hex(8)
    marker = b"marker:" + secrets.token_hex(24).encode()
    path = folder / f"{name}.raw"
    path.unlink(missing_ok=True)
    subprocess.run(
        ["mkfs.vfat", "-C", path, "8192"],
        check=True,
        capture_output=True,
    )
    for entry, text in (
        ("startup.nsh", f"@echo -off\r\necho ran-{token}\r\n".encode()),
        ("marker", marker),
    ):
        subprocess.run(
            ["mcopy", "-i", path, "-", f"::/{entry}"],
            input=text,
            check=True,
            env={**os.environ, "MTOOLS_SKIP_CHECK": "1"},
            capture_output=True,
        )
    return path, f"ran-{token}", marker


@pytest.fixture(scope="module")
def image(world: World, story: Story) -> TrustedImage:
    story.ready()
    image = world.create_image(
        "uefi",
        world.create_key("uefi"),
        disk=disk(world.product.workstation, "uefi"),
    )
    world.tenant.image.update_image(image.id, hw_firmware_type="uefi")
    world.product.openstack(
        "admin",
        *("trusted", "flavor", "create", FLAVOR),
        *("--ram", "192", "--vcpus", "1", "--disk", "1"),
    )
    # together, as guests that seal to a measured boot want them
    world.admin.compute.create_flavor_extra_specs(
        world.admin.compute.find_flavor(FLAVOR),
        {"hw:tpm_version": "2.0", "hw:tpm_model": "tpm-crb"},
    )
    return image


@pytest.fixture(scope="module")
def server(
    world: World, image: TrustedImage
) -> collections.abc.Iterator[typing.Any]:
    server = world.boots("uefi", image, flavor=FLAVOR)
    yield server
    world.delete(server)


def variables(world: World) -> list[str]:
    """Files with variables of guests on host 1."""
    return [path.name for path in world.node1.path(_NVRAM).iterdir()]


def test_boots_without_variables(world: World, server: typing.Any) -> None:
    xml = world.node1.virsh("dumpxml", server.id).stdout
    (loader,) = [line for line in xml.split("\n") if "<loader" in line]
    assert f">{_FIRMWARE}</loader>" in loader
    assert "stateless='yes'" in loader
    assert "<nvram" not in xml
    assert variables(world) == []
    assert "<tpm " in xml
    assert world.node1.virsh("secret-list").stdout.strip() == ""


@pytest.mark.parametrize("kind", ["HARD", "SOFT"])
def test_and_again(
    world: World, image: TrustedImage, server: typing.Any, kind: str
) -> None:
    before = world.node1.virsh("domid", server.id).stdout
    world.tenant.compute.reboot_server(server.id, kind)
    wait_for(
        "another start",
        lambda: (
            world.node1.virsh("domid", server.id, check=False).stdout.strip()
            not in (before.strip(), "-", "")
        ),
        90,
    )
    # until then there may be no domain to ask for its console
    wait_for(
        "no task",
        lambda: not world.admin.compute.get_server(server.id).task_state,
        60,
    )
    # libvirt begins the log anew at each start
    guest.wait_console(world.admin, server, image.token)
    xml = world.node1.virsh("dumpxml", server.id).stdout
    assert "stateless='yes'" in xml
    assert variables(world) == []
