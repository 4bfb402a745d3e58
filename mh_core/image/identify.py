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

"""Which format an image claims to be, by its magic bytes.

A first look only: every claim is then parsed strictly, and "raw" means no
more than that no known magic was found. A fixed-size VHD, whose only mark is
at its end, is "raw" here.

Sources: QEMU block drivers (qcow2, qed, vdi, vmdk, vpc, vhdx), LUKS On-Disk
Format Specification 1.2.3, ECMA-119 section 8.1 (volume descriptors).
"""

HEAD_SIZE = 0x8001 + 5
"""Bytes of the start of a file that are enough for :func:`kind`."""

_MAGIC = (
    ("qcow2", 0, b"QFI\xfb"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vhdx", 0, b"vhdxfile"),
    ("vhd", 0, b"conectix"),
    ("qed", 0, b"QED\0"),
    ("vdi", 0x40, b"\x7f\x10\xda\xbe"),
    ("iso", 0x8001, b"CD001"),
)


def kind(head: bytes) -> str:
    """Name the format.

    :param head: the first bytes of the file, ``HEAD_SIZE`` or all of them.
    :returns: qcow2 (any version), luks (any version), vmdk, vdi, vhd, vhdx,
        iso, qed or raw.
    """
    for name, offset, magic in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    return "raw"
