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
"""Make the corpus of domains again:
``python -m tests.vectors.admit.generate``.

``plain-launch.xml`` was written by nova 34.0.0 itself
(``nova.virt.libvirt.config``); every other file is one change away from it,
and its name says which.  Beside each stands what is expected: the event ids
of the refusal, sorted, or ``agent.admit.passed``.
"""

import json
from pathlib import Path

from tests.vectors.admit import boot
from tests.vectors.admit.pieces import (
    CDROM,
    CONFIG,
    DIRECTORY,
    DISK,
    INSTANCE,
    MANY,
    OTHER,
    OVERLAY,
    PLAIN,
    QEMU,
    RESCUE,
    TARGET,
    USER_DATA,
    VOLUMES,
    Facts,
    Row,
    a,
    after,
    device,
    first,
    foreign,
    in_os,
    more,
    plain_disk,
    plain_drive,
    top,
    volume,
)

HERE = Path(__file__).parent
ROWS: list[Row] = [
    # -- allowed
    (
        "pci-controllers",
        *device(
            '<controller type="pci" index="1" '
            'model="pcie-root-port"><model name="pcie-root-port"/>'
            '<target chassis="1" port="0x10"/></controller>'
        ),
        a("passed"),
        {},
    ),
    (
        "video",
        *device('<video><model type="virtio"/></video>'),
        a("passed"),
        {},
    ),
    (
        "bridge",
        '<interface type="ethernet">',
        '<interface type="bridge">'
        '<source bridge="br-int"/><virtualport type="openvswitch"><parameters '
        f'interfaceid="{OTHER}"/></virtualport>',
        a("passed"),
        {},
    ),
    (
        "config-drive",
        *more("disk.config", CDROM, extra="<readonly/>"),
        a("passed"),
        CONFIG,
    ),
    (
        "config-drive-as-disk",
        *more("disk.config", extra="<readonly/>"),
        a("passed"),
        CONFIG,
    ),
    ("rescue", *first(more("disk.rescue")), a("passed"), RESCUE),
    (
        "plain-rescue",
        *first(plain_disk("disk.rescue", "hda", "ide")),
        a("passed"),
        PLAIN,
    ),
    (
        "root-disk-at-vdb",
        TARGET,
        TARGET.replace("vda", "vdb"),
        a("passed"),
        {},
    ),
    ("volume", *volume(), a("passed"), VOLUMES),
    ("volume-on-another-bus", *volume("sda", "scsi"), a("passed"), VOLUMES),
    ("volume-beyond-vdz", *after("vdz", volume("vdaa")), a("passed"), VOLUMES),
    (
        "rescue-without-boot",
        '    <boot dev="hd"/>\n',
        "",
        a("root-disk"),
        {"purpose": "rescue", "root": "disk.rescue"},
    ),
    ("swap", *more("disk.swap"), a("passed"), {"more": ["disk.swap"]}),
    (
        "ephemeral",
        *more("disk.eph0"),
        a("passed"),
        {"more": ["disk.eph0", "disk.swap"]},
    ),
    (
        "user-data-listed",
        "",
        "",
        a("passed"),
        {"user_data": USER_DATA, "policies": [{"user_data": [USER_DATA]}]},
    ),
    (
        "emulator-known",
        *device("<emulator>/usr/bin/qemu-system-x86_64</emulator>"),
        a("passed"),
        {},
    ),
    # -- 1 XML
    (
        "dtd",
        '<domain type="qemu">',
        '<!DOCTYPE domain>\n<domain type="qemu">',
        a("xml"),
        {},
    ),
    (
        "entity",
        '<domain type="qemu">',
        "<!DOCTYPE domain [<!ENTITY e SYSTEM "
        '"file:///etc/passwd">]>\n<domain type="qemu"><title>&e;</title>',
        a("xml"),
        {},
    ),
    (
        "entity-laughs",
        '<domain type="qemu">',
        "<!DOCTYPE domain [<!ENTITY a "
        f'"ha"><!ENTITY b "{MANY}">]>\n<domain type="qemu"><title>&b;</title>',
        a("xml"),
        {},
    ),
    ("comment", "<vcpu>", "<!-- --><vcpu>", a("xml"), {}),
    ("processing-instruction", "<vcpu>", "<?x y?><vcpu>", a("xml"), {}),
    (
        "encoding",
        '<domain type="qemu">',
        '<?xml version="1.0" encoding="UTF-7"?><domain type="qemu">',
        a("xml"),
        {},
    ),
    ("cut-off", "</domain>", "", a("xml"), {}),
    # -- 2 purpose, instance
    ("snapshot", "", "", a("purpose"), {"purpose": "snapshot"}),
    # the rescue image must be there, and be what it boots from
    (
        "rescue-without-its-disk",
        "",
        "",
        a("root-disk"),
        {"purpose": "rescue", "root": "disk.rescue"},
    ),
    (
        "rescue-disk-elsewhere",
        *more("disk.rescue"),
        a("foreign-disk", "root-disk"),
        {"purpose": "rescue", "root": "disk.rescue"},
    ),
    (
        "rescue-disk-in-the-clear",
        *first(plain_disk("disk.rescue", "hda", "ide")),
        a("disk"),
        RESCUE,
    ),
    (
        "plain-rescue-of-another-file",
        *plain_disk("disk.swap"),
        a("foreign-disk", "root-disk"),
        PLAIN,
    ),
    (
        "plain-rescue-without-its-disk",
        "",
        "",
        a("root-disk"),
        PLAIN,
    ),
    (
        "plain-rescue-not-allowed",
        *plain_disk("disk.rescue"),
        a("foreign-disk"),
        {},
    ),
    (
        "other-instance",
        f"<uuid>{INSTANCE}</uuid>",
        f"<uuid>{OTHER}</uuid>",
        a("instance"),
        {},
    ),
    (
        "two-uuids",
        f"<uuid>{INSTANCE}</uuid>",
        f"<uuid>{INSTANCE}</uuid><uuid>{OTHER}</uuid>",
        a("instance"),
        {},
    ),
    ("no-uuid", f"<uuid>{INSTANCE}</uuid>", "", a("instance"), {}),
    # -- 3 boot
    ("kernel", *in_os("<kernel>/tmp/vmlinuz</kernel>"), a("direct-boot"), {}),
    ("initrd", *in_os("<initrd>/tmp/initrd</initrd>"), a("direct-boot"), {}),
    (
        "cmdline",
        *in_os("<cmdline>init=/bin/sh</cmdline>"),
        a("direct-boot"),
        {},
    ),
    (
        "boot-network",
        '<boot dev="hd"/>',
        '<boot dev="network"/>',
        a("boot", "element"),
        {},
    ),
    (
        "boot-cdrom-too",
        *in_os('<boot dev="cdrom"/>'),
        a("boot", "element"),
        {},
    ),
    ("boot-none", '<boot dev="hd"/>', "", a("boot"), {}),
    ("boot-menu", *in_os('<bootmenu enable="yes"/>'), a("boot"), {}),
    (
        "boot-interface",
        '<mtu size="1450"/>',
        '<boot order="1"/>',
        a("boot", "element"),
        {},
    ),
    (
        "loader",
        *in_os('<loader readonly="yes" type="pflash">/tmp/fw.fd</loader>'),
        a("boot"),
        {},
    ),
    ("two-os", *top("<os><type>hvm</type></os>"), a("boot"), {}),
    # -- 4 passthrough, channels, consoles
    (
        "hostdev",
        *device(
            '<hostdev mode="subsystem" type="pci" managed="yes">'
            '<source><address domain="0x0000" bus="0x06" slot="0x00" '
            'function="0x0"/></source></hostdev>'
        ),
        a("passthrough"),
        {},
    ),
    (
        "filesystem",
        *device(
            '<filesystem type="mount"><source dir="/"/>'
            '<target dir="host"/></filesystem>'
        ),
        a("passthrough"),
        {},
    ),
    (
        "shmem",
        *device('<shmem name="leak"><size unit="M">4</size></shmem>'),
        a("passthrough"),
        {},
    ),
    (
        "redirdev",
        *device('<redirdev bus="usb" type="spicevmc"/>'),
        a("passthrough"),
        {},
    ),
    (
        "nvdimm",
        *device(
            '<memory model="nvdimm"><source><path>/tmp/nv</path>'
            '</source><target><size unit="KiB">524288</size></target></memory>'
        ),
        a("passthrough"),
        {},
    ),
    (
        "qemu-commandline",
        '<domain type="qemu">',
        f'<domain type="qemu" {QEMU}>'
        '<qemu:commandline><qemu:arg value="-monitor"/></qemu:commandline>',
        a("passthrough"),
        {},
    ),
    (
        "qemu-override",
        '<domain type="qemu">',
        f'<domain type="qemu" {QEMU}><qemu:override/>',
        a("passthrough"),
        {},
    ),
    (
        "interface-hostdev",
        '<interface type="ethernet">',
        '<interface type="hostdev">',
        a("passthrough"),
        {},
    ),
    (
        "interface-network",
        '<interface type="ethernet">',
        '<interface type="network"><source network="vfs"/>',
        a("element", "passthrough"),
        {},
    ),
    (
        "interface-vhostuser",
        '<interface type="ethernet">',
        '<interface type="vhostuser">',
        a("passthrough"),
        {},
    ),
    (
        "guest-agent",
        *device(
            '<channel type="unix"><source mode="bind" '
            'path="/var/lib/libvirt/qemu/org.qemu.guest_agent.0.sock"/>'
            '<target type="virtio" name="org.qemu.guest_agent.0"/></channel>'
        ),
        a("channel"),
        {},
    ),
    (
        "vsock",
        *device('<vsock model="virtio"><cid auto="yes"/></vsock>'),
        a("channel"),
        {},
    ),
    (
        "vnc",
        *device(
            '<graphics type="vnc" port="-1" autoport="yes" '
            'listen="127.0.0.1"/>'
        ),
        a("console"),
        {},
    ),
    (
        "spice",
        *device('<graphics type="spice" autoport="yes"/>'),
        a("console"),
        {},
    ),
    (
        "serial-tcp",
        '<serial type="pty">',
        '<serial type="tcp"><source '
        'mode="bind" host="127.0.0.1" service="10000"/>',
        a("console"),
        {},
    ),
    (
        "serial-unix",
        '<serial type="pty">',
        '<serial type="unix"><source mode="bind" path="/tmp/console.sock"/>',
        a("console"),
        {},
    ),
    (
        "console-telnet",
        *device('<console type="tcp"><protocol type="telnet"/></console>'),
        a("console"),
        {},
    ),
    (
        "log-elsewhere",
        f"{DIRECTORY}/console.log",
        "/etc/cron.d/job",
        a("console"),
        {},
    ),
    (
        "emulator-unknown",
        *device("<emulator>/tmp/qemu</emulator>"),
        a("emulator"),
        {},
    ),
    # -- 5 disks
    (
        "plain-second-disk",
        *foreign(
            'type="file" device="disk"', '<source file="/tmp/other.img"/>'
        ),
        a("foreign-disk"),
        {},
    ),
    (
        "block-device",
        *foreign('type="block" device="disk"', '<source dev="/dev/sda"/>'),
        a("foreign-disk"),
        {},
    ),
    (
        "network-disk",
        *foreign(
            'type="network" device="disk"',
            "<source "
            'protocol="nbd" name="x"><host name="127.0.0.1" '
            'port="10809"/></source>',
        ),
        a("element", "foreign-disk"),
        {},
    ),
    (
        "lun",
        *foreign('type="block" device="lun"', '<source dev="/dev/sdb"/>'),
        a("element", "foreign-disk"),
        {},
    ),
    (
        "floppy",
        *foreign(
            'type="file" device="floppy"', '<source file="/tmp/floppy"/>'
        ),
        a("element", "foreign-disk"),
        {},
    ),
    (
        "disk-of-other-instance",
        f"{DIRECTORY}/disk",
        f"/var/lib/nova/instances/{OTHER}/disk",
        a("foreign-disk", "root-disk"),
        {},
    ),
    (
        "rescue-disk",
        *foreign(
            'type="file" device="disk"',
            f'<source file="{DIRECTORY}/disk.rescue"/>',
        ),
        a("foreign-disk"),
        {},
    ),
    (
        "disk-twice",
        *foreign(
            'type="file" device="disk"', f'<source file="{DIRECTORY}/disk"/>'
        ),
        a("disk", "foreign-disk"),
        {},
    ),
    (
        "disk-raw",
        '<driver name="qemu" type="qcow2" cache="none"/>',
        '<driver name="qemu" type="raw" cache="none"/>',
        a("disk"),
        {},
    ),
    (
        "disk-as-cdrom",
        DISK,
        '    <disk type="file" device="cdrom">',
        a("boot", "disk"),
        {},
    ),
    (
        "disk-no-encryption",
        '<encryption format="luks" engine="qemu">\n'
        '          <secret type="passphrase" uuid="fb4b7fd6-1481-5962-98a6-'
        '40b5dfb1a03b"/>\n        </encryption>',
        "",
        a("disk"),
        {},
    ),
    (
        "disk-encryption-qcow",
        '<encryption format="luks" engine="qemu">\n'
        '          <secret type="passphrase" uuid="fb4b',
        "<encryption "
        'format="qcow" engine="qemu">\n          <secret type="passphrase" '
        'uuid="fb4b',
        a("disk", "element"),
        {},
    ),
    (
        "disk-other-secret",
        "fb4b7fd6-1481-5962-98a6-40b5dfb1a03b",
        OTHER,
        a("disk"),
        {},
    ),
    (
        "base-other-secret",
        "6c35b141-bb44-50b9-a514-02be1bf8bf6d",
        OTHER,
        a("disk"),
        {},
    ),
    (
        "base-elsewhere",
        "d17675fcc7e1eb565f6f3c561b4c1279d20d4fd4_36",
        "d17675fcc7e1eb565f6f3c561b4c1279d20d4fd4",
        a("disk"),
        {},
    ),
    (
        "base-has-a-base",
        "        <backingStore/>",
        "        <backingStore "
        'type="file"><format type="raw"/><source file="/tmp/x"/>'
        "</backingStore>",
        a("disk", "element"),
        {},
    ),
    ("base-left-to-probing", "        <backingStore/>\n", "", a("disk"), {}),
    (
        "data-file",
        OVERLAY,
        f'{OVERLAY}<dataStore type="file"><format '
        'type="raw"/><source file="/tmp/x"/></dataStore>',
        a("disk", "element"),
        {},
    ),
    (
        "slices",
        OVERLAY,
        f'{OVERLAY}<slices><slice type="storage" offset="0" '
        'size="512"/></slices>',
        a("disk", "element"),
        {},
    ),
    (
        "mirror",
        '<target dev="vda" bus="virtio"/>',
        '<mirror type="file" '
        'file="/tmp/copy"/><target dev="vda" bus="virtio"/>',
        a("element"),
        {},
    ),
    (
        "transient",
        '<target dev="vda" bus="virtio"/>',
        '<transient/><target dev="vda" bus="virtio"/>',
        a("element"),
        {},
    ),
    (
        "shareable",
        '<target dev="vda" bus="virtio"/>',
        '<shareable/><target dev="vda" bus="virtio"/>',
        a("element"),
        {},
    ),
    (
        "disk-source-twice",
        OVERLAY,
        f'<source file="/tmp/x"/>{OVERLAY}',
        a("foreign-disk", "root-disk"),
        {},
    ),
    (
        "no-root-disk",
        f'{DIRECTORY}/disk"',
        f'{DIRECTORY}/disk.eph0"',
        a("foreign-disk", "root-disk"),
        {},
    ),
    (
        "config-drive-not-on-record",
        *more("disk.config", CDROM),
        a("foreign-disk"),
        {},
    ),
    (
        "config-drive-in-the-clear",
        *plain_drive(f"{DIRECTORY}/disk.config"),
        a("config-drive"),
        CONFIG,
    ),
    (
        "config-drive-elsewhere",
        *plain_drive("/tmp/disk.config"),
        a("foreign-disk"),
        CONFIG,
    ),
    ("config-drive-writable", *more("disk.config"), a("config-drive"), CONFIG),
    (
        "config-drive-raw",
        *more("disk.config", CDROM, form="raw"),
        a("config-drive"),
        CONFIG,
    ),
    (
        "config-drive-other-secret",
        *more("disk.config", CDROM, secret=OTHER),
        a("config-drive"),
        CONFIG,
    ),
    (
        "swap-in-the-clear",
        *plain_drive(f"{DIRECTORY}/disk.swap"),
        a("disk"),
        {"more": ["disk.swap"]},
    ),
    (
        "swap-as-cdrom",
        *more("disk.swap", CDROM),
        a("disk"),
        {"more": ["disk.swap"]},
    ),
    (
        "ephemeral-of-another-key",
        *more("disk.eph0", secret=OTHER),
        a("disk"),
        {"more": ["disk.eph0"]},
    ),
    (
        "empty-cdrom",
        *device(
            '<disk type="file" device="cdrom"><target '
            'dev="hda" bus="ide"/></disk>'
        ),
        a("foreign-disk"),
        {},
    ),
    ("user-data", "", "", a("user-data"), {"user_data": USER_DATA}),
    # -- 6 everything else
    ("unknown-device", *device("<novelty/>"), a("element"), {}),
    ("unknown-top", *top("<launchSecurity type='sev'/>"), a("element"), {}),
    ("other-namespace", *top('<x:os xmlns:x="urn:x"/>'), a("element"), {}),
    ("seclabel-none", *top("<seclabel type='none'/>"), a("element"), {}),
    (
        "shared-memory",
        *top("<memoryBacking><access mode='shared'/></memoryBacking>"),
        a("element"),
        {},
    ),
    (
        "memory-dump-core",
        "<memory>",
        '<memory dumpCore="on">',
        a("element"),
        {},
    ),
    (
        "crash-dump",
        *top("<on_crash>coredump-restart</on_crash>"),
        a("element"),
        {},
    ),
    (
        "watchdog-dump",
        *device('<watchdog model="i6300esb" action="dump"/>'),
        a("element"),
        {},
    ),
    (
        "smbios-data-source",
        '<entry name="serial">' + INSTANCE,
        '<entry name="serial">ds=nocloud-net;s=http://169.254.1.1/',
        a("element"),
        {},
    ),
    (
        "smbios-oem-strings",
        "    <system>",
        "    <oemStrings><entry>io.systemd"
        ".credential:passwd.hashed-password.root=x</entry></oemStrings>\n"
        "    <system>",
        a("element"),
        {},
    ),
    (
        "fw-cfg",
        *top(
            '<sysinfo type="fwcfg"><entry name="opt/x" '
            'file="/tmp/x"/></sysinfo>'
        ),
        a("element"),
        {},
    ),
    ("rng-from-file", "/dev/urandom", "/tmp/not-random", a("element"), {}),
    (
        "rng-egd",
        '<backend model="random">/dev/urandom</backend>',
        '<backend model="egd" type="tcp"><source host="127.0.0.1"/></backend>',
        a("element"),
        {},
    ),
    (
        "interface-script",
        '<script path=""/>',
        '<script path="/tmp/evil"/>',
        a("element"),
        {},
    ),
    (
        "interface-rom",
        '<mtu size="1450"/>',
        '<rom file="/tmp/rom.bin"/>',
        a("element"),
        {},
    ),
    (
        "controller-ccid",
        *device('<controller type="ccid" index="0"/>'),
        a("element"),
        {},
    ),
    (
        "input-evdev",
        *device(
            '<input type="evdev"><source dev="/dev/input/event0"/></input>'
        ),
        a("element"),
        {},
    ),
    (
        "vtpm",
        *device('<tpm model="tpm-crb"><backend type="emulator"/></tpm>'),
        a("tpm"),
        {},
    ),
    (
        "domain-type",
        '<domain type="qemu">',
        '<domain type="test">',
        a("element"),
        {},
    ),
    ("text-between", "<devices>", "<devices>text", a("element"), {}),
]


def main() -> None:
    base = (HERE / "plain-launch.xml").read_text()
    for path in [*HERE.glob("*.json"), *HERE.glob("*.xml")]:
        if path.name != "plain-launch.xml":
            path.unlink()
    _write("plain-launch", None, a("passed"), {})
    for name, old, new, expected, facts in [*ROWS, *boot.ROWS]:
        if old not in base:
            raise SystemExit(f"{name}: nothing to replace")
        _write(name, base.replace(old, new, 1), expected, facts)


def _write(
    name: str, xml: str | None, expected: list[str], facts: Facts
) -> None:
    if xml is not None:
        (HERE / f"{name}.xml").write_text(xml)
    document = {"expect": expected, "facts": facts}
    (HERE / f"{name}.json").write_text(
        json.dumps(document, indent=1, sort_keys=True) + "\n"
    )


if __name__ == "__main__":
    main()
