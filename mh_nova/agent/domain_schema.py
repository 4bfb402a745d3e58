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

from mh_nova.agent.domain_devices import DEVICES, DISK, INTERFACE
from mh_nova.agent.domain_firmware import FIRMWARE
from mh_nova.agent.domain_rule import (
    CPUS,
    EMPTY,
    NAME,
    NUMBER,
    SWITCH,
    Rule,
    rules,
)
from mh_nova.agent.domain_tpm import TPM

_TOP = rules(
    ("", {"type": "qemu|kvm", "id": NUMBER}, EMPTY),
    ("uuid", {}, r"[0-9a-f\-]{36}"),
    ("name", {}, r"[A-Za-z0-9_.\-]{1,64}"),
    ("memory", {"unit": "KiB|MiB|GiB|bytes|b"}, NUMBER),
    ("currentMemory", {"unit": "KiB|MiB|GiB|bytes|b"}, NUMBER),
    # not <access mode='shared'/>, not <source type='file'/>
    ("memoryBacking", {}, EMPTY),
    ("memoryBacking/hugepages", {}, EMPTY),
    (
        "memoryBacking/hugepages/page",
        {"size": NUMBER, "unit": NAME, "nodeset": CPUS},
        EMPTY,
    ),
    ("memoryBacking/nosharepages", {}, EMPTY),
    ("memoryBacking/locked", {}, EMPTY),
    (
        "vcpu",
        {"placement": "static", "cpuset": CPUS, "current": NUMBER},
        NUMBER,
    ),
    ("iothreads", {}, NUMBER),
    ("cputune", {}, EMPTY),
    ("cputune/shares", {}, NUMBER),
    ("cputune/period", {}, NUMBER),
    ("cputune/quota", {}, r"-?[0-9]{1,20}"),
    ("cputune/vcpupin", {"vcpu": NUMBER, "cpuset": CPUS}, EMPTY),
    ("cputune/emulatorpin", {"cpuset": CPUS}, EMPTY),
    (
        "cputune/vcpusched",
        {"vcpus": CPUS, "scheduler": "fifo|rr", "priority": NUMBER},
        EMPTY,
    ),
    ("numatune", {}, EMPTY),
    ("numatune/memory", {"mode": NAME, "nodeset": CPUS}, EMPTY),
    (
        "numatune/memnode",
        {"cellid": NUMBER, "mode": NAME, "nodeset": CPUS},
        EMPTY,
    ),
    # No oemStrings, no fwcfg, and no ';', '=' or '/' in a value: they carry
    # credentials for systemd and data sources for cloud-init.
    ("sysinfo", {"type": "smbios"}, EMPTY),
    ("sysinfo/bios", {}, EMPTY),
    (
        "sysinfo/bios/entry",
        {"name": "vendor|version"},
        r"[A-Za-z0-9 ._()\-]{0,64}",
    ),
    ("sysinfo/system", {}, EMPTY),
    (
        "sysinfo/system/entry",
        {"name": "manufacturer|product|version|serial|uuid|family"},
        r"[A-Za-z0-9 ._()\-]{0,64}",
    ),
    # libvirt's own words about a guest that runs, as a migration brings them
    ("resource", {}, EMPTY),
    ("resource/partition", {}, r"/machine"),
    (
        "seclabel",
        {"type": "dynamic", "model": "apparmor|selinux|dac", "relabel": "yes"},
        EMPTY,
    ),
    ("on_poweroff", {}, "destroy|restart"),
    ("on_reboot", {}, "destroy|restart"),
    # coredump-* writes the guest's memory to a file
    ("on_crash", {}, "destroy|restart"),
    ("pm", {}, EMPTY),
    ("pm/suspend-to-mem", {"enabled": "no"}, EMPTY),
    ("pm/suspend-to-disk", {"enabled": "no"}, EMPTY),
)

