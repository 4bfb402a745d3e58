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

    :param swap: MiB of swap disk.
    :param ephemeral: GiB, or number, of ephemeral disks.
    """

    virt_type: str
    image_backed: bool
    volumes: int
    config_drive: bool
    kernel: bool
    swap: int
    ephemeral: int
    injection: bool
    shares: int = 0


def check(shape: LaunchShape) -> None:
    """Refuse what would leak from a trusted instance.

    1. only QEMU or KVM reads our disks;
    2. the root disk is the tenant's image, and there is no volume;
    3. no kernel or ramdisk image;
    4. no config drive, written in the clear;
    5. no swap and no ephemeral disk, written in the clear;
    6. no file injection, which needs the disk opened on the host.

    :raises Denied: ``hook.launch.`` and one of ``virt-type``, ``volume``,
        ``kernel``, ``injection``; ``hook.refused.`` and one of
        ``config-drive``, ``swap``, ``ephemeral``, ``share``.
    """
    refusals = (
        (
            shape.virt_type not in ("kvm", "qemu"),
            "hook.launch.virt-type",
            "this host's hypervisor cannot open encrypted disks",
        ),
        (
            not shape.image_backed or shape.volumes > 0,
            "hook.launch.volume",
            "a trusted instance boots from its image and has no volumes",
        ),
        (
            shape.kernel,
            "hook.launch.kernel",
            "a trusted image boots from its own disk, not from a kernel or "
            "ramdisk image",
        ),
        (
            shape.config_drive,
            "hook.refused.config-drive",
            "a config drive would be written in the clear; use the metadata "
            "service",
        ),
        (
            shape.swap > 0,
            "hook.refused.swap",
            "a swap disk would be written in the clear; use a flavor "
            "without swap",
        ),
        (
            shape.ephemeral > 0,
            "hook.refused.ephemeral",
            "an ephemeral disk would be written in the clear; use a flavor "
            "without one",
        ),
        (
            shape.injection,
            "hook.launch.injection",
            "files cannot be injected into an encrypted disk; set [libvirt] "
            "inject_partition = -2",
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
