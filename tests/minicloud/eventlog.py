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

"""What firmware and boot loader of a node measure, and the log of it.

Written here apart from the product's own reader, so that the two have
nothing in common but the TCG PC Client specification.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct

EV_POST_CODE = 0x01
EV_NO_ACTION = 0x03
EV_SEPARATOR = 0x04
EV_S_CRTM_VERSION = 0x08
EV_IPL = 0x0D
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
EV_EFI_ACTION = 0x80000007

_SHA256 = 0x000B


@dataclasses.dataclass(frozen=True)
class Event:
    """One measurement; the PCR gets SHA-256 of what was measured.

    That is the event's data, unless something else is given: of a file or
    a string, boot loaders log only a name or the string with a prefix.
    """

    pcr: int
    type: int
    data: bytes
    measured: bytes | None = None

    @property
    def digest(self) -> bytes:
        measured = self.data if self.measured is None else self.measured
        return hashlib.sha256(measured).digest()


def _text(name: str) -> bytes:
    return name.encode("utf-16-le")


def _variable(name: str, data: bytes) -> bytes:
    """UEFI_VARIABLE_DATA of a global variable."""
    guid = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
    return guid + struct.pack("<QQ", len(name), len(data)) + _text(name) + data


def _image_load(name: str) -> bytes:
    """UEFI_IMAGE_LOAD_EVENT of a file: a device path and its end."""
    text = _text(name + "\0")
    path = struct.pack("<BBH", 4, 4, 4 + len(text)) + text
    path += struct.pack("<BBH", 0x7F, 0xFF, 4)
    return struct.pack("<QQQQ", 0x7E000000, 0x100000, 0, len(path)) + path


def command_line(node: str) -> str:
    """What GRUB gives the kernel: the root is covered by dm-verity."""
    roothash = hashlib.sha256(b"root file system of a node").hexdigest()
    return (
        f"/boot/vmlinuz-6.1.0-mh root=/dev/mapper/vroot ro "
        f"systemd.verity=1 roothash={roothash} console=ttyS0"
    )


def boot_events(node: str) -> list[Event]:
    """The measurements of one boot, equal on equal machines."""
    cmdline = command_line(node).encode()

    def grub(prefix: bytes, text: bytes) -> Event:
        # GRUB's digest covers the text, its data the prefix too.
        return Event(8, EV_IPL, prefix + text, text)

    def file(name: bytes) -> Event:
        return Event(9, EV_IPL, name, b"content of " + name)

    def program(name: str) -> Event:
        return Event(
            4,
            EV_EFI_BOOT_SERVICES_APPLICATION,
            _image_load(name),
            b"content of " + name.encode(),
        )

    events = [
        Event(0, EV_S_CRTM_VERSION, _text("minicloud firmware 1.0\0")),
        Event(0, EV_POST_CODE, b"POST CODE"),
        Event(
            1, EV_EFI_VARIABLE_DRIVER_CONFIG, _variable("BootOrder", b"\0\0")
        ),
        Event(2, EV_POST_CODE, b"option ROM"),
        Event(
            7, EV_EFI_VARIABLE_DRIVER_CONFIG, _variable("SecureBoot", b"\1")
        ),
    ]
    events += [Event(pcr, EV_SEPARATOR, bytes(4)) for pcr in range(8)]
    events += [
        program("\\EFI\\shimx64.efi"),
        program("\\EFI\\grubx64.efi"),
        grub(b"grub_cmd: ", b"linux " + cmdline),
        file(b"/boot/vmlinuz-6.1.0-mh"),
        grub(b"kernel_cmdline: ", cmdline),
        file(b"/boot/initrd.img-6.1.0-mh"),
        Event(5, EV_EFI_ACTION, b"Exit Boot Services Invocation"),
    ]
    return events


def build(events: list[Event]) -> bytes:
    """A crypto-agile log with one bank, SHA-256."""
    spec = (
        b"Spec ID Event03\0"
        + struct.pack("<IBBBB", 0, 0, 2, 0, 2)
        + struct.pack("<IHH", 1, _SHA256, 32)
        + b"\0"
    )
    log = (
        struct.pack("<II", 0, EV_NO_ACTION)
        + bytes(20)
        + struct.pack("<I", len(spec))
        + spec
    )
    for event in events:
        log += struct.pack("<IIIH", event.pcr, event.type, 1, _SHA256)
        log += event.digest + struct.pack("<I", len(event.data)) + event.data
    return log