_OS = rules(
    ("os", {}, EMPTY),
    ("os/type", {"arch": NAME, "machine": NAME}, "hvm"),
    ("os/boot", {"dev": "hd"}, EMPTY),
    ("os/smbios", {"mode": "sysinfo"}, EMPTY),
    ("features", {}, EMPTY),
    ("features/acpi", {}, EMPTY),
    ("features/apic", {"eoi": SWITCH}, EMPTY),
    ("features/pae", {}, EMPTY),
    ("features/pmu", {"state": SWITCH}, EMPTY),
    ("features/ioapic", {"driver": "kvm|qemu"}, EMPTY),
    ("features/vmcoreinfo", {"state": SWITCH}, EMPTY),
    ("features/kvm", {}, EMPTY),
    ("features/kvm/hidden", {"state": SWITCH}, EMPTY),
    ("features/hyperv", {"mode": "custom|passthrough"}, EMPTY),
    *(
        (
            f"features/hyperv/{name}",
            {"state": SWITCH, "retries": NUMBER, "value": NAME},
            EMPTY,
        )
        for name in (
            "relaxed vapic spinlocks vendor_id vpindex runtime synic "
            "reset frequencies reenlightenment tlbflush ipi evmcs stimer"
        ).split()
    ),
    ("clock", {"offset": "utc|localtime"}, EMPTY),
    (
        "clock/timer",
        {
            "name": NAME,
            "tickpolicy": "delay|catchup|merge|discard",
            "present": SWITCH,
            "track": "boot|guest|wall",
            "mode": NAME,
            "frequency": NUMBER,
        },
        EMPTY,
    ),
    (
        "cpu",
        {
            "mode": "custom|host-model|host-passthrough|maximum",
            "match": "exact|minimum|strict",
            "check": "none|partial|full",
            "migratable": SWITCH,
        },
        EMPTY,
    ),
    (
        "cpu/model",
        {"fallback": "allow|forbid", "vendor_id": NAME},
        r"[A-Za-z0-9_.\-]{1,64}",
    ),
    ("cpu/arch", {}, NAME),
    ("cpu/vendor", {}, NAME),
    (
        "cpu/topology",
        {
            name: NUMBER
            for name in ("sockets", "dies", "clusters", "cores", "threads")
        },
        EMPTY,
    ),
    (
        "cpu/feature",
        {
            "name": NAME,
            "policy": "force|require|optional|disable|forbid",
        },
        EMPTY,
    ),
    ("cpu/cache", {"mode": NAME, "level": NUMBER}, EMPTY),
    (
        "cpu/maxphysaddr",
        {"mode": "emulate|passthrough", "bits": NUMBER, "limit": NUMBER},
        EMPTY,
    ),
    ("cpu/numa", {}, EMPTY),
    (
        "cpu/numa/cell",
        # not memAccess='shared'
        {"id": NUMBER, "cpus": CPUS, "memory": NUMBER, "unit": NAME},
        EMPTY,
    ),
)

ALLOWED: dict[str, Rule] = {
    **_TOP,
    **_OS,
    **DISK,
    **INTERFACE,
    **DEVICES,
    **TPM,
    **FIRMWARE,
}
#: Elements whose presence has an id of its own; paths below ``domain``.
NAMED: dict[str, str] = {
    "os/kernel": "direct-boot",
    "os/initrd": "direct-boot",
    "os/cmdline": "direct-boot",
    "os/dtb": "direct-boot",
    "os/acpi": "direct-boot",
    "os/init": "direct-boot",
    "os/loader": "boot",
    "os/nvram": "boot",
    "os/bootmenu": "boot",
    "os/bios": "boot",
    "devices/hostdev": "passthrough",
    "devices/filesystem": "passthrough",
    "devices/shmem": "passthrough",
    "devices/redirdev": "passthrough",
    "devices/redirfilter": "passthrough",
    "devices/smartcard": "passthrough",
    "devices/memory": "passthrough",
    "devices/lease": "passthrough",
    "devices/vsock": "channel",
    "devices/channel": "channel",
    "devices/graphics": "console",
    "devices/parallel": "console",
}
