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
"""The deployment guard: may this host carry trusted launches at all?"""

import ctypes
import os
import re
import resource
import stat
from pathlib import Path
from typing import Any

from mh_core.errors import Denied, MHError
from mh_core.verdict import Event, Findings
from mh_nova.agent.interfaces import Prover

EVENT = "agent.guard"
#: statfs(2), f_type.
_IN_MEMORY = (0x01021994, 0x858458F6)  # tmpfs, ramfs
# libvirt takes both kinds of quotes, and ';' between settings
_MAX_CORE = re.compile(r"^[^#\n]*?\bmax_core[ \t]*=[ \t]*([^\s;#]*)", re.M)


def file_system(path: str) -> int:
    """f_type of the file system a path is on.

    :raises OSError: the path is not there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # struct statfs starts with __fsword_t f_type; 256 bytes hold it whole.
    buffer = ctypes.create_string_buffer(256)
    if libc.statfs(os.fsencode(path), buffer):
        raise OSError(ctypes.get_errno(), "statfs", path)
    size = ctypes.sizeof(ctypes.c_long)
    kind = int.from_bytes(buffer.raw[:size], "little", signed=False)
    return kind & 0xFFFFFFFF


class Guard:
    """Looks at the host; every finding names what to repair."""

    def __init__(self, conf: Any, prover: Prover) -> None:
        self._conf = conf.agent
        self._prover = prover

    def findings(self) -> tuple[Event, ...]:
        """1 tmpfs, 2 core dumps, 3 TPM, 4 enrolment, 5 state directory."""
        found = Findings()
        self._tmpfs(found)
        self._cores(found)
        try:
            self._prover.check()
        except MHError as exc:
            found.add(EVENT + ".tpm", f"the TPM does not answer: {exc.event}")
        if not self.enrolled:
            found.add(
                EVENT + ".enrolled",
                "no AK certificate yet: openstack trusted host enrol",
            )
        self._state(found)
        return tuple(found.events)

    @property
    def enrolled(self) -> bool:
        return self._prover.ak_certificate is not None

    def require(self) -> None:
        """:raises Denied: with the first finding's event id."""
        found = self.findings()
        if found:
            raise Denied(found[0].id, found[0].detail)

    def _tmpfs(self, found: Findings) -> None:
        path = self._conf.libvirt_domain_dir
        if not self._conf.require_tmpfs:
            return
        try:
            kind = file_system(path)
        except OSError:
            kind = 0
        if kind not in _IN_MEMORY:
            found.add(
                EVENT + ".tmpfs",
                f"{path} is not on tmpfs: libvirt's master keys would be "
                "on a disk",
            )

    def _cores(self, found: Findings) -> None:
        soft, _hard = resource.getrlimit(resource.RLIMIT_CORE)
        if soft:
            found.add(EVENT + ".core", "the agent could leave a core file")
        try:
            text = Path(self._conf.qemu_conf).read_text()
        except (OSError, UnicodeError):
            found.add(EVENT + ".core", "qemu.conf cannot be read")
            return
        # libvirt's default is 0.
        values = {match[1] for match in _MAX_CORE.finditer(text)}
        if values - {"0"}:
            found.add(EVENT + ".core", "qemu.conf: max_core is not 0")

    def _state(self, found: Findings) -> None:
        try:
            status = os.stat(self._conf.state_dir)
        except OSError:
            found.add(EVENT + ".state", "the state directory is not there")
            return
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & (
            stat.S_IRWXG | stat.S_IRWXO
        ):
            found.add(
                EVENT + ".state", "the state directory must be ours, 0700"
            )
