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
"""A volume in a domain: LUKS on a device or a raw file, and nothing else.

nova names a volume by the disk's serial, and gives the path at which it is
connected on this host.  Both are claims: what counts is that the volume's
own key, which the tenant's key server derives from that name, opens what is
there, by exactly this secret.
"""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from mh_core import volume
from mh_core.errors import InputError
from mh_nova.agent.domain_shape import NO_STORE, encryption, shape

EVENT = "agent.volume"
#: Type of a disk to the attribute of its source that holds the path.
SOURCES = {"block": "dev", "file": "file"}


@dataclass(frozen=True)
class ExpectedVolume:
    """
    :param id: uuid of the volume.
    :param kind: ``block`` or ``file``.
    :param path: as the domain has it.
    """

    id: str
    kind: str
    path: str

    @property
    def secret(self) -> str:
        return volume.secret_uuid(self.id)


def path_of(node: Any) -> str:
    """Path of a disk's one source, by the disk's type; empty: not so."""
    name = SOURCES.get(node.get("type") or "")
    paths = [source.get(name) for source in node.findall("source") if name]
    return paths[0] or "" if len(paths) == 1 else ""


def claimed(root: Any, others: Collection[str]) -> tuple[ExpectedVolume, ...]:
    """The disks of a domain that are said to be volumes.

    What is none by its serial, or has no path, is left to the admit
    decision, which refuses it.

    :param others: paths of disks that are none.
    :raises InputError: ``agent.volume.number``, ``agent.volume.twice``.
    """
    found: list[ExpectedVolume] = []
    for node in root.findall("devices/disk"):
        one = of(node)
        if one is not None and one.path not in others:
            found.append(one)
    if len(found) > volume.MAX_VOLUMES:
        raise InputError(
            EVENT + ".number",
            f"more than {volume.MAX_VOLUMES} volumes",
        )
    if len({one.id for one in found}) != len(found):
        raise InputError(EVENT + ".twice", "a volume is there twice")
    return tuple(found)


def of(node: Any) -> ExpectedVolume | None:
    """What a disk is said to be; None: no volume."""
    path, serials = path_of(node), node.findall("serial")
    if not path or len(serials) != 1:
        return None
    text = serials[0].text or ""
    try:
        if str(uuid.UUID(text)) != text:
            return None
    except ValueError:
        return None
    return ExpectedVolume(text, node.get("type"), path)


def right(node: Any, expected: ExpectedVolume) -> bool:
    """The disk is this volume, opened with its own secret, and raw below.

    No backing chain: QEMU follows none from a LUKS volume, and libvirt is
    told so.
    """
    drivers = node.findall("driver")
    source = (
        "source",
        [(SOURCES[expected.kind], expected.path)],
        "",
        [encryption(expected.secret)],
    )
    return (
        of(node) == expected
        and node.get("device") == "disk"
        and len(drivers) == 1
        and (drivers[0].get("name"), drivers[0].get("type")) == ("qemu", "raw")
        and [shape(one) for one in node.findall("source")] == [source]
        and [shape(one) for one in node.findall("backingStore")] == [NO_STORE]
    )
