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
"""The OVF envelope: which disk is it, and under which key?

As in the seed's figure 8-3: the ``<File>`` of an encrypted disk has
``encrypted="true"`` and ``dekHref="<key URL>"``.

Source: DMTF DSP0243, section 7 (envelope), 7.1 (file references).
"""

from dataclasses import dataclass
from typing import Any

from lxml import etree

from mh_core.errors import InputError
from mh_core.fields import Fields
from mh_core.image.ova import MAX_TEXT
from mh_core.manifest import FILE_NAME

EVENT = "agent.unpack.envelope"
_NAMESPACES = (
    "http://schemas.dmtf.org/ovf/envelope/1",
    "http://schemas.dmtf.org/ovf/envelope/2",
)


@dataclass(frozen=True)
class EncryptedFile:
    """
    :param href: name of the disk's file.
    :param size: bytes, or None where the envelope does not say.
    :param key_url: value of ``dekHref``, not checked.
    """

    href: str
    size: int | None
    key_url: str


def _attributes(node: Any, space: str) -> dict[str, str]:
    """By local name; both ``ovf:href`` and ``href`` occur in the wild."""
    found: dict[str, str] = {}
    for name, value in node.attrib.items():
        local = name.removeprefix("{" + space + "}")
        if local in found:
            raise InputError(EVENT, "an attribute of a file is there twice")
        found[local] = value
    return found


def _root(data: bytes) -> Any:
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
    )
    if len(data) > MAX_TEXT:
        raise InputError(EVENT, "the envelope is too large")
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError):
        raise InputError(EVENT, "the envelope is not XML") from None
    if root.getroottree().docinfo.doctype:
        raise InputError(EVENT, "the envelope has a DTD")
    return root


def read(data: bytes) -> EncryptedFile:
    """The one file that the envelope references, which must be encrypted.

    :raises InputError: ``agent.unpack.envelope``.
    """
    root = _root(data)
    spaces = [
        space for space in _NAMESPACES if root.tag == "{" + space + "}Envelope"
    ]
    if not spaces:
        raise InputError(EVENT, "not an OVF envelope")
    tag = "{" + spaces[0] + "}"
    # anywhere: a second <References> would be read by somebody else
    files = list(root.iter(tag + "File"))
    if len(files) != 1 or files != root.findall(f"{tag}References/{tag}File"):
        raise InputError(EVENT, "exactly one file is expected")
    attributes = _attributes(files[0], spaces[0])
    fields = Fields(
        {name: str(value) for name, value in attributes.items()}, EVENT
    )
    fields.text("id", maximum=255)
    href = fields.text("href", pattern=FILE_NAME)
    size = fields.text("size", pattern=r"[0-9]{1,15}", default="")
    encrypted = fields.text("encrypted", default="")
    key_url = fields.text("dekHref", maximum=2048, default="")
    if encrypted != "true" or not key_url:
        raise InputError(EVENT, "a disk in the envelope is not encrypted")
    fields.end()
    return EncryptedFile(href, int(size) if size else None, key_url)
