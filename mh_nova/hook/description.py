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

"""What an agent tells of an instance: public facts, never a key.

They go to another host with nova's own list of the instance's disks, in the
entry of the root disk.
"""

import os
from dataclasses import dataclass
from typing import Any

from oslo_serialization import jsonutils

from mh_core.fields import Fields
from mh_nova.hook.disks import ROOT

#: Member of nova's disk_info, which the source hands to the destination.
_CARRIED = "mh"
_EVENT = "hook.migrate.description"


@dataclass(frozen=True)
class Description:
    """What another host needs to ask for an instance's keys.

    :param disks: (name, virtual size in bytes) of each disk.
    :param based: the root disk lies over the image's base.
    """

    image: str
    key_url: str
    key_id: str
    manifest: str
    compat: bool
    disks: tuple[tuple[str, int], ...]
    based: bool

    @classmethod
    def parse(cls, fields: Fields) -> "Description":
        """The caller ends ``fields``.

        :raises InputError: with the event of ``fields``.
        """

        def disk(value: Any) -> tuple[str, int, bool]:
            item = Fields(value, fields.event)
            name = item.text("name", pattern=r"disk[A-Za-z0-9._\-]{0,60}")
            size = item.integer("size", 1, 1 << 50)
            base = item.boolean("base")
            item.end()
            return name, size, base

        disks = fields.list("disks", disk, 16)
        return cls(
            image=fields.uuid("image"),
            key_url=fields.text("key_url", maximum=2048),
            key_id=fields.uuid("key_id"),
            manifest=fields.text(
                "manifest", maximum=256 * 1024, pattern=r"[A-Za-z0-9_.\-]+"
            ),
            compat=fields.boolean("compat"),
            disks=tuple((name, size) for name, size, _ in disks),
            based=any(name == ROOT and base for name, _, base in disks),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "key_url": self.key_url,
            "key_id": self.key_id,
            "manifest": self.manifest,
            "compat": self.compat,
            "disks": [
                {
                    "name": name,
                    "size": size,
                    "base": self.based and name == ROOT,
                }
                for name, size in self.disks
            ],
        }


@dataclass(frozen=True)
class Known:
    """What the agent knows of an instance.

    :param image: Glance id its root disk lies over; empty: the agent does
        not know, or there is no such image any more.
    """

    ours: bool
    image: str
    key_id: str
    key_url: str


def carry(disk_info: str, described: Description) -> str:
    """nova's list of disks with the description in its root disk."""
    disks = jsonutils.loads(disk_info)
    for disk in disks:
        if os.path.basename(disk["path"]) == ROOT:
            disk[_CARRIED] = described.to_dict()
    return str(jsonutils.dumps(disks))


def uncarry(disk_info: str) -> tuple[str, Any]:
    """nova's own list again, and what :func:`carried` takes; None: there
    was none."""
    disks = jsonutils.loads(disk_info)
    found = [disk.pop(_CARRIED) for disk in disks if _CARRIED in disk]
    if not found:
        return disk_info, None
    return str(jsonutils.dumps(disks)), found[0]


def carried(found: Any) -> Description | None:
    """:raises InputError: ``hook.migrate.description``."""
    if found is None:
        return None
    fields = Fields(found, _EVENT)
    described = Description.parse(fields)
    fields.end()
    return described
