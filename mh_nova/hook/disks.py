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
"""Which disks an instance has beside its root disk, as nova counts them."""

import os
import re
import struct
from typing import Any

from nova.virt import configdrive
from nova.virt import driver as virt_driver
from nova.virt.libvirt import blockinfo
from nova.virt.libvirt import utils as libvirt_utils
from oslo_serialization import jsonutils

from mh_core.errors import Denied

ROOT = "disk"
CONFIG = "disk.config"
SWAP = "disk.swap"
RESCUE = "disk.rescue"
#: Every name of a disk that an instance of ours may have.
NAME = re.compile(
    r"disk(\.(local|swap|eph[0-9]{1,3}|rescue|config(\.rescue)?))?"
)
_MIB = 1 << 20
_GIB = 1 << 30

#: Name and virtual size in bytes; 0 where only its making will tell.
Disks = tuple[tuple[str, int], ...]


def wanted(instance: Any, block_device_info: Any) -> Disks:
    """For an instance that is to be built.

    As ``blockinfo.get_disk_mapping`` and ``LibvirtDriver._create_image``:
    block device mappings first, the flavor where there are none.
    """
    found: list[tuple[str, int]] = []
    ephemerals = virt_driver.block_device_info_get_ephemerals(
        block_device_info
    )
    if instance.flavor.ephemeral_gb and not ephemerals:
        found.append(("disk.local", instance.flavor.ephemeral_gb * _GIB))
    for number, ephemeral in enumerate(ephemerals):
        found.append(
            (blockinfo.get_eph_disk(number), ephemeral["size"] * _GIB)
        )
    swap = virt_driver.block_device_info_get_swap(block_device_info)
    size = instance.flavor.swap or 0
    if virt_driver.swap_is_usable(swap):
        size = swap["swap_size"]
    if size:
        found.append((SWAP, size * _MIB))
    if configdrive.required_by(instance):
        found.append((CONFIG, 0))
    return tuple(found)


def there(instance: Any) -> Disks:
    """For an instance that was built: the files in its directory.

    Their headers are a claim; the agent compares them with its own.
    """
    directory = libvirt_utils.get_instance_path(instance)
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return ()
    return tuple(
        (name, virtual_size(os.path.join(directory, name)))
        for name in names
        if NAME.fullmatch(name)
        and name != ROOT
        and not name.endswith(".rescue")
    )


def resized(there: Disks, wanted: Disks) -> Disks:
    """For an instance that arrives with another flavor.

    Swap is made anew by nova, which does not copy it, and so by the agent;
    what the flavor adds is new as well; what grows does so later.

    :param there: of before, the root disk among them.
    :param wanted: as :func:`wanted`.
    """
    new = {name: size for name, size in wanted if name != CONFIG}
    swap = [(SWAP, new[SWAP])] if SWAP in new else []
    kept = [(name, size) for name, size in there if name != SWAP]
    known = {name for name, _ in there} | {SWAP}
    added = [(name, new[name]) for name in new if name not in known]
    return tuple(kept + swap + added)


def moving(disk_info: str | None) -> tuple[Disks, bool]:
    """For a guest that comes in: as nova's source lists them.

    :returns: the disks beside the root disk; whether that stands alone,
        without a base.
    :raises Denied: ``hook.migration.disk-info``.
    """
    more, alone = [], False
    try:
        for disk in jsonutils.loads(disk_info or "[]"):
            name = os.path.basename(disk["path"])
            if name != ROOT:
                more.append((name, int(disk["virt_disk_size"])))
            else:
                alone = not disk.get("backing_file")
        return tuple(more), alone
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise Denied(
            "hook.migration.disk-info", "the source's list of disks is not one"
        ) from exc


def virtual_size(path: str) -> int:
    """What a qcow2 header says, bytes; 0 where there is none."""
    with open(path, "rb") as disk:
        head = disk.read(32)
    if len(head) < 32 or head[:4] != b"QFI\xfb":
        return 0
    (size,) = struct.unpack(">Q", head[24:])
    return int(size)
