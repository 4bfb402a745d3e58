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
"""What the changed domains of :mod:`.generate` are made of."""

import uuid
from typing import Any

INSTANCE = "4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10"
OTHER = "0d4af31c-9f5e-43a7-bd5b-0d4f6f6d8a11"
DIRECTORY = f"/var/lib/nova/instances/{INSTANCE}"
NAMESPACE = uuid.UUID("6ba0d1a4-53f6-5a3e-9c0e-6d68696c6c00")
USER_DATA = "cd" * 32
QEMU = 'xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0"'

Facts = dict[str, Any]
#: name, text to replace, replacement, expected ids, facts that differ
Row = tuple[str, str, str, list[str], Facts]


def a(*causes: str) -> list[str]:
    return sorted(f"agent.admit.{cause}" for cause in causes)


END = "  </devices>"
DISK = '    <disk type="file" device="disk">'
OVERLAY = f'<source file="{DIRECTORY}/disk">'


def device(xml: str) -> tuple[str, str]:
    return END, f"    {xml}\n{END}"


def foreign(attributes: str, source: str) -> tuple[str, str]:
    return device(
        f'<disk {attributes}><driver name="qemu" type="raw"/>{source}'
        '<target dev="vdb" bus="virtio"/></disk>'
    )


def more(
    name: str,
    kind: str = 'device="disk"',
    *,
    form: str = "qcow2",
    secret: str = "",
    extra: str = "",
) -> tuple[str, str]:
    """One of the instance's disks without a base."""
    secret = secret or str(uuid.uuid5(NAMESPACE, f"{INSTANCE}/{name}/overlay"))
    return device(
        f'<disk type="file" {kind}><driver name="qemu" type="{form}" '
        f'cache="none"/><source file="{DIRECTORY}/{name}">'
        '<encryption format="luks" engine="qemu"><secret type="passphrase" '
        f'uuid="{secret}"/></encryption></source><backingStore/>'
        f'<target dev="hda" bus="ide"/>{extra}</disk>'
    )


def plain_drive(path: str) -> tuple[str, str]:
    return device(
        '<disk type="file" device="cdrom"><driver name="qemu" type="raw" '
        f'cache="none"/><source file="{path}"/>'
        '<target dev="hda" bus="ide"/></disk>'
    )


def plain_disk(
    name: str, target: str = "vdb", bus: str = "virtio", kind: str = "disk"
) -> tuple[str, str]:
    return device(
        f'<disk type="file" device="{kind}"><driver name="qemu" type="qcow2" '
        f'cache="none"/><source file="{DIRECTORY}/{name}"/>'
        f'<target dev="{target}" bus="{bus}"/></disk>'
    )


CDROM = 'device="cdrom"'
RESCUE: Facts = {
    "purpose": "rescue",
    "root": "disk.rescue",
    "more": ["disk.rescue"],
}
PLAIN: Facts = {
    "purpose": "rescue-plain",
    "plain": f"{DIRECTORY}/disk.rescue",
}
CONFIG: Facts = {"more": ["disk.config"]}


TARGET = '<target dev="vda" bus="virtio"/>'
VOLUME = "6f0a3c9e-6f0e-4a53-9d2b-0d9a6f1f1a11"
BLOCK = "/dev/disk/by-path/volume"
#: ``mh_core.volume.secret_uuid`` of it
VOLUME_SECRET = "a421b616-38f1-5212-a425-cfea6e088230"
VOLUMES: Facts = {"volumes": [[VOLUME, "block", BLOCK]]}


def first(found: tuple[str, str]) -> tuple[str, str]:
    """The device at the start of the list instead of its end."""
    return DISK, found[1].removesuffix(END).lstrip("\n") + DISK


def volume(target: str = "vdb", bus: str = "virtio") -> tuple[str, str]:
    return device(
        '<disk type="block" device="disk"><driver name="qemu" type="raw" '
        f'cache="none"/><source dev="{BLOCK}"><encryption format="luks" '
        'engine="qemu"><secret type="passphrase" '
        f'uuid="{VOLUME_SECRET}"/></encryption></source><backingStore/>'
        f'<target dev="{target}" bus="{bus}"/><serial>{VOLUME}</serial></disk>'
    )


def after(target: str, found: tuple[str, str]) -> tuple[str, str]:
    """The root disk at another target, and the device right behind it."""
    old = f"{TARGET}\n    </disk>\n"
    xml = found[1].removesuffix(END)
    return old, old.replace("vda", target) + xml


def top(xml: str) -> tuple[str, str]:
    return "  <devices>", f"  {xml}\n  <devices>"


def in_os(xml: str) -> tuple[str, str]:
    return '    <boot dev="hd"/>', f'    <boot dev="hd"/>\n    {xml}'


MANY = "&a;" * 10
