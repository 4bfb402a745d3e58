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
"""Copying the disk of a running guest, by its own QEMU.

The source's secrets are long gone and are not needed.  The target is an
encrypted file that the agent made, with a secret that is there just until
QEMU has opened it: without ``<encryption>`` the copy would be in the clear,
and libvirt would say nothing.
"""

import threading
from typing import Any, NoReturn

import libvirt
from lxml import etree

from mh_core.errors import Conflict, Denied, Unavailable
from mh_core.secret import Secret
from mh_nova.agent.overlay import secret_uuid
from mh_nova.agent.secrets import Keeper, Libvirt

EVENT = "agent.block-copy"
_POLL = 0.2
_FLAGS = (
    libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
    | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
)
_GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)


def _disks(xml: str) -> list[Any]:
    """:raises Unavailable: ``agent.libvirt``."""
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False
    )
    try:
        return list(etree.fromstring(xml.encode(), parser).iter("disk"))
    except etree.XMLSyntaxError as exc:
        raise Unavailable("agent.libvirt", "not a domain XML") from exc


def _source(disk: Any) -> str:
    source = disk.find("source")
    return "" if source is None else source.get("file") or ""


def _target_xml(path: str, secret: str) -> str:
    disk = etree.Element("disk", type="file")
    etree.SubElement(disk, "driver", name="qemu", type="qcow2")
    source = etree.SubElement(disk, "source", file=path)
    encryption = etree.SubElement(
        source, "encryption", format="luks", engine="qemu"
    )
    etree.SubElement(encryption, "secret", type="passphrase", uuid=secret)
    return str(etree.tostring(disk, encoding="unicode"))


def _failed(error: Exception) -> NoReturn:
    """libvirt's word, as ours; never its text, which may name files."""
    code = getattr(error, "get_error_code", lambda: None)()
    if code in _GONE:
        raise Denied(EVENT + ".gone", "the guest does not run any more")
    raise Denied(EVENT + ".failed", f"libvirt refuses the copy ({code})")


class BlockCopy:
    """
    :param connection: the agent's own.
    """

    def __init__(self, connection: Libvirt, secrets: Keeper) -> None:
        self._libvirt = connection
        self._secrets = secrets

    def _domain(self, instance: str) -> Any:
        """:raises Denied: ``agent.block-copy.gone``.
        :raises Unavailable: ``agent.libvirt``."""
        try:
            return self._libvirt.connection().lookupByUUIDString(instance)
        except libvirt.libvirtError as exc:
            _failed(exc)

    def running(self, instance: str) -> bool:
        """The guest runs, or is paused: QEMU has its disk open.

        :raises Unavailable: ``agent.libvirt``: cannot be told.
        """
        try:
            connection = self._libvirt.connection()
            return bool(connection.lookupByUUIDString(instance).isActive())
        except libvirt.libvirtError as exc:
            if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise Unavailable(
                "agent.libvirt", "libvirt does not answer"
            ) from exc

    def run(
        self,
        instance: str,
        source: str,
        target: str,
        key: Secret,
        cancelled: threading.Event,
    ) -> None:
        """Copy the whole chain, as it reads at one moment at the end.

        1. the guest's disk is the source, opened with our secret;
        2. a copy that a dead agent left is ended;
        3. the target's secret is there until QEMU has opened the target;
        4. once the target has caught up, the job ends, and the guest stays
           on its own disk.

        :param source: path of the instance's disk.
        :param target: path of an empty encrypted image, in the same
            directory.
        :raises Denied: ``agent.block-copy.*``.
        :raises Conflict: ``agent.block-copy.busy``.
        """
        domain = self._domain(instance)
        # 1
        device = self._device(domain, instance, source)
        # 2
        self.abandon(instance, source)
        # 3
        secret = secret_uuid(instance, "snapshot", "overlay")
        lease = instance + "/snapshot"
        self._secrets.define(lease, {secret: key})
        try:
            domain.blockCopy(device, _target_xml(target, secret), {}, _FLAGS)
        except libvirt.libvirtError as exc:
            _failed(exc)
        finally:
            self._secrets.drop(lease)
        # 4
        try:
            while not self._ready(domain, source, target):
                if cancelled.wait(_POLL):
                    raise Denied(EVENT + ".cancelled", "the copy was given up")
        finally:
            ended = self._end(domain, device)
        if not ended:
            raise Denied(EVENT + ".failed", "the copy ended by itself")

    @staticmethod
    def _device(domain: Any, instance: str, source: str) -> str:
        try:
            xml = domain.XMLDesc(0)
        except libvirt.libvirtError as exc:
            _failed(exc)
        wanted = secret_uuid(instance, "disk", "overlay")
        for disk in _disks(xml):
            if _source(disk) != source:
                continue
            used = disk.find("source/encryption/secret")
            target = disk.find("target")
            if used is None or used.get("uuid") != wanted or target is None:
                break
            return str(target.get("dev"))
        raise Denied(
            EVENT + ".disk", "the guest runs on another disk than on record"
        )

    @staticmethod
    def _ready(domain: Any, source: str, target: str) -> bool:
        """The target has caught up.

        :raises Denied: ``agent.block-copy.failed``: no copy is under way.
        """
        try:
            xml = domain.XMLDesc(0)
        except libvirt.libvirtError as exc:
            _failed(exc)
        for disk in _disks(xml):
            mirror = disk.find("mirror")
            if _source(disk) == source and mirror is not None:
                if _source(mirror) != target:
                    raise Conflict(EVENT + ".busy", "another copy is made")
                return bool(mirror.get("ready") == "yes")
        raise Denied(EVENT + ".failed", "the copy broke off, e.g. disk full")

    @staticmethod
    def _end(domain: Any, device: str) -> bool:
        try:
            domain.blockJobAbort(device, 0)
        except libvirt.libvirtError:
            # the guest, or the job, is gone
            return False
        return True

    def abandon(self, instance: str, source: str) -> None:
        """End a copy of this disk that nobody waits for any more."""
        try:
            domain = self._libvirt.connection().lookupByUUIDString(instance)
            xml = domain.XMLDesc(0)
        except libvirt.libvirtError:
            return
        for disk in _disks(xml):
            target = disk.find("target")
            if _source(disk) == source and disk.find("mirror") is not None:
                self._end(domain, target.get("dev"))
