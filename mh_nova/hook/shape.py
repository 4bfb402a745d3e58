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

"""What a trusted launch may not ask for, checked before anything is made.

The agent judges the final domain XML anyway; this is the early and readable
answer, while nothing has been downloaded.
"""

from dataclasses import dataclass

from mh_core.errors import Denied


@dataclass(frozen=True)
class LaunchShape:
    """Nova's view of one launch, reduced to what the decision needs.

    :param boot_volume: it is to boot from a volume.
    :param injection: nova-compute is told to open disks for injection.
    :param files: files are to be injected, with no config drive to hold
        them.
    """

    virt_type: str
    image_backed: bool
    boot_volume: bool
    kernel: bool
    injection: bool
    files: bool = False
    shares: int = 0


def check(shape: LaunchShape) -> None:
    """Refuse what would leak from a trusted instance.

    1. only QEMU or KVM reads our disks;
    2. the root disk is the tenant's image, not a volume;
    3. no kernel or ramdisk image;
    4. no file injection, which needs the disk opened on the host, or
       which nova would leave out without a word;
    5. no share of the host.

    :raises Denied: ``hook.launch.`` and one of ``virt-type``, ``volume``,
        ``kernel``, ``injection``, ``files``; ``hook.refused.share``.
    """
    refusals = (
        (
            shape.virt_type not in ("kvm", "qemu"),
            "hook.launch.virt-type",
            "this host's hypervisor cannot open encrypted disks",
        ),
        (
            not shape.image_backed or shape.boot_volume,
            "hook.launch.volume",
            "a trusted instance boots from its image, not from a volume",
        ),
        (
            shape.kernel,
            "hook.launch.kernel",
            "a trusted image boots from its own disk, not from a kernel or "
            "ramdisk image",
        ),
        (
            shape.injection,
            "hook.launch.injection",
            "files cannot be injected into an encrypted disk; set [libvirt] "
            "inject_partition = -2",
        ),
        (
            shape.files,
            "hook.launch.files",
            "files can be injected into a config drive only",
        ),
        (
            shape.shares > 0,
            "hook.refused.share",
            "a host share may not be attached to a trusted instance",
        ),
    )
    for refused, event, message in refusals:
        if refused:
            raise Denied(event, message)
