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
"""What one element of a domain may have; the rows are elsewhere."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

NUMBER = r"[0-9]{1,20}"
NAME = r"[A-Za-z0-9_.:+\-]{1,64}"
CPUS = r"[0-9,^\-]{1,1024}"
SWITCH = r"on|off|yes|no"
EMPTY = ""


@dataclass(frozen=True)
class Rule:
    """What one element may have: attributes, and text."""

    attributes: Mapping[str, str] = field(default_factory=dict)
    text: str = EMPTY

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


def rules(*rows: tuple[str, dict[str, str], str]) -> dict[str, Rule]:
    return {path: Rule(attributes, text) for path, attributes, text in rows}


ADDRESS = {
    "type": r"pci|drive|usb|virtio-serial|ccw|isa",
    "domain": r"0x[0-9a-f]{1,8}",
    "bus": r"(0x)?[0-9a-f]{1,4}",
    "slot": r"0x[0-9a-f]{1,4}",
    "function": r"0x[0-9a-f]",
    "multifunction": SWITCH,
    "controller": NUMBER,
    "target": NUMBER,
    "unit": NUMBER,
    "port": r"[0-9.]{1,16}",
}
ALIAS = {"name": NAME}
BUS = {"iommu": SWITCH, "ats": SWITCH, "packed": SWITCH}
