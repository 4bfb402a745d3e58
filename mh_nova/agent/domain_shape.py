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
"""Elements of a domain, to be compared with what they must be."""

from typing import Any

NO_STORE: Any = ("backingStore", [], "", [])


def shape(node: Any) -> Any:
    """A comparable copy: tag, attributes, text, children in order."""
    return (
        node.tag,
        sorted(node.attrib.items()),
        (node.text or "").strip(),
        [shape(child) for child in node],
    )


def encryption(secret: str) -> Any:
    """LUKS by QEMU, opened with this secret and nothing else."""
    return (
        "encryption",
        [("engine", "qemu"), ("format", "luks")],
        "",
        [("secret", [("type", "passphrase"), ("uuid", secret)], "", [])],
    )
