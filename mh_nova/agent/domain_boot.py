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
"""Which of a domain's disks the guest boots from.

libvirt gives ``<boot dev="hd"/>`` to the first disk of its own list that is
no CD-ROM.  That list is in the order of the XML, but the disks of one bus
stand together, in the place of the first of them and sorted by their targets
(``virDomainDiskInsert``, ``qemuProcessPrepareDeviceBootorder``; 9.0).  So a
volume at ``vda`` is booted instead of a root disk at ``vdb``, wherever it
stands in the XML.

What is asked for here is more than that rule needs, and no part of it: the
root disk comes first of all, and nothing on its bus has a lower target.
"""

import re
from collections.abc import Sequence
from typing import Any

from mh_core.verdict import Findings
from mh_nova.agent import domain_firmware
from mh_nova.agent.domain_volume import path_of

EVENT = "agent.admit"
#: Those that libvirt knows; no partition, no index that could overflow.
_TARGET = re.compile(r"(?:fd|hd|sd|vd|xvd|ubd)([a-z]{1,3})")


def judge(
    root: Any, named: bool, firmwares: Sequence[str], found: Findings
) -> None:
    """What the whole domain says of its boot.

    :param named: it must say that it boots from a disk.
    :param firmwares: paths of those that it may have.
    """
    devices = [node.get("dev") for node in root.findall("os/boot")]
    # nova names none for a rescue; libvirt then takes hd
    if devices != ["hd"] and (devices or named):
        found.add(EVENT + ".boot", "it must boot from its disk only")
    if len(root.findall("os")) != 1:
        found.add(EVENT + ".boot", "exactly one <os> is expected")
    if not domain_firmware.right(root, firmwares):
        found.add(EVENT + ".boot", "the firmware is not one on the list")
    # <boot order=…/> on a device overrides it, and excludes <os><boot>
    if root.findall("devices/*/boot"):
        found.add(EVENT + ".boot", "a device has a boot order")


def judge_disks(disks: Sequence[Any], path: str, found: Findings) -> None:
    """As :func:`boots_from`, which must be so."""
    if not boots_from(disks, path):
        found.add(
            EVENT + ".boot", "another disk than the root disk would be booted"
        )


def boots_from(disks: Sequence[Any], path: str) -> bool:
    """
    :param disks: every ``<disk>`` of the domain, in the order of the XML.
    :param path: of the disk that is to be booted.
    """
    if (
        not disks
        or path_of(disks[0]) != path
        or disks[0].get("device") != "disk"
    ):
        return False
    places = [_place(node) for node in disks]
    first = places[0]
    return first is not None and all(
        # without a bus, or with a target that is none, anything is possible
        place is not None and (place[0] != first[0] or place[1] > first[1])
        for place in places[1:]
    )


def _place(node: Any) -> tuple[str, int] | None:
    """(bus, number of the target on it); None: it is not plainly said."""
    targets = node.findall("target")
    if len(targets) != 1:
        return None
    bus, name = targets[0].get("bus"), targets[0].get("dev") or ""
    letters = _TARGET.fullmatch(name)
    if not bus or letters is None:
        return None
    number = 0
    for letter in letters[1]:
        number = number * 26 + ord(letter) - ord("a") + 1
    return bus, number
