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
"""A guest that moves over TLS, to one key, with its disks; or not at all."""

import time
from typing import Any

import libvirt
import nova.conf
from lxml import etree

from mh_core.errors import Denied
from mh_nova.hook import faults
from mh_nova.hook.agent_migration import Leave

CONF = nova.conf.CONF
TLS = "hook.refused.migration-tls"
#: Without one of these something would cross in the clear, or stay behind.
FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_NON_SHARED_INC
    | libvirt.VIR_MIGRATE_TLS
)


class PinnedDomain:
    """A domain that moves to one TLS key and to no other.

    :param domain: libvirt's.
    :param leave: the agent's.
    """

    def __init__(self, domain: Any, leave: Leave) -> None:
        self._domain = domain
        self._leave = leave

    def __getattr__(self, name: str) -> Any:
        return getattr(self._domain, name)

    def migrateToURI3(  # noqa: N802
        self, uri: str, params: dict[str, Any], flags: int
    ) -> Any:
        """:raises NovaException: ``hook.refused.migration-tls``,
        ``hook.refused.migration-copied``, ``hook.refused.migration-late``.
        """
        if flags & FLAGS != FLAGS or flags & libvirt.VIR_MIGRATE_TUNNELLED:
            raise faults.refusal(
                Denied(TLS, "nova would move it without TLS or its disks")
            )
        if not _right_disks(params):
            raise faults.refusal(
                Denied(
                    "hook.refused.migration-copied",
                    "nova would copy other disks than those of this host",
                )
            )
        if self._leave.expires_at <= time.time():
            raise faults.refusal(
                Denied(
                    "hook.refused.migration-late",
                    "the word about the destination has expired",
                )
            )
        name = libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION
        return self._domain.migrateToURI3(
            uri, {**params, name: self._leave.tls_name}, flags
        )


def _right_disks(params: dict[str, Any]) -> bool:
    """QEMU copies the instance's own disks, all that are written to, and no
    volume: that is the same one at both ends, and would be copied over
    itself.  Volumes are the disks with a serial, see nova's
    ``_update_volume_xml``."""
    xml = params.get(libvirt.VIR_MIGRATE_PARAM_DEST_XML)
    if not xml:
        return False
    root = etree.fromstring(xml)
    own = [
        disk.find("target").get("dev")
        for disk in root.findall("devices/disk")
        if disk.find("readonly") is None and disk.find("serial") is None
    ]
    copied = params.get(libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS) or ()
    return bool(own) and sorted(copied) == sorted(own)


def require_tls() -> None:
    """:raises Denied: ``hook.refused.migration-tls``."""
    if not CONF.libvirt.live_migration_with_native_tls:
        raise Denied(TLS, "[libvirt] live_migration_with_native_tls is not on")


def shared() -> Denied:
    return Denied(
        "hook.refused.migration-shared",
        "it moves with its disks, between hosts that share none",
    )
