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

from dataclasses import replace
from typing import Any

import pytest

from mh_core.errors import Denied
from mh_nova.hook import shape

GOOD = shape.LaunchShape(
    virt_type="qemu",
    image_backed=True,
    boot_volume=False,
    kernel=False,
    injection=False,
)


def test_a_plain_root_disk_is_allowed() -> None:
    shape.check(GOOD)
    shape.check(replace(GOOD, virt_type="kvm"))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"virt_type": "lxc"}, "launch.virt-type"),
        ({"virt_type": ""}, "launch.virt-type"),
        ({"image_backed": False}, "launch.volume"),
        ({"boot_volume": True}, "launch.volume"),
        ({"kernel": True}, "launch.kernel"),
        ({"files": True}, "launch.files"),
        ({"injection": True}, "launch.injection"),
        ({"shares": 1}, "refused.share"),
    ],
)
def test_refused(change: dict[str, Any], cause: str) -> None:
    with pytest.raises(Denied) as caught:
        shape.check(replace(GOOD, **change))
    assert caught.value.event == f"hook.{cause}"
