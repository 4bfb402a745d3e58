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
"""A volume in a domain: only as the encrypted volume it is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from mh_core import volume
from mh_core.errors import InputError
from mh_nova.agent import domain_volume
from mh_nova.agent.admit import admit, admit_volume, parse
from mh_nova.agent.domain_volume import ExpectedVolume
from tests.unit.mh_nova.agent.test_admit import INSTANCE, ROOT, facts, plain

VOLUME = "6f0a3c9e-6f0e-4a53-9d2b-0d9a6f1f1a11"
OTHER = "6f0a3c9e-6f0e-4a53-9d2b-0d9a6f1f1a12"
PATH = "/dev/disk/by-path/ip-10.0.0.1:3260-iscsi-iqn-lun-1"
#: As nova writes it, with what our hook adds.
DEVICE = f"""<disk type="block" device="disk">
 <driver name="qemu" type="raw" cache="none" discard="unmap" io="native"/>
 <alias name="ua-{VOLUME}"/>
 <source dev="{PATH}"><encryption format="luks" engine="qemu"><secret
  type="passphrase" uuid="{volume.secret_uuid(VOLUME)}"/></encryption></source>
 <backingStore/>
 <target dev="vdb" bus="virtio"/>
 <serial>{VOLUME}</serial>
 <iotune><total_iops_sec>100</total_iops_sec></iotune>
 <address type="pci" domain="0x0000" bus="0x00" slot="0x07" function="0x0"/>
