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
"""A guest's firmware and virtual TPM: what cannot be is refused early.

The agent's allow-list decides at the start; this is said before anything is
fetched.
"""

import os
from typing import Any

import nova.conf
from nova import exception
from nova.objects import fields
from nova.virt import hardware

from mh_core.errors import Denied

CONF = nova.conf.CONF


def vtpm(instance: Any, flavor: Any = None) -> Any:
    """nova's description of the virtual TPM that an instance has; None: it
    has none.

    :param flavor: another than its own.
    :raises Denied: ``hook.refused.vtpm``: flavor and image disagree.
    """
    try:
        return hardware.get_vtpm_constraint(
            flavor or instance.flavor, instance.image_meta
        )
    except (exception.NovaException, NotImplementedError) as exc:
        # the latter from nova's own sentence about the image's name
        raise Denied(
            "hook.refused.vtpm",
            "flavor and image do not agree on the virtual TPM",
        ) from exc


def check(instance: Any) -> None:
    """
    :raises Denied: ``hook.refused.vtpm``: a virtual TPM that this host
        cannot have, or of an old version;
        ``hook.refused.uefi``: no firmware for it here;
        ``hook.refused.secure-boot``.
    """
    found = vtpm(instance)
    if found and not CONF.libvirt.swtpm_enabled:
        raise Denied(
            "hook.refused.vtpm",
            "this host has no virtual TPMs: [libvirt] swtpm_enabled",
        )
    if found and found.version != fields.TPMVersion.v2_0:
        raise Denied(
            "hook.refused.vtpm", "the virtual TPM must be of version 2.0"
        )
    if uefi(instance.image_meta):
        _check_uefi(instance)


def uefi(image_meta: Any) -> bool:
    return bool(
        image_meta.properties.get("hw_firmware_type")
        == fields.FirmwareType.UEFI
    )


def _check_uefi(instance: Any) -> None:
    """:raises Denied: as :func:`check`."""
    if not os.path.isfile(CONF.mh.uefi_firmware):
        raise Denied(
            "hook.refused.uefi",
            "this host has no UEFI firmware for trusted guests: [mh] "
            "uefi_firmware",
        )
    try:
        secure = hardware.get_secure_boot_constraint(
            instance.flavor, instance.image_meta
        )
    except (exception.NovaException, NotImplementedError):
        secure = fields.SecureBoot.REQUIRED
    if secure == fields.SecureBoot.REQUIRED:
        raise Denied(
            "hook.refused.secure-boot",
            "Secure Boot has its keys in variables, and a trusted guest's "
            "firmware keeps none",
        )


def check_resize(instance: Any, flavor: Any) -> None:
    """
    :raises Denied: ``hook.migrate.vtpm``: nova would throw the TPM's state
        away, or ask the cloud's key manager about it.
    """
    if vtpm(instance) != vtpm(instance, flavor):
        raise Denied(
            "hook.migrate.vtpm",
            "a resize cannot add, change or remove a virtual TPM",
        )
