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

import os
import resource
import stat
from pathlib import Path
from typing import Any

from mh_core.errors import Denied, MHError
from mh_core.verdict import Event, Findings
from mh_nova.agent import host_conf, verity
from mh_nova.agent.interfaces import Prover
from mh_nova.agent.protect import OFF, REQUIRE
from mh_nova.agent.storage import Kind, Storage, in_memory

EVENT = "agent.guard"
SAVE = "save"
ON, MISSING = "on", "missing"


class Guard:
    """Looks at the host; every finding names what to repair.

    :param root: of the host's file system, for ``/proc``, ``/sys`` and
        ``/etc``.
    """

    def __init__(self, conf: Any, prover: Prover, root: str = "/") -> None:
        self._conf = conf.agent
        self._prover = prover
        self._root = Path(root)
        self._storage = Storage(root)

    def findings(self) -> tuple[Event, ...]:
        """1 tmpfs, 2 what is kept beside it, 3 swap, 4 core dumps,
        5 automatic dumps and saves, 6 libvirt-guests, 7 TLS of live
        migration, 8 TPM, 9 enrolment, 10 state directory, 11 fs-verity."""
        found = Findings()
        self._tmpfs(found)
        self._swap(found)
        self._qemu(found)
        self._libvirt_guests(found)
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
        if self._conf.fs_verity == REQUIRE and self.fs_verity != ON:
            found.add(
                EVENT + ".verity",
                "kernel or file system of instances_path has no fs-verity",
            )
        return tuple(found.events)

    @property
    def enrolled(self) -> bool:
        return self._prover.ak_certificate is not None

    @property
    def fs_verity(self) -> str:
        """Of bases: ``on``, ``off``, or ``missing`` on this host."""
        if self._conf.fs_verity == OFF:
            return OFF
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            fd = os.open(self._conf.instances_path, flags)
        except OSError:
            return MISSING
        try:
            return ON if verity.available(fd) else MISSING
        finally:
            os.close(fd)

    def require(self) -> None:
        """:raises Denied: with the first finding's event id."""
        found = self.findings()
        if found:
            raise Denied(found[0].id, found[0].detail)

    @property
    def save_dir(self) -> str:
        """Where libvirt writes the memory of suspended guests."""
        return os.path.join(self._conf.libvirt_domain_dir, SAVE)

    def kind(self, path: str) -> Kind:
        """Of what is written there; a path that is not there is clear."""
        try:
            return self._storage.kind(path)
        except OSError:
            return Kind.CLEAR

    def _tmpfs(self, found: Findings) -> None:
        """1, 2"""
        path = self._conf.libvirt_domain_dir
        if not self._conf.require_tmpfs:
            return
        try:
            memory = in_memory(path)
        except OSError:
            memory = False
        if not memory:
            found.add(
                EVENT + ".tmpfs",
                f"{path} is not on tmpfs: libvirt's master keys would be "
                "on a disk",
            )
            return
        for name in self._conf.libvirt_kept:
            try:
                lost = in_memory(os.path.join(path, name))
            except OSError:
                lost = True
            if lost:
                found.add(
                    EVENT + ".kept",
                    f"{path}/{name} is not bound back to persistent "
                    "storage: plain guests would lose it at a reboot",
                )

    def _swap(self, found: Findings) -> None:
        """3"""
        if not self._conf.require_safe_swap:
            return
        try:
            swaps = self._storage.open_swaps()
        except OSError:
            swaps = ["the kernel's list"]
        for name in swaps:
            shown = name[:80].encode("ascii", "replace").decode()
            found.add(
                EVENT + ".swap",
                f"{shown} is neither dm-crypt nor zram: guests' memory "
                "and keys would be on a disk",
            )

    def _qemu(self, found: Findings) -> None:
        """4, 5, 7"""
        soft, _hard = resource.getrlimit(resource.RLIMIT_CORE)
        if soft:
            found.add(EVENT + ".core", "the agent could leave a core file")
        self._core_pattern(found)
        try:
            text = Path(self._conf.qemu_conf).read_text()
        except (OSError, UnicodeError):
            found.add(EVENT + ".core", "qemu.conf cannot be read")
            return
        # libvirt's default of each is 0
        for name in ("max_core", "dump_guest_core"):
            if host_conf.qemu(text, name) - {"0"}:
                found.add(EVENT + ".core", f"qemu.conf: {name} is not 0")
        for path in host_conf.qemu(text, "auto_dump_path"):
            if not self.kind(path).safe:
                found.add(
                    EVENT + ".dump",
                    "qemu.conf: auto_dump_path is in the clear",
                )
        saved = host_conf.qemu(text, "auto_shutdown_try_save") - {"none"}
        if saved and not self.kind(self.save_dir).safe:
            found.add(
                EVENT + ".dump",
                "qemu.conf: auto_shutdown_try_save would write guests' "
                "memory in the clear",
            )
        if self._conf.live_migration:
            self._migration(text, found)

    def _core_pattern(self, found: Findings) -> None:
        """A limit of 0 does not hold back a program that is piped to;
        systemd's looks at the limit itself."""
        try:
            path = self._root / "proc/sys/kernel/core_pattern"
            pattern = path.read_text().strip()
        except (OSError, UnicodeError):
            found.add(EVENT + ".core", "core_pattern cannot be read")
            return
        program = pattern.removeprefix("|").split(" ")[0]
        if pattern.startswith("|") and not (
            program.endswith("/systemd-coredump") and " %c" in pattern
        ):
            found.add(
                EVENT + ".core",
                "core_pattern pipes core dumps to a program, whatever the "
                "limit is",
            )

    def _migration(self, text: str, found: Findings) -> None:
        for name in ("migrate_tls_force", "migrate_tls_x509_verify"):
            if host_conf.qemu(text, name) != {"1"}:
                found.add(
                    EVENT + ".migration-tls",
                    f"qemu.conf: {name} must be 1 for live migration",
                )
        folders = host_conf.qemu(text, "migrate_tls_x509_cert_dir")
        if not folders or any(
            self.kind(path) is not Kind.MEMORY for path in folders
        ):
            found.add(
                EVENT + ".migration-tls",
                "qemu.conf: migrate_tls_x509_cert_dir must be on tmpfs",
            )

    def _libvirt_guests(self, found: Findings) -> None:
        """6"""
        service = host_conf.LibvirtGuests(self._root)
        try:
            if not service.enabled():
                return
            saves = service.on_shutdown() != {"shutdown"}
        except OSError:
            saves = True
        if saves and not self.kind(self.save_dir).safe:
            found.add(
                EVENT + ".libvirt-guests",
                "libvirt-guests would save guests' memory in the clear: set "
                "ON_SHUTDOWN=shutdown",
            )

    def _state(self, found: Findings) -> None:
        """10"""
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