</disk>"""
ON_FILE = DEVICE.replace('type="block"', 'type="file"', 1).replace(
    "<source dev", "<source file"
)
EXPECTED = ExpectedVolume(VOLUME, "block", PATH)


def events(xml: str, one: ExpectedVolume = EXPECTED) -> set[str]:
    """Of the device alone, and of a domain with it: the same decision."""
    alone = {event.id for event in admit_volume(xml, one).events}
    domain = plain().replace("</devices>", xml + "</devices>")
    known = replace(facts(), volumes=(one,))
    found = {event.id for event in admit(domain, known).events}
    assert alone - {"agent.admit.volume"} <= found
    assert (alone == {"agent.admit.passed"}) == (
        found == {"agent.admit.passed"}
    )
    return alone | found


@pytest.mark.parametrize(
    ("xml", "kind"), [(DEVICE, "block"), (ON_FILE, "file")]
)
def test_a_volume(xml: str, kind: str) -> None:
    one = replace(EXPECTED, kind=kind)
    assert domain_volume.of(parse(xml)) == one
    assert events(xml, one) == {"agent.admit.passed"}
    read_only = xml.replace("<target", "<readonly/><target")
    assert events(read_only, one) == {"agent.admit.passed"}


@pytest.mark.parametrize("tag", ["interface", "hostdev", "domain", "Disk"])
def test_what_is_plugged_in_is_a_disk(tag: str) -> None:
    """Whatever else it says: libvirt goes by the tag."""
    xml = DEVICE.replace("<disk ", f"<{tag} ").replace("</disk>", f"</{tag}>")
    verdict = admit_volume(xml, EXPECTED)
    assert [e.id for e in verdict.events] == ["agent.admit.element"]


def plugged(target: str, domain: str) -> set[str]:
    xml = DEVICE.replace('"vdb"', f'"{target}"')
    root = ROOT.disk(INSTANCE, "disk")
    return {e.id for e in admit_volume(xml, EXPECTED, domain, root).events}


def test_a_volume_that_the_next_start_would_boot() -> None:
    """Where libvirt puts it is before the root disk."""
    domain = plain().replace('"vda"', '"vdc"')
    assert plugged("vdb", domain) == {"agent.admit.boot"}
    assert plugged("vdd", domain) == {"agent.admit.passed"}
    assert plugged("vdb", plain()) == {"agent.admit.passed"}
    # nor a domain in which the root disk is not what is booted
    assert plugged("vdb", "<domain/>") == {"agent.admit.boot"}
    assert plugged("vdb", "<domain>") == {"agent.admit.xml"}


ENCRYPTION = DEVICE[DEVICE.index("<encryption") : DEVICE.index("</source>")]
HOSTILE: dict[str, tuple[str, str]] = {
    "in the clear": (ENCRYPTION, ""),
    "another secret": (
        volume.secret_uuid(VOLUME),
        volume.secret_uuid(OTHER),
    ),
    "the root disk's secret": (
        volume.secret_uuid(VOLUME),
        facts().disks[0].secret,
    ),
    "another path": (PATH, "/dev/sda"),
    "a path beside it": (PATH, PATH + "1"),
    "the root disk": (PATH, ROOT.disk(INSTANCE, "disk")),
    "a file's attribute": ("<source dev", "<source file"),
    "a file": ('type="block"', 'type="file"'),
    "a network": ('type="block"', 'type="network"'),
    "a pool": ('type="block"', 'type="volume"'),
    "qcow2": ('type="raw"', 'type="qcow2"'),
    "no format": ('type="raw" ', ""),
    "another driver": ('name="qemu"', 'name="tap"'),
    "a LUN": ('device="disk"', 'device="lun"'),
    "a CD": ('device="disk"', 'device="cdrom"'),
    "raw commands": ('device="disk"', 'device="disk" rawio="yes"'),
    "unfiltered": ('device="disk"', 'device="disk" sgio="unfiltered"'),
    "a chain": (
        "<backingStore/>",
        '<backingStore type="file"><format type="raw"/>'
        '<source file="/etc/shadow"/><backingStore/></backingStore>',
    ),
    "no end of the chain": ("<backingStore/>", ""),
    "two chains": ("<backingStore/>", "<backingStore/><backingStore/>"),
    "shared": ("<backingStore/>", "<backingStore/><shareable/>"),
    "transient": ("<backingStore/>", "<backingStore/><transient/>"),
    "a mirror": (
        "<backingStore/>",
        '<backingStore/><mirror type="file" file="/tmp/x"/>',
    ),
    "a boot order": ("<backingStore/>", '<backingStore/><boot order="1"/>'),
    "reservations": (
        "</encryption>",
        '</encryption><reservations managed="yes"/>',
    ),
    "a slice": (
        "</encryption>",
        '</encryption><slices><slice type="storage" offset="0" size="512"/>'
        "</slices>",
    ),
    "cookies": ("</encryption>", "</encryption><cookies/>"),
    "a start-up policy": ("<source ", '<source startupPolicy="optional" '),
    "two sources": (
        "<backingStore/>",
        f'<source dev="{PATH}"/><backingStore/>',
    ),
    "other encryption": ('format="luks"', 'format="qcow"'),
    "LUKS 2": ('format="luks"', 'format="luks2"'),
    "librbd": ('engine="qemu"', 'engine="librbd"'),
    "two secrets": (
        "</encryption>",
        f'<secret type="passphrase" uuid="{volume.secret_uuid(OTHER)}"/>'
        "</encryption>",
    ),
    "another serial": (f"<serial>{VOLUME}", f"<serial>{OTHER}"),
    "no serial": (f"<serial>{VOLUME}</serial>", ""),
    "two serials": (
        f"<serial>{VOLUME}</serial>",
        f"<serial>{VOLUME}</serial><serial>{VOLUME}</serial>",
    ),
    "authentication": ("<backingStore/>", "<backingStore/><auth/>"),
    "something else": ("<backingStore/>", "<backingStore/><evil/>"),
    "an entity": ("<backingStore/>", "<backingStore/><!--x-->"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_else_may_not_be(name: str) -> None:
    before, after = HOSTILE[name]
    assert before in DEVICE
    found = events(DEVICE.replace(before, after))
    assert "agent.admit.passed" not in found
    assert all(one.startswith("agent.admit.") for one in found)


def test_no_volume_that_was_not_looked_at() -> None:
    domain = plain().replace("</devices>", DEVICE + "</devices>")
    found = {event.id for event in admit(domain, facts()).events}
    assert found == {"agent.admit.foreign-disk"}


def test_twice() -> None:
    domain = plain().replace("</devices>", DEVICE * 2 + "</devices>")
    with pytest.raises(InputError) as caught:
        domain_volume.claimed(parse(domain), set())
    assert caught.value.event == "agent.volume.twice"
    known = replace(facts(), volumes=(EXPECTED,))
    found = {event.id for event in admit(domain, known).events}
    assert found == {"agent.admit.foreign-disk"}


def test_too_many() -> None:
    def domain(count: int) -> Any:
        devices = "".join(
            DEVICE.replace(VOLUME, VOLUME[:-2] + f"{number:02x}").replace(
                PATH, f"{PATH}{number}"
            )
            for number in range(count)
        )
        return parse(plain().replace("</devices>", devices + "</devices>"))

    assert len(domain_volume.claimed(domain(26), set())) == 26
    with pytest.raises(InputError) as caught:
        domain_volume.claimed(domain(27), set())
    assert caught.value.event == "agent.volume.number"


def test_the_instances_own_disks_are_none() -> None:
    own = {disk.path for disk in facts().disks}
    assert domain_volume.claimed(parse(plain()), own) == ()
    # one that calls itself a volume is still the disk it is
    xml = plain().replace("<target", f"<serial>{VOLUME}</serial><target", 1)
    assert domain_volume.claimed(parse(xml), own) == ()


@given(st.data())
def test_any_one_change_of_what_counts_is_refused(data: st.DataObject) -> None:
    """An attribute or text of the source or the driver's format."""
    root = etree.fromstring(DEVICE.encode())
    counts: list[Callable[[str], None]] = []
    for node in root.find("source").iter():
        for name in node.attrib:
            counts.append(
                lambda text, node=node, name=name: node.set(name, text)
            )
    counts.append(lambda text: root.find("driver").set("type", text))
    counts.append(lambda text: root.set("type", text))
    change = data.draw(st.sampled_from(counts))
    change(data.draw(st.text("abcdeflqrtuw/-0123456789", max_size=40)))
    xml = etree.tostring(root).decode()
    if xml == etree.tostring(etree.fromstring(DEVICE.encode())).decode():
        return
    assert not admit_volume(xml, EXPECTED).allowed
