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
"""The guests that run here: which, and the end of one.

Through libvirt; where that does not answer in time, by the process itself:
a lease must not last longer because a daemon hangs.
"""

import os
import signal
from pathlib import Path

import libvirt

from mh_core.errors import Unavailable
from mh_nova.agent.secrets import Libvirt

EVENT = "agent.guests"
_MAX_PID = 20


class Guests:
    """
    :param run_dir: where libvirt keeps the pid files of its guests.
    """

    def __init__(self, connection: Libvirt, run_dir: str) -> None:
        self._libvirt = connection
        self._run = Path(run_dir)

    def running(self) -> frozenset[str]:
        """Uuids of the active domains.

        :raises Unavailable: ``agent.libvirt``.
        """
        try:
            found = self._libvirt.connection().listAllDomains(
                libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
            )
            return frozenset(str(one.UUIDString()) for one in found)
        except libvirt.libvirtError as exc:
            raise Unavailable(
                "agent.libvirt", "libvirt does not answer"
            ) from exc

    def stop(self, instance: str) -> bool:
        """End a guest at once; whether one ran.

        :raises Unavailable: ``agent.libvirt``: it may still run.
        """
        try:
            domain = self._libvirt.connection().lookupByUUIDString(instance)
            if not domain.isActive():
                return False
            domain.destroy()
        except libvirt.libvirtError as exc:
            if exc.get_error_code() in (
                libvirt.VIR_ERR_NO_DOMAIN,
                # it ended by itself meanwhile
                libvirt.VIR_ERR_OPERATION_INVALID,
            ):
                return False
            raise Unavailable(
                "agent.libvirt", "libvirt does not stop the guest"
            ) from exc
        return True

    def kill(self, instance: str) -> bool:
        """End the guest's process; whether there was one.

        Known by libvirt's pid file and by the uuid in its own arguments,
        read again once the process is held by a descriptor.
        """
        killed = False
        for path in self._run.glob("*.pid"):
            pid = _pid(path)
            if pid is None or not _is_guest(pid, instance):
                continue
            try:
                fd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if _is_guest(pid, instance):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    killed = True
            except ProcessLookupError:
                pass
            finally:
                os.close(fd)
        return killed


def _pid(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_PID).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) > 1 else None


def _is_guest(pid: int, instance: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    pairs = zip(words, words[1:], strict=False)
    return (b"-uuid", instance.encode()) in pairs
