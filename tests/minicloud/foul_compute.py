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
"""nova-compute of an operator who changes domains behind the hook's back.

Runs ``mh-nova-compute``; what stands in ``/run/mystery-hill/foul`` at each
start of a guest says what is added to its domain: ``disk``, ``console``,
``config-drive``, ``kernel``; nothing where the file is absent.
"""

from __future__ import annotations

import functools
import pathlib
import re
import sys
import typing

from tests.minicloud import patched

ORDERS = pathlib.Path("/run/mystery-hill/foul")
EXTRA = pathlib.Path("/run/mystery-hill/foul.img")

ADDITIONS = {
    "disk": "<disk type='file' device='disk'>"
    "<driver name='qemu' type='raw'/>"
    "<source file='{extra}'/><target dev='vdz' bus='virtio'/></disk>",
    "config-drive": "<disk type='file' device='cdrom'>"
    "<driver name='qemu' type='raw'/>"
    "<source file='{folder}/disk.config'/>"
    "<target dev='hdd' bus='ide'/><readonly/></disk>",
    "console": "<graphics type='vnc' port='-1' listen='127.0.0.1'/>",
}


def tamper(xml: str, order: str) -> str:
    """The domain as the operator would like it."""
    if order == "kernel":
        return xml.replace("<os>", f"<os><kernel>{EXTRA}</kernel>", 1)
    folder = pathlib.Path(re.findall(r"<source file=.([^'\"]+)", xml)[0])
    if order == "config-drive":
        (folder.parent / "disk.config").write_bytes(bytes(1 << 20))
    added = ADDITIONS[order].format(extra=EXTRA, folder=folder.parent)
    return xml.replace("</devices>", added + "</devices>", 1)


def _patch() -> None:
    from nova.virt.libvirt.driver import LibvirtDriver

    honest = LibvirtDriver._get_guest_xml

    @functools.wraps(honest)
    def foul(self: typing.Any, *args: typing.Any, **kw: typing.Any) -> str:
        xml = str(honest(self, *args, **kw))
        if ORDERS.exists():
            if not EXTRA.exists():
                EXTRA.write_bytes(bytes(1 << 20))
            xml = tamper(xml, ORDERS.read_text().strip())
        return xml

    LibvirtDriver._get_guest_xml = foul


if __name__ == "__main__":
    sys.exit(patched.run(_patch))
