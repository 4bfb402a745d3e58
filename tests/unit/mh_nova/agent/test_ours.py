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
"""Ours or not, where the disk's header is not a proper one."""

from pathlib import Path
from typing import Any

import pytest

from mh_nova.agent.ours import Ours
from mh_nova.agent.paths import Root
from mh_nova.agent.store import DiskRecord, InstanceRecord, Store

INSTANCE = "4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10"
OTHER = "33333333-3333-4333-8333-333333333333"
KEY = "44444444-4444-4444-8444-444444444444"


class NoDomain:
    def domain_xml(self, instance: str) -> None:
        return None


@pytest.mark.parametrize(
    ("method", "why"), [(2, "header of disk.local"), (0, ""), (1, "")]
)
def test_a_damaged_header_still_says_encrypted(
    tmp_path: Path, method: int, why: str
) -> None:
    (tmp_path / INSTANCE).mkdir()
    head = b"QFI\xfb" + bytes(28) + method.to_bytes(4, "big")
    (tmp_path / INSTANCE / "disk.local").write_bytes(head)
    libvirt: Any = NoDomain()
    ours = Ours(Root(str(tmp_path)), Store(tmp_path / "state"), libvirt)
    assert ours.why(INSTANCE) == why


def record(*disks: DiskRecord) -> InstanceRecord:
    return InstanceRecord(
        instance=INSTANCE,
        image=OTHER,
        project="p",
        user="u",
        host="node1",
        key_url="https://kms.example/v1/keys/x",
        key_id=KEY,
        manifest="a.b.c",
        compat=False,
        user_data_digest="",
        disks=disks,
        made=True,
    )


@pytest.mark.parametrize("root", [True, False])
def test_what_the_root_disk_lies_over(tmp_path: Path, root: bool) -> None:
    """A disk that was flattened lies over no image, whatever others do."""
    libvirt: Any = NoDomain()
    store = Store(tmp_path / "state")
    ours = Ours(Root(str(tmp_path)), store, libvirt)
    nothing = {"image": "", "key_id": "", "key_url": ""}
    assert ours.source(INSTANCE) == nothing
    store.save_instance(
        record(
            DiskRecord("disk", 1, KEY, root),
            DiskRecord("disk.local", 1, OTHER, True),
        )
    )
    assert ours.source(INSTANCE) == (
        {
            "image": OTHER,
            "key_id": KEY,
            "key_url": "https://kms.example/v1/keys/x",
        }
        if root
        else nothing
    )
