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
"""The allow-list of domain XML: every element and attribute that may stand.

A path not in :data:`ALLOWED` is refused, as is an attribute not in its row,
and a value that its pattern does not match in full.  Disks are compared
value by value in :mod:`mh_nova.agent.admit`; the rows here only say what
may be there at all.

Source: libvirt's formatdomain page; what of it nova 34 writes:
``nova/virt/libvirt/config.py``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_NUMBER = r"[0-9]{1,20}"
_NAME = r"[A-Za-z0-9_.:+\-]{1,64}"
_CPUS = r"[0-9,^\-]{1,1024}"
_SWITCH = r"on|off|yes|no"
_EMPTY = ""


@dataclass(frozen=True)
class Rule:
    """What one element may have: attributes, and text."""

    attributes: Mapping[str, str] = field(default_factory=dict)
    text: str = _EMPTY

    def refuses(self, attributes: Mapping[str, str], text: str) -> str:
        """What is wrong with an element; empty: nothing."""
        for name, value in attributes.items():
            pattern = self.attributes.get(name)
            if pattern is None:
                return f"attribute {name[:32]}"
            if not re.fullmatch(pattern, value):
                return f"value of {name[:32]}"
        if not re.fullmatch(self.text, text):
            return "text"
        return ""


def _rules(*rows: tuple[str, dict[str, str], str]) -> dict[str, Rule]:
    return {path: Rule(attributes, text) for path, attributes, text in rows}


_ADDRESS = {
    "type": r"pci|drive|usb|virtio-serial|ccw|isa",
    "domain": r"0x[0-9a-f]{1,8}",
    "bus": r"(0x)?[0-9a-f]{1,4}",
    "slot": r"0x[0-9a-f]{1,4}",
    "function": r"0x[0-9a-f]",
    "multifunction": _SWITCH,
    "controller": _NUMBER,
    "target": _NUMBER,
    "unit": _NUMBER,
    "port": r"[0-9.]{1,16}",
}
_ALIAS = {"name": _NAME}
_BUS = {"iommu": _SWITCH, "ats": _SWITCH, "packed": _SWITCH}

_TOP = _rules(
    ("", {"type": "qemu|kvm", "id": _NUMBER}, _EMPTY),
    ("uuid", {}, r"[0-9a-f\-]{36}"),
    ("name", {}, r"[A-Za-z0-9_.\-]{1,64}"),
    ("memory", {"unit": "KiB|MiB|GiB|bytes|b"}, _NUMBER),
    ("currentMemory", {"unit": "KiB|MiB|GiB|bytes|b"}, _NUMBER),
    # not <access mode='shared'/>, not <source type='file'/>
    ("memoryBacking", {}, _EMPTY),
    ("memoryBacking/hugepages", {}, _EMPTY),
    (
        "memoryBacking/hugepages/page",
        {"size": _NUMBER, "unit": _NAME, "nodeset": _CPUS},
        _EMPTY,
    ),
    ("memoryBacking/nosharepages", {}, _EMPTY),
    ("memoryBacking/locked", {}, _EMPTY),
    (
        "vcpu",
        {"placement": "static", "cpuset": _CPUS, "current": _NUMBER},
        _NUMBER,
    ),
    ("iothreads", {}, _NUMBER),
    ("cputune", {}, _EMPTY),
    ("cputune/shares", {}, _NUMBER),
    ("cputune/period", {}, _NUMBER),
    ("cputune/quota", {}, r"-?[0-9]{1,20}"),
    ("cputune/vcpupin", {"vcpu": _NUMBER, "cpuset": _CPUS}, _EMPTY),
    ("cputune/emulatorpin", {"cpuset": _CPUS}, _EMPTY),
    (
        "cputune/vcpusched",
        {"vcpus": _CPUS, "scheduler": "fifo|rr", "priority": _NUMBER},
        _EMPTY,
    ),
    ("numatune", {}, _EMPTY),
    ("numatune/memory", {"mode": _NAME, "nodeset": _CPUS}, _EMPTY),
    (
        "numatune/memnode",
        {"cellid": _NUMBER, "mode": _NAME, "nodeset": _CPUS},
        _EMPTY,
    ),
    # No oemStrings, no fwcfg, and no ';', '=' or '/' in a value: they carry
    # credentials for systemd and data sources for cloud-init.
    ("sysinfo", {"type": "smbios"}, _EMPTY),
    ("sysinfo/bios", {}, _EMPTY),
    (
        "sysinfo/bios/entry",
        {"name": "vendor|version"},
        r"[A-Za-z0-9 ._()\-]{0,64}",
    ),
    ("sysinfo/system", {}, _EMPTY),
    (
        "sysinfo/system/entry",
        {"name": "manufacturer|product|version|serial|uuid|family"},
        r"[A-Za-z0-9 ._()\-]{0,64}",
    ),
    ("on_poweroff", {}, "destroy|restart"),
    ("on_reboot", {}, "destroy|restart"),
    # coredump-* writes the guest's memory to a file
    ("on_crash", {}, "destroy|restart"),
    ("pm", {}, _EMPTY),
    ("pm/suspend-to-mem", {"enabled": "no"}, _EMPTY),
    ("pm/suspend-to-disk", {"enabled": "no"}, _EMPTY),
)

_OS = _rules(
    ("os", {}, _EMPTY),
    ("os/type", {"arch": _NAME, "machine": _NAME}, "hvm"),
    ("os/boot", {"dev": "hd"}, _EMPTY),
    ("os/smbios", {"mode": "sysinfo"}, _EMPTY),
    ("features", {}, _EMPTY),
    ("features/acpi", {}, _EMPTY),
    ("features/apic", {"eoi": _SWITCH}, _EMPTY),
    ("features/pae", {}, _EMPTY),
    ("features/pmu", {"state": _SWITCH}, _EMPTY),
    ("features/ioapic", {"driver": "kvm|qemu"}, _EMPTY),
    ("features/vmcoreinfo", {"state": _SWITCH}, _EMPTY),
    ("features/kvm", {}, _EMPTY),
    ("features/kvm/hidden", {"state": _SWITCH}, _EMPTY),
    ("features/hyperv", {"mode": "custom|passthrough"}, _EMPTY),
    *(
        (
            f"features/hyperv/{name}",
            {"state": _SWITCH, "retries": _NUMBER, "value": _NAME},
            _EMPTY,
        )
        for name in (
            "relaxed vapic spinlocks vendor_id vpindex runtime synic "
            "reset frequencies reenlightenment tlbflush ipi evmcs stimer"
        ).split()
    ),
    ("clock", {"offset": "utc|localtime"}, _EMPTY),
    (
        "clock/timer",
        {
            "name": _NAME,
            "tickpolicy": "delay|catchup|merge|discard",
            "present": _SWITCH,
            "track": "boot|guest|wall",
            "mode": _NAME,
            "frequency": _NUMBER,
        },
        _EMPTY,
    ),
    (
        "cpu",
        {
            "mode": "custom|host-model|host-passthrough|maximum",
            "match": "exact|minimum|strict",
            "check": "none|partial|full",
            "migratable": _SWITCH,
        },
        _EMPTY,
    ),
    (
        "cpu/model",
        {"fallback": "allow|forbid", "vendor_id": _NAME},
        r"[A-Za-z0-9_.\-]{1,64}",
    ),
    ("cpu/arch", {}, _NAME),
    ("cpu/vendor", {}, _NAME),
    (
        "cpu/topology",
        {
            name: _NUMBER
            for name in ("sockets", "dies", "clusters", "cores", "threads")
        },
        _EMPTY,
    ),
    (
        "cpu/feature",
        {
            "name": _NAME,
            "policy": "force|require|optional|disable|forbid",
        },
        _EMPTY,
    ),
    ("cpu/cache", {"mode": _NAME, "level": _NUMBER}, _EMPTY),
    (
        "cpu/maxphysaddr",
        {"mode": "emulate|passthrough", "bits": _NUMBER, "limit": _NUMBER},
        _EMPTY,
    ),
    ("cpu/numa", {}, _EMPTY),
    (
        "cpu/numa/cell",
        # not memAccess='shared'
        {"id": _NUMBER, "cpus": _CPUS, "memory": _NUMBER, "unit": _NAME},
        _EMPTY,
    ),
)

_DISK = _rules(
    (
        "devices/disk",
        {"type": "file", "device": "disk|cdrom"},
        _EMPTY,
    ),
    (
        "devices/disk/driver",
        {
            "name": "qemu",
            "type": "qcow2|raw",
            "cache": "none|writethrough|writeback|directsync|unsafe|default",
            "discard": "unmap|ignore",
            "detect_zeroes": "on|off|unmap",
            "io": "native|threads|io_uring",
            "queues": _NUMBER,
            "iothread": _NUMBER,
            **_BUS,
        },
        _EMPTY,
    ),
    ("devices/disk/source", {"file": r"/.{1,1023}"}, _EMPTY),
    (
        "devices/disk/source/encryption",
        {"format": "luks", "engine": "qemu"},
        _EMPTY,
    ),
    (
        "devices/disk/source/encryption/secret",
        {"type": "passphrase", "uuid": r"[0-9a-f\-]{36}"},
        _EMPTY,
    ),
    ("devices/disk/backingStore", {"type": "file"}, _EMPTY),
    ("devices/disk/backingStore/format", {"type": "qcow2"}, _EMPTY),
    ("devices/disk/backingStore/source", {"file": r"/.{1,1023}"}, _EMPTY),
    (
        "devices/disk/backingStore/source/encryption",
        {"format": "luks", "engine": "qemu"},
        _EMPTY,
    ),
    (
        "devices/disk/backingStore/source/encryption/secret",
        {"type": "passphrase", "uuid": r"[0-9a-f\-]{36}"},
        _EMPTY,
    ),
    ("devices/disk/backingStore/backingStore", {}, _EMPTY),
    ("devices/disk/target", {"dev": _NAME, "bus": _NAME}, _EMPTY),
    ("devices/disk/alias", _ALIAS, _EMPTY),
    ("devices/disk/address", _ADDRESS, _EMPTY),
    ("devices/disk/readonly", {}, _EMPTY),
    ("devices/disk/serial", {}, r"[A-Za-z0-9_\-]{1,36}"),
    (
        "devices/disk/blockio",
        {"logical_block_size": _NUMBER, "physical_block_size": _NUMBER},
        _EMPTY,
    ),
    ("devices/disk/iotune", {}, _EMPTY),
    *(
        (f"devices/disk/iotune/{what}_{unit}_sec", {}, _NUMBER)
        for what in ("total", "read", "write")
        for unit in ("bytes", "iops")
    ),
    *(
        (f"devices/disk/iotune/{what}_{unit}_sec_max", {}, _NUMBER)
        for what in ("total", "read", "write")
        for unit in ("bytes", "iops")
    ),
    ("devices/disk/iotune/size_iops_sec", {}, _NUMBER),
)

_INTERFACE = _rules(
    (
        "devices/interface",
        # not network: one of libvirt's may hand out the host's devices
        {"type": "bridge|ethernet|direct", "managed": _SWITCH},
        _EMPTY,
    ),
    ("devices/interface/mac", {"address": r"[0-9a-fA-F:]{17}"}, _EMPTY),
    (
        "devices/interface/source",
        {
            "bridge": _NAME,
            "dev": _NAME,
            "mode": _NAME,
        },
        _EMPTY,
    ),
    (
        "devices/interface/target",
        {"dev": _NAME, "managed": _SWITCH},
        _EMPTY,
    ),
    ("devices/interface/model", {"type": _NAME}, _EMPTY),
    (
        "devices/interface/driver",
        {
            "name": "qemu|vhost",
            "queues": _NUMBER,
            "rx_queue_size": _NUMBER,
            "tx_queue_size": _NUMBER,
            **_BUS,
        },
        _EMPTY,
    ),
    ("devices/interface/mtu", {"size": _NUMBER}, _EMPTY),
    ("devices/interface/link", {"state": "up|down"}, _EMPTY),
    # libvirt runs a script as root
    ("devices/interface/script", {"path": ""}, _EMPTY),
    ("devices/interface/virtualport", {"type": _NAME}, _EMPTY),
    (
        "devices/interface/virtualport/parameters",
        {
            "interfaceid": r"[0-9a-f\-]{36}",
            "profileid": _NAME,
            "managerid": _NUMBER,
            "typeid": _NUMBER,
            "typeidversion": _NUMBER,
            "instanceid": r"[0-9a-f\-]{36}",
        },
        _EMPTY,
    ),
    ("devices/interface/filterref", {"filter": _NAME}, _EMPTY),
    (
        "devices/interface/filterref/parameter",
        {"name": _NAME, "value": r"[A-Za-z0-9_.:/\-]{0,128}"},
        _EMPTY,
    ),
    ("devices/interface/vlan", {}, _EMPTY),
    ("devices/interface/vlan/tag", {"id": _NUMBER}, _EMPTY),
    ("devices/interface/bandwidth", {}, _EMPTY),
    *(
        (
            f"devices/interface/bandwidth/{way}",
            {name: _NUMBER for name in ("average", "peak", "burst", "floor")},
            _EMPTY,
        )
        for way in ("inbound", "outbound")
    ),
    ("devices/interface/alias", _ALIAS, _EMPTY),
    ("devices/interface/address", _ADDRESS, _EMPTY),
)


def _character(device: str) -> list[tuple[str, dict[str, str], str]]:
    """serial and console: output only, into nova's log."""
    path = f"devices/{device}"
    return [
        (path, {"type": "pty|file", "tty": r"/dev/pts/[0-9]+"}, _EMPTY),
        (path + "/log", {"file": r"/.{1,1023}", "append": _SWITCH}, _EMPTY),
        (path + "/source", {"path": r"/.{1,1023}"}, _EMPTY),
        (path + "/target", {"type": _NAME, "port": _NUMBER}, _EMPTY),
        (path + "/target/model", {"name": _NAME}, _EMPTY),
        (path + "/alias", _ALIAS, _EMPTY),
        (path + "/address", _ADDRESS, _EMPTY),
    ]


