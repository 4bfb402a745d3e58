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

"""Event log of the firmware and boot loader, crypto-agile format.

TCG PC Client Platform Firmware Profile, section "Event Logging". A log is
untrusted until :func:`replay` of it gives the values a TPM quoted; and even
then it vouches for digests only: data, and labels in it, are believed where
they hash to the digest.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from mh_core import errors
from mh_core.tpm import constants as c
from mh_core.tpm import reader

MAX_LOG: Final = 1 << 20
MAX_EVENTS: Final = 4096
_MAX_ALGORITHMS: Final = 16

EV_POST_CODE: Final = 0x00000001
EV_NO_ACTION: Final = 0x00000003
EV_SEPARATOR: Final = 0x00000004
EV_ACTION: Final = 0x00000005
EV_EVENT_TAG: Final = 0x00000006
EV_S_CRTM_CONTENTS: Final = 0x00000007
EV_S_CRTM_VERSION: Final = 0x00000008
EV_CPU_MICROCODE: Final = 0x00000009
EV_TABLE_OF_DEVICES: Final = 0x0000000B
EV_COMPACT_HASH: Final = 0x0000000C
EV_IPL: Final = 0x0000000D
EV_NONHOST_CODE: Final = 0x0000000F
EV_NONHOST_CONFIG: Final = 0x00000010
EV_OMIT_BOOT_DEVICE_EVENTS: Final = 0x00000012
EV_EFI_VARIABLE_DRIVER_CONFIG: Final = 0x80000001
EV_EFI_VARIABLE_BOOT: Final = 0x80000002
EV_EFI_BOOT_SERVICES_APPLICATION: Final = 0x80000003
EV_EFI_BOOT_SERVICES_DRIVER: Final = 0x80000004
EV_EFI_RUNTIME_SERVICES_DRIVER: Final = 0x80000005
EV_EFI_GPT_EVENT: Final = 0x80000006
EV_EFI_ACTION: Final = 0x80000007
EV_EFI_PLATFORM_FIRMWARE_BLOB: Final = 0x80000008
EV_EFI_HANDOFF_TABLES: Final = 0x80000009
EV_EFI_PLATFORM_FIRMWARE_BLOB2: Final = 0x8000000A
EV_EFI_HANDOFF_TABLES2: Final = 0x8000000B
EV_EFI_VARIABLE_BOOT2: Final = 0x8000000C
EV_EFI_HCRTM_EVENT: Final = 0x80000010
EV_EFI_VARIABLE_AUTHORITY: Final = 0x800000E0

#: Where GRUB measures the strings it executes, and systemd-stub the command
#: line of a unified kernel image that came from outside the image.
PCR_GRUB_STRINGS: Final = 8
PCR_UKI_CONFIG: Final = 12
GRUB_COMMAND_LINE: Final = b"kernel_cmdline: "

_SPEC_ID: Final = b"Spec ID Event03\0"
_STARTUP_LOCALITY: Final = b"StartupLocality\0"
# Digests of algorithms we name; others are skipped by the length declared.
_KNOWN_SIZES: Final = {c.ALG_SHA1: 20, **c.DIGEST_SIZES}


def _bad(what: str, message: str) -> errors.InputError:
    return errors.InputError(f"core.tpm.eventlog.{what}", message)


@dataclasses.dataclass(frozen=True)
class Event:
    """TCG_PCR_EVENT2: what was extended into which PCR.

    digests: by TPM_ALG_ID; data: a description, not always what was hashed.
    """

    pcr: int
    type: int
    digests: Mapping[int, bytes]
    data: bytes

    @property
    def authentic(self) -> bool:
        """Whether the data is what the SHA-256 digest was made from."""
        return self.measures(self.data)

    def measures(self, content: bytes) -> bool:
        """Whether this content is what the SHA-256 digest was made from."""
        digest = hashlib.sha256(content).digest()
        return self.digests.get(c.ALG_SHA256) == digest


def parse(log: bytes) -> tuple[Event, ...]:
    """Parse a log; the leading Spec ID event is checked and left out.

    Raises InputError ``core.tpm.eventlog.`` ``header``, ``algorithm``,
    ``event``, ``count``; or ``core.tpm.reader.*``.
    """
    r = reader.Reader(log, little=True, limit=MAX_LOG)
    sizes = _header(r)
    events: list[Event] = []
    while r.remaining:
        if len(events) >= MAX_EVENTS:
            raise _bad("count", f"more than {MAX_EVENTS} events")
        events.append(_event(r, sizes))
    return tuple(events)


def _header(r: reader.Reader) -> dict[int, int]:
    """TCG_PCR_EVENT with TCG_EfiSpecIDEvent: digest size per algorithm."""
    pcr, kind = r.u32(), r.u32()
    r.take(20)
    spec = reader.Reader(r.take(r.u32()), little=True)
    if pcr != 0 or kind != EV_NO_ACTION or spec.take(16) != _SPEC_ID:
        raise _bad("header", "not a crypto-agile event log")
    spec.take(8)  # platform class, version, errata, size of UINTN
    count = spec.u32()
    if not 1 <= count <= _MAX_ALGORITHMS:
        raise _bad("header", f"{count} digest algorithms")
    sizes: dict[int, int] = {}
    for _ in range(count):
        alg, size = spec.u16(), spec.u16()
        if alg in sizes or not 1 <= size <= 64:
            raise _bad("algorithm", f"algorithm {alg:#06x} of {size}")
        if _KNOWN_SIZES.get(alg, size) != size:
            raise _bad("algorithm", f"algorithm {alg:#06x} of {size}")
        sizes[alg] = size
    if c.ALG_SHA256 not in sizes:
        raise _bad("algorithm", "the log has no SHA-256 digests")
    spec.take(spec.u8())
    spec.end()
    return sizes


def _event(r: reader.Reader, sizes: Mapping[int, int]) -> Event:
    """TCG_PCR_EVENT2."""
    pcr, kind, count = r.u32(), r.u32(), r.u32()
    # Events that extend nothing may name no PCR.
    if pcr >= c.PCR_COUNT and kind != EV_NO_ACTION:
        raise _bad("event", f"no PCR has index {pcr}")
    if count > len(sizes):
        raise _bad("event", f"{count} digests")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        alg = r.u16()
        if alg not in sizes or alg in digests:
            raise _bad("event", f"digest of algorithm {alg:#06x}")
        digests[alg] = r.take(sizes[alg])
    if c.ALG_SHA256 not in digests and kind != EV_NO_ACTION:
        raise _bad("event", "event without a SHA-256 digest")
    return Event(pcr, kind, digests, r.take(r.u32()))


def replay(events: Iterable[Event]) -> dict[int, bytes]:
    """Return the SHA-256 bank's values after these events.

    {index: 32 octets} of the PCRs that the log names. Each starts from
    zero, PCR 0 from the locality of TPM2_Startup where the log gives one.

    Raises InputError ``core.tpm.eventlog.locality`` or ``.event``.
    """
    values: dict[int, bytes] = {}
    for event in events:
        if event.type == EV_NO_ACTION:
            if event.pcr == 0 and event.data.startswith(_STARTUP_LOCALITY):
                # Later it would wipe out what PCR 0 already holds.
                if 0 in values:
                    raise _bad("locality", "startup after the first event")
                values[0] = _startup(event.data)
            continue
        if c.ALG_SHA256 not in event.digests:
            raise _bad("event", "event without a SHA-256 digest")
        values[event.pcr] = hashlib.sha256(
            values.get(event.pcr, bytes(c.SHA256_SIZE))
            + event.digests[c.ALG_SHA256]
        ).digest()
    return values


def _startup(data: bytes) -> bytes:
    """TCG_EfiStartupLocalityEvent: what PCR 0 starts from."""
    locality = data[len(_STARTUP_LOCALITY) :]
    if locality not in (b"\0", b"\3", b"\4"):
        raise _bad("locality", "no such startup locality")
    return bytes(c.SHA256_SIZE - 1) + locality


def command_lines(events: Iterable[Event]) -> tuple[str, ...]:
    """Return the kernel command lines measured, in the order of the log.

    * GRUB: EV_IPL in PCR 8, data ``kernel_cmdline: <line>`` and perhaps a
      zero octet; the digest is over the line alone (grub-core
      commands/tpm.c), or over all of the data;
    * unified kernel image: EV_IPL in PCR 12, data and digest over the line
      in UTF-16LE with its zero (systemd-stub), or over a UTF-8 string.

    Only lines that hash to their event's digest are returned. GRUB's digest
    does not cover the prefix: a log may call another string that GRUB
    measured a command line, or the other way round. A caller that trusts
    the result must also pin what else went into PCR 8, or its value.

    Raises InputError ``core.tpm.eventlog.command-line`` for an authentic
    line that has no text form: it must not be passed over.
    """
    lines: list[str] = []
    for event in events:
        if event.type != EV_IPL:
            continue
        if event.pcr == PCR_GRUB_STRINGS and event.data.startswith(
            GRUB_COMMAND_LINE
        ):
            line = event.data[len(GRUB_COMMAND_LINE) :].removesuffix(b"\0")
            if event.authentic or event.measures(line):
                lines.append(_text(line, "utf-8"))
        elif event.pcr == PCR_UKI_CONFIG and event.authentic:
            encoding = _encoding(event.data)
            end = "\0".encode(encoding)
            lines.append(_text(event.data.removesuffix(end), encoding))
    return tuple(lines)


def _encoding(data: bytes) -> str:
    """UTF-16LE by its zero, or by its first character's upper half."""
    wide = len(data) % 2 == 0 and (
        data[1:2] == b"\0" or data.endswith(b"\0\0")
    )
    return "utf-16-le" if wide else "utf-8"


