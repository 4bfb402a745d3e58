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
"""The config drive, which nova would write into a file in the clear."""

import os
from typing import Any

from nova.api.metadata import base as instance_metadata
from nova.virt import configdrive
from nova.virt.libvirt import utils as libvirt_utils
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_log import log as logging

from mh_nova.hook import disks
from mh_nova.hook.base import TrustedDriver

LOG = logging.getLogger(__name__)


class ConfigDrive(LibvirtDriver, TrustedDriver):
    """Handed to the agent file by file, in memory."""

    def _create_configdrive(
        self,
        context: Any,
        instance: Any,
        injection_info: Any,
        rescue: bool = False,
    ) -> None:
        """As nova's own, but for the drive itself.

        nova's builder writes the files and an image of them below
        ``[DEFAULT] tempdir`` and the instance's directory; here neither is
        ever on a file system, and the agent decides what the drive holds.

        :raises MHError: the agent's.
        """
        if not self._mh_decide(instance):
            super()._create_configdrive(
                context, instance, injection_info, rescue=rescue
            )
            return
        instance.device_metadata = self._build_device_metadata(
            context, instance
        )
        if not configdrive.required_by(instance):
            return
        name = disks.CONFIG + (".rescue" if rescue else "")
        directory = libvirt_utils.get_instance_path(instance)
        if os.path.exists(os.path.join(directory, name)):
            # as nova: a config drive stays what it was at the launch
            return
        more = {}
        if injection_info.admin_pass:
            more["admin_pass"] = injection_info.admin_pass
        metadata = instance_metadata.InstanceMetadata(
            instance,
            content=injection_info.files,
            extra_md=more,
            network_info=injection_info.network_info,
        )
        LOG.info("Encrypted config drive %s", name, instance=instance)
        self._mh_drive(instance, name, _files(metadata))


def _files(metadata: Any) -> dict[str, bytes]:
    return {
        path: data.encode() if isinstance(data, str) else data
        for path, data in metadata.metadata_for_config_drive()
    }