_DEVICES = _rules(
    ("devices", {}, _EMPTY),
    ("devices/emulator", {}, r"/.{1,255}"),
    (
        "devices/controller",
        {
            "type": "usb|pci|scsi|ide|sata|fdc|virtio-serial",
            "index": _NUMBER,
            "model": _NAME,
            "ports": _NUMBER,
        },
        _EMPTY,
    ),
    ("devices/controller/model", {"name": _NAME}, _EMPTY),
    (
        "devices/controller/target",
        {"chassis": _NUMBER, "port": r"(0x)?[0-9a-f]{1,4}"},
        _EMPTY,
    ),
    ("devices/controller/master", {"startport": _NUMBER}, _EMPTY),
    (
        "devices/controller/driver",
        {"queues": _NUMBER, "iothread": _NUMBER, **_BUS},
        _EMPTY,
    ),
    ("devices/controller/alias", _ALIAS, _EMPTY),
    ("devices/controller/address", _ADDRESS, _EMPTY),
    *_character("serial"),
    *_character("console"),
    (
        "devices/input",
        {"type": "tablet|mouse|keyboard", "bus": "usb|ps2|virtio"},
        _EMPTY,
    ),
    ("devices/input/alias", _ALIAS, _EMPTY),
    ("devices/input/address", _ADDRESS, _EMPTY),
    ("devices/rng", {"model": "virtio.{0,24}"}, _EMPTY),
    (
        "devices/rng/backend",
        {"model": "random"},
        r"/dev/urandom|/dev/random|/dev/hwrng",
    ),
    ("devices/rng/rate", {"bytes": _NUMBER, "period": _NUMBER}, _EMPTY),
    ("devices/rng/driver", _BUS, _EMPTY),
    ("devices/rng/alias", _ALIAS, _EMPTY),
    ("devices/rng/address", _ADDRESS, _EMPTY),
    ("devices/video", {}, _EMPTY),
    (
        "devices/video/model",
        {
            "type": _NAME,
            "vram": _NUMBER,
            "ram": _NUMBER,
            "vgamem": _NUMBER,
            "heads": _NUMBER,
            "primary": _SWITCH,
        },
        _EMPTY,
    ),
    ("devices/video/driver", _BUS, _EMPTY),
    ("devices/video/alias", _ALIAS, _EMPTY),
    ("devices/video/address", _ADDRESS, _EMPTY),
    ("devices/audio", {"id": _NUMBER, "type": "none"}, _EMPTY),
    (
        "devices/memballoon",
        {
            "model": "none|virtio.{0,24}",
            "autodeflate": _SWITCH,
            "freePageReporting": _SWITCH,
        },
        _EMPTY,
    ),
    ("devices/memballoon/stats", {"period": _NUMBER}, _EMPTY),
    ("devices/memballoon/driver", _BUS, _EMPTY),
    ("devices/memballoon/alias", _ALIAS, _EMPTY),
    ("devices/memballoon/address", _ADDRESS, _EMPTY),
    (
        # not action='dump'
        "devices/watchdog",
        {
            "model": _NAME,
            "action": "reset|shutdown|poweroff|pause|none|inject-nmi",
        },
        _EMPTY,
    ),
    ("devices/watchdog/alias", _ALIAS, _EMPTY),
    ("devices/watchdog/address", _ADDRESS, _EMPTY),
    ("devices/panic", {"model": _NAME}, _EMPTY),
)

#: Path below ``domain`` to what may stand there.
ALLOWED: dict[str, Rule] = {**_TOP, **_OS, **_DISK, **_INTERFACE, **_DEVICES}
