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

"""Vectors of event logs."""

import hashlib
import struct
from typing import Any

from mh_core.tpm import eventlog
from tpm_parts.cases import (
    pcr_values,
)
from tpm_parts.device import Tpm

Case = dict[str, Any]


def _agile(events: list[tuple[int, int, bytes]]) -> bytes:
    """A log with SHA-1 and SHA-256 digests, not written by mh_core."""
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 0, 2)
    spec += struct.pack("<IHHHHB", 2, 4, 20, 11, 32, 0)
    log = struct.pack("<II20sI", 0, 3, bytes(20), len(spec)) + spec
    for pcr, kind, data in events:
        digests = (
            hashlib.sha1(data, usedforsecurity=False).digest(),
            hashlib.sha256(data).digest(),
        )
        log += struct.pack(
            "<IIIH20sH32sI",
            pcr,
            kind,
            2,
            4,
            digests[0],
            11,
            digests[1],
            len(data),
        )
        log += data
    return log


def _replayed(tpm: Tpm, log: bytes) -> dict[str, str]:
    """PCR values of the SHA-256 bank by tpm2_eventlog."""
    tpm.write("log.bin", log)
    text = tpm.run("tpm2_eventlog", "log.bin").decode("utf-8", "replace")
    values, bank = {}, ""
    for line in text[text.index("\npcrs:") :].splitlines():
        key, _, value = line.strip().partition(":")
        if not value.strip():
            bank = key
        elif bank == "sha256":
            values[key.strip()] = value.strip().removeprefix("0x")
    return values


def logs(tpm: Tpm) -> list[Case]:
    """Synthetic logs, replayed by tpm2_eventlog."""
    e = eventlog
    wide = "root=/dev/dm-0 quiet\0".encode("utf-16-le")
    grub = b"/vmlinuz root=/dev/dm-0 ro"
    events = [
        (0, e.EV_S_CRTM_VERSION, "1.0\0".encode("utf-16-le")),
        (0, e.EV_POST_CODE, b"POST CODE"),
        (4, e.EV_EFI_ACTION, b"Calling EFI Application from Boot Option"),
        *((pcr, e.EV_SEPARATOR, bytes(4)) for pcr in range(8)),
        (8, e.EV_IPL, b"grub_cmd: linux /vmlinuz\0"),
        (8, e.EV_IPL, b"kernel_cmdline: " + grub + b"\0"),
        (9, e.EV_IPL, b"/vmlinuz\0"),
        (12, e.EV_IPL, wide),
    ]
    line, uki = grub.decode(), "root=/dev/dm-0 quiet"
    real = e.build_measured(
        (pcr, kind, data, grub if grub in data else data)
        for pcr, kind, data in events
    )
    wrong = e.build_measured(
        (pcr, kind, data, b"else" if grub in data else data)
        for pcr, kind, data in events
    )
    locality = [(0, e.EV_NO_ACTION, b"StartupLocality\0\3"), *events]
    cases = [
        {
            "name": title,
            "expect": "ok",
            "command": "tpm2_eventlog log.bin",
            "log": log.hex(),
            "pcrs": _replayed(tpm, log),
            "command_lines": lines,
        }
        for title, log, lines in (
            ("SHA-256 log", e.build(events), [line, uki]),
            ("SHA-1 and SHA-256 log", _agile(events), [line, uki]),
            ("GRUB hashes without the prefix", real, [line, uki]),
            ("command line that was not measured", wrong, [uki]),
            ("no events", e.build([]), []),
        )
    ]
    # tpm2_eventlog of this version ignores the locality; a TPM does not.
    tpm.restart(3)
    for pcr, _, data in events:
        digest = hashlib.sha256(data).hexdigest()
        tpm.run("tpm2_pcrextend", f"{pcr}:sha256={digest}")
    cases.append(
        {
            "name": "startup locality 3",
            "expect": "ok",
            "command": "swtpm_ioctl -l 3; TPM2_Startup; tpm2_pcrextend",
            "log": e.build(locality).hex(),
            "pcrs": pcr_values(tpm, (*range(8), 8, 9, 12)),
            "command_lines": [line, uki],
        }
    )
    log = e.build(events)
    head = len(e.build([]))
    p = "core.tpm.eventlog."
    short = "core.tpm.reader.short"

    def patched(at: int, new: bytes) -> bytes:
        return log[:at] + new + log[at + len(new) :]

    for title, expect, data in (
        ("empty", short, b""),
        ("truncated", short, log[:-1]),
        ("an octet more", short, log + b"\0"),
        ("SHA-1 format", p + "header", patched(32, b"Spec ID Event02\0")),
        ("no algorithms", p + "header", patched(56, bytes(4))),
        ("4 G algorithms", p + "header", patched(56, b"\xff" * 4)),
        ("SHA-256 of 20 octets", p + "algorithm", patched(62, b"\x14\0")),
        ("no SHA-256", p + "algorithm", patched(60, b"\4\0\x14\0")),
        ("PCR 24", p + "event", patched(head, b"\x18")),
        ("two digests", p + "event", patched(head + 8, b"\2")),
        ("no digest", p + "event", patched(head + 8, b"\0")),
        ("digest of SHA-384", p + "event", patched(head + 12, b"\x0c")),
        ("event of 4 GiB", short, patched(head + 46, b"\xff" * 4)),
        (
            "late startup locality",
            p + "locality",
            e.build([*events, *locality[:1]]),
        ),
        (
            "startup locality 9",
            p + "locality",
            e.build([(0, 3, b"StartupLocality\0\x09")]),
        ),
        (
            "command line with a zero",
            p + "command-line",
            e.build([(8, 13, b"kernel_cmdline: a\0b")]),
        ),
        (
            "command line not UTF-8",
            p + "command-line",
            e.build([(8, 13, b"kernel_cmdline: \xff")]),
        ),
    ):
        cases.append({"name": title, "expect": expect, "log": data.hex()})
    return cases
