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

from lxml import etree
from nova.virt.libvirt import config as vconfig

from mh_nova.hook.xml import GuestDisk

OVERLAY = "11111111-1111-5111-8111-111111111111"
BASE = "22222222-2222-5222-8222-222222222222"


def disk() -> vconfig.LibvirtConfigGuestDisk:
    one = vconfig.LibvirtConfigGuestDisk()
    one.source_type = "file"
    one.source_device = "disk"
    one.source_path = "/i/x/disk"
    one.driver_name = "qemu"
    one.driver_format = "qcow2"
    one.driver_cache = "none"
    one.target_dev = "vda"
    one.target_bus = "virtio"
    one.boot_order = "1"
    return one


def canonical(text: str) -> str:
    parser = etree.XMLParser(remove_blank_text=True)
    return str(etree.canonicalize(etree.fromstring(text, parser)))


def test_over_a_base() -> None:
    made = GuestDisk.over(disk(), OVERLAY, ("/i/_base/ab_36", BASE))
    assert canonical(made.to_xml()) == canonical(f"""
<disk type="file" device="disk">
 <driver name="qemu" type="qcow2" cache="none"/>
 <source file="/i/x/disk"><encryption format="luks" engine="qemu">
  <secret type="passphrase" uuid="{OVERLAY}"/></encryption></source>
 <backingStore type="file"><format type="qcow2"/>
  <source file="/i/_base/ab_36"><encryption format="luks" engine="qemu">
   <secret type="passphrase" uuid="{BASE}"/></encryption></source>
  <backingStore/></backingStore>
 <target dev="vda" bus="virtio"/>
 <boot order="1"/>
</disk>""")


def test_over_raw_luks() -> None:
    """libvirt's "raw" with <encryption> is QEMU's driver luks."""
    made = GuestDisk.over(disk(), OVERLAY, ("/b", BASE), "luks").format_dom()
    (form,) = made.findall("backingStore/format")
    assert form.get("type") == "raw"
    (found,) = made.findall("backingStore/source/encryption")
    assert (found.get("format"), found.get("engine")) == ("luks", "qemu")


def test_without_a_base_the_chain_ends_explicitly() -> None:
    dom = GuestDisk.over(disk(), OVERLAY, None).format_dom()
    (backing,) = dom.findall("backingStore")
    assert not backing.attrib
    assert len(backing) == 0
    tags = [child.tag for child in dom]
    assert tags.index("backingStore") == tags.index("source") + 1
    assert tags.index("target") == tags.index("backingStore") + 1


def test_everything_else_is_novas_own() -> None:
    """Take our two additions out, and nova's document is left."""
    dom = GuestDisk.over(disk(), OVERLAY, ("/b", BASE)).format_dom()
    dom.remove(dom.find("backingStore"))
    source = dom.find("source")
    source.remove(source.find("encryption"))
    assert etree.tostring(dom) == etree.tostring(disk().format_dom())


def test_novas_own_encryption_is_replaced_not_doubled() -> None:
    one = disk()
    encryption = vconfig.LibvirtConfigGuestDiskEncryption()
    encryption.format = "luks"
    secret = vconfig.LibvirtConfigGuestDiskEncryptionSecret()
    secret.type = "passphrase"
    secret.uuid = BASE
    encryption.secret = secret
    one.ephemeral_encryption = encryption
    dom = GuestDisk.over(one, OVERLAY, None).format_dom()
    (found,) = dom.findall("source/encryption/secret")
    assert found.get("uuid") == OVERLAY


def test_nova_still_takes_it_for_its_own_disk() -> None:
    made = GuestDisk.over(disk(), OVERLAY, None)
    assert isinstance(made, vconfig.LibvirtConfigGuestDisk)
    again = vconfig.LibvirtConfigGuestDisk()
    again.parse_str(made.to_xml())
    assert again.source_path == "/i/x/disk"
    assert again.target_dev == "vda"
