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
"""Devices that a trusted domain may have: rows of the allow-list.

See :mod:`mh_nova.agent.domain_schema`.
"""

from mh_nova.agent.domain_rule import (
    ADDRESS,
    ALIAS,
    BUS,
    EMPTY,
    NAME,
    NUMBER,
    SWITCH,
    rules,
)

DISK = rules(
    (
        "devices/disk",
        {"type": "file|block", "device": "disk|cdrom"},
        EMPTY,
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
            "queues": NUMBER,
            "iothread": NUMBER,
            **BUS,
        },
        EMPTY,
    ),
    (
        "devices/disk/source",
        {"file": r"/.{1,1023}", "dev": r"/.{1,1023}"},
        EMPTY,
    ),
    (
        "devices/disk/source/encryption",
        {"format": "luks", "engine": "qemu"},
        EMPTY,
    ),
    (
        "devices/disk/source/encryption/secret",
        {"type": "passphrase", "uuid": r"[0-9a-f\-]{36}"},
        EMPTY,
    ),
    ("devices/disk/backingStore", {"type": "file"}, EMPTY),
    ("devices/disk/backingStore/format", {"type": "qcow2|raw"}, EMPTY),
    ("devices/disk/backingStore/source", {"file": r"/.{1,1023}"}, EMPTY),
    (
        "devices/disk/backingStore/source/encryption",
        {"format": "luks", "engine": "qemu"},
        EMPTY,
    ),
    (
        "devices/disk/backingStore/source/encryption/secret",
        {"type": "passphrase", "uuid": r"[0-9a-f\-]{36}"},
        EMPTY,
    ),
    ("devices/disk/backingStore/backingStore", {}, EMPTY),
    ("devices/disk/target", {"dev": NAME, "bus": NAME}, EMPTY),
    ("devices/disk/alias", ALIAS, EMPTY),
    ("devices/disk/address", ADDRESS, EMPTY),
    ("devices/disk/readonly", {}, EMPTY),
    ("devices/disk/serial", {}, r"[A-Za-z0-9_\-]{1,36}"),
    (
        "devices/disk/blockio",
        {"logical_block_size": NUMBER, "physical_block_size": NUMBER},
        EMPTY,
    ),
    ("devices/disk/iotune", {}, EMPTY),
    *(
        (f"devices/disk/iotune/{what}_{unit}_sec", {}, NUMBER)
        for what in ("total", "read", "write")
        for unit in ("bytes", "iops")
    ),
    *(
        (f"devices/disk/iotune/{what}_{unit}_sec_max", {}, NUMBER)
        for what in ("total", "read", "write")
        for unit in ("bytes", "iops")
    ),
    ("devices/disk/iotune/size_iops_sec", {}, NUMBER),
)

INTERFACE = rules(
    (
        "devices/interface",
        # not network: one of libvirt's may hand out the host's devices
        {"type": "bridge|ethernet|direct", "managed": SWITCH},
        EMPTY,
    ),
    ("devices/interface/mac", {"address": r"[0-9a-fA-F:]{17}"}, EMPTY),
    (
        "devices/interface/source",
        {
            "bridge": NAME,
            "dev": NAME,
            "mode": NAME,
        },
        EMPTY,
    ),
    (
        "devices/interface/target",
        {"dev": NAME, "managed": SWITCH},
        EMPTY,
    ),
    ("devices/interface/model", {"type": NAME}, EMPTY),
    (
        "devices/interface/driver",
        {
            "name": "qemu|vhost",
            "queues": NUMBER,
            "rx_queue_size": NUMBER,
            "tx_queue_size": NUMBER,
            **BUS,
        },
        EMPTY,
    ),
    ("devices/interface/mtu", {"size": NUMBER}, EMPTY),
    ("devices/interface/link", {"state": "up|down"}, EMPTY),
    # libvirt runs a script as root
    ("devices/interface/script", {"path": ""}, EMPTY),
    ("devices/interface/virtualport", {"type": NAME}, EMPTY),
    (
        "devices/interface/virtualport/parameters",
        {
            "interfaceid": r"[0-9a-f\-]{36}",
            "profileid": NAME,
            "managerid": NUMBER,
            "typeid": NUMBER,
            "typeidversion": NUMBER,
            "instanceid": r"[0-9a-f\-]{36}",
        },
        EMPTY,
    ),
    ("devices/interface/filterref", {"filter": NAME}, EMPTY),
    (
        "devices/interface/filterref/parameter",
        {"name": NAME, "value": r"[A-Za-z0-9_.:/\-]{0,128}"},
        EMPTY,
    ),
    ("devices/interface/vlan", {}, EMPTY),
    ("devices/interface/vlan/tag", {"id": NUMBER}, EMPTY),
    ("devices/interface/bandwidth", {}, EMPTY),
    *(
        (
            f"devices/interface/bandwidth/{way}",
            {name: NUMBER for name in ("average", "peak", "burst", "floor")},
            EMPTY,
        )
        for way in ("inbound", "outbound")
    ),
    ("devices/interface/alias", ALIAS, EMPTY),
    ("devices/interface/address", ADDRESS, EMPTY),
)


