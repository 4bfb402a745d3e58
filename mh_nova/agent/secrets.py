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
"""libvirt secrets: there just for the start of a guest, and swept.

Defined ephemeral and private over the agent's own connection, so libvirt
neither writes them to disk nor gives them back.  They are taken out again
after the start, when the lease ends, when the agent ends, and when it
begins: whatever has our usage prefix is ours to remove.
"""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

import libvirt

from mh_core.errors import Unavailable
from mh_core.image import luks1
from mh_core.secret import Secret

LOG = logging.getLogger(__name__)
EVENT = "agent.secrets"
PREFIX = "mh-"
_XML = (
    "<secret ephemeral='yes' private='yes'><uuid>{uuid}</uuid>"
    "<usage type='{usage}'><{member}>{prefix}{uuid}</{member}></usage>"
    "</secret>"
)
#: What libvirt uses a secret for: its name of it, and the member for ours.
_DISK, _TPM = ("volume", "volume"), ("vtpm", "name")


class Libvirt:
    """The agent's connection, opened when needed and after a break."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._connection: Any = None
        # the library prints each error to standard error otherwise
        libvirt.registerErrorHandler(lambda _context, _error: None, None)

    def connection(self) -> Any:
        """:raises Unavailable: ``agent.libvirt``."""
        with self._lock:
            if self._connection is not None:
                try:
                    # asks the daemon: isAlive() does not notice a restart
                    self._connection.getLibVersion()
                except libvirt.libvirtError:
                    self._connection = None
                else:
                    return self._connection
            try:
                self._connection = libvirt.open(self._uri)
            except libvirt.libvirtError as exc:
                raise Unavailable(
                    "agent.libvirt", "libvirt does not answer"
                ) from exc
            return self._connection

    def domain_xml(self, instance: str) -> str | None:
        """XML of an instance's domain; None if libvirt has none.

        :raises Unavailable: ``agent.libvirt``.
        """
        try:
            domain = self.connection().lookupByUUIDString(instance)
            return str(domain.XMLDesc(0))
        except libvirt.libvirtError as exc:
            if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise Unavailable(
                "agent.libvirt", "libvirt does not answer"
            ) from exc

    def saved_xml(self, instance: str) -> str | None:
        """XML in an instance's saved memory; None if there is no such
        domain, or none saved of it.

        :raises Unavailable: ``agent.libvirt``.
        """
        try:
            domain = self.connection().lookupByUUIDString(instance)
            if not domain.hasManagedSaveImage(0):
                return None
            return str(domain.managedSaveGetXMLDesc(0))
        except libvirt.libvirtError as exc:
            if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise Unavailable(
                "agent.libvirt", "libvirt does not answer"
            ) from exc


class Keeper(Protocol):
    """What :class:`mh_nova.agent.launch.Launcher` needs of this module."""

    def define(
        self, instance: str, keys: Mapping[str, Secret], tpm: str = ""
    ) -> None: ...

    def drop(self, instance: str) -> None: ...

    def sweep(self) -> None: ...


class Secrets:
    """
    :param lease: seconds a secret lives at the longest.
    """

    def __init__(self, connection: Libvirt, lease: int) -> None:
        self._libvirt = connection
        self._lease = lease
        self._lock = threading.Lock()
        self._defined: dict[str, tuple[float, set[str]]] = {}
        self._wake = threading.Condition(self._lock)
        self._stopped = False
        self._thread = threading.Thread(
            target=self._run, name="secret-lease", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End; every secret of ours is taken out."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()
        self.sweep()

    def define(
        self, instance: str, keys: Mapping[str, Secret], tpm: str = ""
    ) -> None:
        """Put an instance's keys into libvirt, all or none.

        :param keys: secret uuid to disk key (32 bytes).
        :param tpm: the one of them for a virtual TPM's state, if any.
        :raises Unavailable: ``agent.secrets.define``.
        """
        with self._wake:
            if self._stopped:
                raise Unavailable(EVENT + ".define", "the agent is ending")
            _, known = self._defined.get(instance, (0.0, set()))
            self._defined[instance] = (
                time.monotonic() + self._lease,
                known | set(keys),
            )
            self._wake.notify_all()
        try:
            connection = self._libvirt.connection()
            for name, key in keys.items():
                usage, member = _TPM if name == tpm else _DISK
                xml = _XML.format(
                    uuid=name, prefix=PREFIX, usage=usage, member=member
                )
                secret = connection.secretDefineXML(xml, 0)
                secret.setValue(luks1.passphrase(key.reveal()), 0)
        except (libvirt.libvirtError, Unavailable) as exc:
            self.drop(instance)
            raise Unavailable(
                EVENT + ".define", "libvirt does not take the secrets"
            ) from exc
        if self._stopped:
            # the last sweep may have been over by then
            self.sweep()
            raise Unavailable(EVENT + ".define", "the agent is ending")

    def drop(self, instance: str) -> None:
        """Take an instance's secrets out; what fails is tried again."""
        with self._lock:
            entry = self._defined.get(instance, (0.0, set()))
            names = set(entry[1])
        left = {name for name in names if not self._undefine(name)}
        with self._wake:
            if self._defined.get(instance, entry) is not entry:
                # defined again meanwhile: that has a lease of its own
                return
            if left:
                self._defined[instance] = (time.monotonic() + 1, left)
                self._wake.notify_all()
            else:
                self._defined.pop(instance, None)

    def _undefine(self, name: str) -> bool:
        try:
            connection = self._libvirt.connection()
            try:
                connection.secretLookupByUUIDString(name).undefine()
            except libvirt.libvirtError as exc:
                if exc.get_error_code() != libvirt.VIR_ERR_NO_SECRET:
                    raise
        except (libvirt.libvirtError, Unavailable):
            LOG.warning("%s.undefine: a secret is still in libvirt", EVENT)
            return False
        return True

    def sweep(self) -> None:
        """Remove every secret with our prefix, whoever left it."""
        with self._lock:
            self._defined.clear()
        try:
            for secret in self._libvirt.connection().listAllSecrets(0):
                if str(secret.usageID()).startswith(PREFIX):
                    # one that fails leaves none of the others
                    self._undefine(secret.UUIDString())
        except (libvirt.libvirtError, Unavailable):
            # without libvirt there are no ephemeral secrets either
            LOG.warning("%s.sweep: libvirt does not answer", EVENT)

    def _run(self) -> None:
        while True:
            with self._wake:
                if self._stopped:
                    return
                now = time.monotonic()
                ends = [end for end, _ in self._defined.values()]
                if not ends or min(ends) > now:
                    self._wake.wait(min(ends) - now if ends else None)
                    continue
                due = [
                    name
                    for name, (end, _) in self._defined.items()
                    if end <= now
                ]
            for instance in due:
                LOG.warning("%s.lease: %s: lease ended", EVENT, instance)
                self.drop(instance)