def _text(line: bytes, encoding: str) -> str:
    try:
        text = line.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    # The kernel would stop reading at a zero, and the reader would not.
    if "\0" in text:
        raise _bad("command-line", "command line is not text")
    return text


def build(events: Iterable[tuple[int, int, bytes]]) -> bytes:
    """Return a SHA-256 log of (PCR, type, data), for tests.

    Every digest is over the whole data; of EV_NO_ACTION it is zero.

    Raises InputError ``core.tpm.eventlog.event``.
    """
    return build_measured(
        (pcr, kind, data, data) for pcr, kind, data in events
    )


def build_measured(
    events: Iterable[tuple[int, int, bytes, bytes]],
) -> bytes:
    """Return a SHA-256 log of (PCR, type, data, what is hashed), for tests.

    Raises InputError ``core.tpm.eventlog.event``.
    """
    # Platform class 0 (client), version 2.0 errata 0, UINTN of 8 octets.
    spec = _SPEC_ID + bytes((0, 0, 0, 0, 0, 2, 0, 2))
    spec += _u32(1) + _u16(c.ALG_SHA256) + _u16(c.SHA256_SIZE) + b"\0"
    log = _u32(0) + _u32(EV_NO_ACTION) + bytes(20) + _u32(len(spec)) + spec
    for pcr, kind, data, content in events:
        digest = hashlib.sha256(content).digest()
        if kind == EV_NO_ACTION:
            digest = bytes(c.SHA256_SIZE)
        log += _u32(pcr) + _u32(kind) + _u32(1) + _u16(c.ALG_SHA256)
        log += digest + _u32(len(data)) + data
    return log


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "little")


def _u32(value: int) -> bytes:
    if not 0 <= value < 1 << 32:
        raise _bad("event", f"{value} is not a UINT32")
    return value.to_bytes(4, "little")
