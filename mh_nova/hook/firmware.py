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
"""A guest's firmware and virtual TPM: refused early, with the reason.

The agent's allow-list has neither, so that a start would end there; this is
said before anything is fetched or nova has made a secret for the TPM.
"""

from typing import Any

from nova import exception
from nova.objects import fields
from nova.virt import hardware

from mh_core.errors import Denied


def check(instance: Any) -> None:
    """
    :raises Denied: ``hook.refused.vtpm``: its state would be encrypted
        under a secret of the cloud's key manager, not of the tenant's;
        ``hook.refused.uefi``: its variables would be in the clear.
    """
    image = instance.image_meta
    try:
        vtpm = hardware.get_vtpm_constraint(instance.flavor, image)
    except exception.NovaException:
        # flavor and image disagree: whatever nova makes of it
        vtpm = True
    if vtpm:
        raise Denied(
            "hook.refused.vtpm",
            "a virtual TPM's state would be kept under a key of the cloud's "
            "key manager, not of the tenant's",
        )
    if image.properties.get("hw_firmware_type") == fields.FirmwareType.UEFI:
        raise Denied(
            "hook.refused.uefi",
            "UEFI firmware keeps its variables in the clear on the host; use "
            "an image that boots with BIOS",
        )
