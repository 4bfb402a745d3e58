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
"""From nova's objects to the shape of a launch, which is then judged."""

from typing import Any

import nova.conf
from nova.virt import configdrive
from nova.virt import driver as virt_driver

from mh_core.errors import Denied
from mh_nova.hook import firmware, shape

CONF = nova.conf.CONF
VOLUME = "hook.volume"


def check(
    instance: Any,
    block_device_info: Any,
    share_info: Any = None,
    files: Any = None,
) -> None:
    """
    :param files: to be injected.
    :raises Denied: as ``firmware.check`` and ``shape.check``.
    """
    firmware.check(instance)
    volumes = virt_driver.block_device_info_get_mapping(block_device_info)
    shape.check(
        shape.LaunchShape(
            virt_type=CONF.libvirt.virt_type,
            image_backed=bool(instance.image_ref),
            boot_volume=any(
                volume.get("boot_index") == 0 for volume in volumes
            ),
            kernel=bool(instance.kernel_id or instance.ramdisk_id),
            injection=CONF.libvirt.inject_partition != -2,
            files=bool(files) and not configdrive.required_by(instance),
            shares=len(share_info or ()),
        )
    )


def check_volumes(block_device_info: Any) -> None:
    """
    :raises Denied: as :func:`check_volume`.
    """
    for one in virt_driver.block_device_info_get_mapping(block_device_info):
        check_volume(one["connection_info"], None)


def check_volume(connection_info: Any, encryption: Any) -> None:
    """
    :param encryption: what the cloud would encrypt it with, if anything.
    :raises Denied: ``hook.volume.encrypted``, ``hook.volume.shared``.
    """
    data = connection_info.get("data") or {}
    if encryption or data.get("encrypted"):
        raise Denied(
            VOLUME + ".encrypted",
            "the cloud encrypts this volume by itself, under a key of its "
            "own; attach one of a type without encryption",
        )
    if connection_info.get("multiattach"):
        raise Denied(
            VOLUME + ".shared", "a volume for several servers at once"
        )
