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

"""The disk of a Xen guest: opened by ``mh-agent stream``, onto a device.

Xen's toolstack opens no LUKS, so there is no encryption for libvirt to be
told of: dom0 pulls the image through the stream onto a block device whose
own contents are encrypted under a key that dies with dom0 (a plain dm-crypt
mapping), and the guest is given that mapping. nova 34 itself has no Xen any
more (``[libvirt] virt_type``); this is for a driver that still has.

Source: libvirt, formatdomain, "Hard drives"; xl-disk-configuration(5).
"""

import re

from nova.virt.libvirt import config as vconfig

from mh_core.errors import Denied

#: Mappings of device-mapper alone: a bare disk or file would keep the clear.
_MAPPING = re.compile(
    r"/dev/mapper/mh-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)
VIRT_TYPE = "xen"


def disk(mapping: str, target: str = "xvda") -> vconfig.LibvirtConfigGuestDisk:
    """
    :param mapping: ``/dev/mapper/mh-<instance uuid>``.
    :param target: name of the disk in the guest.
    :raises Denied: ``hook.xen.mapping``.
    """
    if not _MAPPING.fullmatch(mapping):
        raise Denied(
            "hook.xen.mapping",
            "an opened image may only lie on a dm-crypt mapping of ours",
        )
    made = vconfig.LibvirtConfigGuestDisk()
    made.source_type = "block"
    made.source_device = "disk"
    made.source_path = mapping
    # not qemu's: nothing in dom0 is to interpret what the guest writes
    made.driver_name = "phy"
    made.driver_format = "raw"
    made.target_dev = target
    made.target_bus = "xen"
    return made
