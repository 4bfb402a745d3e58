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

"""A Xen domain over an opened image, judged by libvirt's own schema."""

from pathlib import Path

import pytest
from lxml import etree
from nova.virt.libvirt import config as vconfig

from mh_core.errors import Denied
from mh_nova.hook import xen

INSTANCE = "0f6a4f6e-2b1e-4f0e-9d0a-3c5d6a7b8c90"
MAPPING = f"/dev/mapper/mh-{INSTANCE}"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")


def domain() -> vconfig.LibvirtConfigGuest:
    guest = vconfig.LibvirtConfigGuest()
    guest.virt_type = xen.VIRT_TYPE
    guest.uuid = INSTANCE
    guest.name = "instance-00000001"
    guest.memory = 65536
    guest.vcpus = 1
    guest.os_type = "hvm"
    guest.os_boot_dev = ["hd"]
    guest.devices.append(xen.disk(MAPPING))
    return guest


def test_the_disk() -> None:
    dom = etree.fromstring(domain().to_xml())
    assert dom.get("type") == "xen"
    (disk,) = dom.findall("devices/disk")
    assert (disk.get("type"), disk.get("device")) == ("block", "disk")
    assert dict(disk.find("driver").attrib) == {"name": "phy", "type": "raw"}
    assert dict(disk.find("source").attrib) == {"dev": MAPPING}
    assert dict(disk.find("target").attrib) == {"dev": "xvda", "bus": "xen"}
    # nothing for libvirt to open, and no chain to follow
    assert not list(dom.iter("encryption", "backingStore", "secret"))


def test_libvirt_knows_such_a_domain() -> None:
    schema = etree.RelaxNG(file=str(SCHEMA))
    dom = etree.fromstring(domain().to_xml())
    assert schema.validate(dom), schema.error_log
    # the judge says no where it should
    dom.find("devices/disk").set("type", "no-such")
    assert not schema.validate(dom)


@pytest.mark.parametrize(
    "path",
    [
        "/dev/sda",
        "/var/lib/xen/images/disk",
        "/dev/mapper/root",
        MAPPING + "/../../sda",
        MAPPING.upper(),
        "",
    ],
)
def test_nowhere_else(path: str) -> None:
    with pytest.raises(Denied) as caught:
        xen.disk(path)
    assert caught.value.event == "hook.xen.mapping"