def _character(device: str) -> list[tuple[str, dict[str, str], str]]:
    """serial and console: output only, into nova's log."""
    path = f"devices/{device}"
    return [
        (path, {"type": "pty|file", "tty": r"/dev/pts/[0-9]+"}, EMPTY),
        (path + "/log", {"file": r"/.{1,1023}", "append": SWITCH}, EMPTY),
        (path + "/source", {"path": r"/.{1,1023}"}, EMPTY),
        (path + "/target", {"type": NAME, "port": NUMBER}, EMPTY),
        (path + "/target/model", {"name": NAME}, EMPTY),
        (path + "/alias", ALIAS, EMPTY),
        (path + "/address", ADDRESS, EMPTY),
    ]


DEVICES = rules(
    ("devices", {}, EMPTY),
    ("devices/emulator", {}, r"/.{1,255}"),
    (
        "devices/controller",
        {
            "type": "usb|pci|scsi|ide|sata|fdc|virtio-serial",
            "index": NUMBER,
            "model": NAME,
            "ports": NUMBER,
        },
        EMPTY,
    ),
    ("devices/controller/model", {"name": NAME}, EMPTY),
    (
        "devices/controller/target",
        {"chassis": NUMBER, "port": r"(0x)?[0-9a-f]{1,4}"},
        EMPTY,
    ),
    ("devices/controller/master", {"startport": NUMBER}, EMPTY),
    (
        "devices/controller/driver",
        {"queues": NUMBER, "iothread": NUMBER, **BUS},
        EMPTY,
    ),
    ("devices/controller/alias", ALIAS, EMPTY),
    ("devices/controller/address", ADDRESS, EMPTY),
    *_character("serial"),
    *_character("console"),
    (
        "devices/input",
        {"type": "tablet|mouse|keyboard", "bus": "usb|ps2|virtio"},
        EMPTY,
    ),
    ("devices/input/alias", ALIAS, EMPTY),
    ("devices/input/address", ADDRESS, EMPTY),
    ("devices/rng", {"model": "virtio.{0,24}"}, EMPTY),
    (
        "devices/rng/backend",
        {"model": "random"},
        r"/dev/urandom|/dev/random|/dev/hwrng",
    ),
    ("devices/rng/rate", {"bytes": NUMBER, "period": NUMBER}, EMPTY),
    ("devices/rng/driver", BUS, EMPTY),
    ("devices/rng/alias", ALIAS, EMPTY),
    ("devices/rng/address", ADDRESS, EMPTY),
    ("devices/video", {}, EMPTY),
    (
        "devices/video/model",
        {
            "type": NAME,
            "vram": NUMBER,
            "ram": NUMBER,
            "vgamem": NUMBER,
            "heads": NUMBER,
            "primary": SWITCH,
        },
        EMPTY,
    ),
    ("devices/video/driver", BUS, EMPTY),
    ("devices/video/alias", ALIAS, EMPTY),
    ("devices/video/address", ADDRESS, EMPTY),
    ("devices/audio", {"id": NUMBER, "type": "none"}, EMPTY),
    (
        "devices/memballoon",
        {
            "model": "none|virtio.{0,24}",
            "autodeflate": SWITCH,
            "freePageReporting": SWITCH,
        },
        EMPTY,
    ),
    ("devices/memballoon/stats", {"period": NUMBER}, EMPTY),
    ("devices/memballoon/driver", BUS, EMPTY),
    ("devices/memballoon/alias", ALIAS, EMPTY),
    ("devices/memballoon/address", ADDRESS, EMPTY),
    (
        # not action='dump'
        "devices/watchdog",
        {
            "model": NAME,
            "action": "reset|shutdown|poweroff|pause|none|inject-nmi",
        },
        EMPTY,
    ),
    ("devices/watchdog/alias", ALIAS, EMPTY),
    ("devices/watchdog/address", ADDRESS, EMPTY),
    ("devices/panic", {"model": NAME}, EMPTY),
)

#: Path below ``domain`` to what may stand there.
