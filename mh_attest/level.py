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
"""How far a host's measurements reach, from its kernel command line.

``trusted``: the command line, itself measured, pins the file system that
holds the software (dm-verity) or makes the kernel enforce signatures on it
(IMA appraisal).  ``boot-only``: firmware to initrd, and nothing after.
"""

from collections.abc import Sequence

TRUSTED = "trusted"
BOOT_ONLY = "boot-only"

_HEX = frozenset("0123456789abcdefABCDEF")
_OFF = frozenset(("0", "no", "n", "false", "f", "off"))
_POLICIES = frozenset(("appraise_tcb", "secure_boot"))


def parameters(line: str) -> list[tuple[str, str]]:
    """(name, value) as the kernel's next_arg() splits them.

    Double quotes hold words together; what follows ``--`` belongs to init.
    """
    words: list[str] = []
    word, quoted = "", False
    for char in line:
        if char == '"':
            quoted = not quoted
        elif char in " \t\n\r\v\f" and not quoted:
            words.append(word)
            word = ""
        else:
            word += char
    words.append(word)
    if "--" in words:
        words = words[: words.index("--")]
    pairs = (word.partition("=") for word in words if word)
    return [(name, value) for name, _equals, value in pairs]


def _verity(found: list[tuple[str, str]]) -> bool:
    hashes = [value for name, value in found if name == "roothash"]
    if len(hashes) != 1:  # the last of two would win, or the first
        return False
    value = hashes[0]
    if len(value) != 64 or not set(value) <= _HEX or set(value) == {"0"}:
        return False
    for name, setting in found:
        if name in ("systemd.verity", "rd.systemd.verity"):
            if setting.lower() in _OFF:
                return False
        elif name == "root":
            if not setting.startswith(("/dev/mapper/", "/dev/dm-")):
                return False
        elif name == "systemd.verity_root_options" and (
            "ignore-corruption" in setting or "ignore-zero" in setting
        ):
            return False
    return True


def _ima(found: list[tuple[str, str]]) -> bool:
    modes = {value for name, value in found if name == "ima_appraise"}
    policies = {
        policy
        for name, value in found
        if name == "ima_policy"
        for policy in value.split("|")
    }
    return modes == {"enforce"} and bool(policies & _POLICIES)


def of(command_lines: Sequence[str]) -> str:
    """Level of a host with these authenticated command lines.

    Every one of them must cover the software: a log may hold several, and
    nothing says which the kernel obeyed.
    """
    if not command_lines:
        return BOOT_ONLY
    for line in command_lines:
        found = parameters(line)
        if not (_verity(found) or _ima(found)):
            return BOOT_ONLY
    return TRUSTED
