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
"""What other programs' configuration files say; read, never guessed.

Only single settings are looked for. One that stands twice counts with both
values, so that neither order nor a section can hide one.
"""

import os
import re
from pathlib import Path

# libvirt takes both kinds of quotes, and ';' between settings
_QEMU = (
    r"^[^#\n]*?\b{name}[ \t]*=[ \t]*(?:\"([^\"\n]*)\"|'([^'\n]*)'|([^\s;#]*))"
)
_SHELL = r"^[ \t]*(?:export[ \t]+)?{name}=([^\s;#]*)"


def qemu(text: str, name: str) -> set[str]:
    """Every value of one setting of qemu.conf, without quotes."""
    pattern = re.compile(_QEMU.format(name=re.escape(name)), re.M)
    return {
        next((part for part in match if part), "")
        for match in pattern.findall(text)
    }


def shell(path: Path, name: str) -> set[str] | None:
    """Every value given to a variable in a file of assignments; None if
    there is no such file.

    :raises OSError: it cannot be read.
    """
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    pattern = re.compile(_SHELL.format(name=re.escape(name)), re.M)
    return {value.strip("\"'") for value in pattern.findall(text)}


class LibvirtGuests:
    """The service that ends or saves the guests when the host goes down.

    :param root: of the host's file system.
    """

    _UNIT = "libvirt-guests.service"
    _WANTED = (
        "etc/systemd/system",
        "lib/systemd/system",
        "run/systemd/system",
    )
    _SETTINGS = ("etc/default/libvirt-guests", "etc/sysconfig/libvirt-guests")
    _SCRIPTS = (
        "usr/lib/libvirt/libvirt-guests.sh",
        "usr/libexec/libvirt-guests.sh",
    )

    def __init__(self, root: Path) -> None:
        self._root = root

    def enabled(self) -> bool:
        if (self._root / "etc/systemd/system" / self._UNIT).is_symlink():
            # masked; an alias would not be called by this name
            return False
        # a link as seen from another root leads nowhere
        return any(
            os.path.lexists(wants / self._UNIT)
            for place in self._WANTED
            for wants in (self._root / place).glob("*.wants")
        )

    def on_shutdown(self) -> set[str]:
        """What it may do with running guests.

        The settings, else what the script itself begins with, else what
        libvirt's documentation says.

        :raises OSError: a file cannot be read.
        """
        found: set[str] = set()
        for name in self._SETTINGS:
            found |= shell(self._root / name, "ON_SHUTDOWN") or set()
        for name in self._SCRIPTS:
            if not found:
                script = shell(self._root / name, "ON_SHUTDOWN") or set()
                # its verb "shutdown" sets it as well, further down
                found = script
        return found or {"suspend"}
