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

"""A software TPM for each node, with an EK certificate of a private CA.

`start` is a boot: the TPM starts up cleared and the PCRs are extended as
firmware and boot loader would; `reset` is a reboot of the machine.
"""

from __future__ import annotations

import collections.abc
import hashlib
import pathlib
import shutil
import socket
import struct
import subprocess

from tests.minicloud import eventlog
from tests.minicloud.layout import ADDRESS
from tests.minicloud.pids import CloudError, wait_until
from tests.minicloud.process import Supervisor
from tests.minicloud.services import port_open

_SESSIONS = 0x8002
_NO_SESSIONS = 0x8001
_PCR_EXTEND = 0x182
_SHUTDOWN = 0x145
_PASSWORD = 0x40000009
_SHA256 = 0x000B


class Authority:
    """The private CA that signs the EK certificates of the nodes."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    @property
    def certificate(self) -> pathlib.Path:
        """The certificate that signed the EK certificates (PEM)."""
        return self.folder / "issuercert.pem"

    @property
    def root(self) -> pathlib.Path:
        return self.folder / "swtpm-localca-rootca-cert.pem"

    def configure(self) -> pathlib.Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        here = self.folder
        (here / "localca.conf").write_text(
            f"statedir = {here}\nsigningkey = {here}/signkey.pem\n"
            f"issuercert = {here}/issuercert.pem\n"
            f"certserial = {here}/certserial\n"
        )
        (here / "localca.options").write_text(
            "--platform-manufacturer MinicloudPlatform\n"
            "--platform-version 1\n--platform-model node\n"
        )
        path = here / "setup.conf"
        path.write_text(
            "create_certs_tool = /usr/bin/swtpm_localca\n"
            f"create_certs_tool_config = {here}/localca.conf\n"
            f"create_certs_tool_options = {here}/localca.options\n"
            "active_pcr_banks = sha256\n"
        )
        return path


class Tpm:
    """The TPM of one node."""

    def __init__(
        self,
        node: str,
        folder: pathlib.Path,
        port: int,
        authority: Authority,
        log_file: pathlib.Path,
        processes: Supervisor,
        env: collections.abc.Mapping[str, str],
    ) -> None:
        self.node = node
        self.folder = folder
        self.port = port
        self.authority = authority
        self.event_log = log_file
        self.name = f"{node}-swtpm"
        self._processes = processes
        self._env = env
        self.events = eventlog.boot_events(node)

    @property
    def tcti(self) -> str:
        return f"swtpm:host={ADDRESS},port={self.port}"

    @property
    def running(self) -> bool:
        return self._processes.alive(self.name)

    @property
    def ek_certificate(self) -> pathlib.Path:
        """The RSA-2048 EK certificate in DER, as the maker ships it."""
        return self.folder / "ek-rsa2048.crt"

    def manufacture(self) -> None:
        """Make the TPM with its endorsement certificates, once."""
        if (self.folder / "made").exists():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        setup = self.authority.configure()
        log = self._processes.log(f"{self.node}-swtpm-setup")
        with open(log, "ab") as out:
            done = subprocess.run(
                [
                    "swtpm_setup",
                    "--tpm2",
                    "--tpmstate",
                    self.folder,
                    "--config",
                    setup,
                    "--create-ek-cert",
                    "--pcr-banks",
                    "sha256",
                    "--lock-nvram",
                    "--overwrite",
                    "--write-ek-cert-files",
                    self.folder,
                    "--runas",
                    "root",
                ],
                env=dict(self._env),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        if done.returncode:
            raise CloudError(f"swtpm_setup failed; its log is {log}")
        (self.folder / "made").touch()

    def start(self, measure: bool = True) -> None:
        """Power on: start-up cleared, then the measurements of the boot."""
        self.manufacture()
        started = self._processes.start(
            self.name,
            [
                "swtpm",
                "socket",
                "--tpm2",
                "--tpmstate",
                f"dir={self.folder}",
                "--server",
                f"type=tcp,port={self.port},bindaddr={ADDRESS},disconnect",
                "--ctrl",
                f"type=tcp,port={self.port + 1},bindaddr={ADDRESS}",
                "--flags",
                "not-need-init,startup-clear",
            ],
            env=self._env,
            ready=lambda: port_open(self.port + 1),
            timeout=10,
        )
        if started and measure:
            for event in self.events:
                self._extend(event.pcr, event.digest)
            self.event_log.parent.mkdir(parents=True, exist_ok=True)
            self.event_log.write_bytes(eventlog.build(self.events))

    def stop(self, clean: bool = True) -> None:
        """Power off; unclean, as by a power cut, if asked."""
        if clean and self.running:
            self._command(_NO_SESSIONS, _SHUTDOWN, struct.pack(">H", 0))
        self._processes.stop(self.name)

    def reset(self) -> None:
        """Reboot the machine: every PCR begins anew."""
        self.stop()
        self.start()

    def extend(self, pcr: int, data: bytes) -> None:
        """Measure something more, which is in no event log."""
        self._extend(pcr, hashlib.sha256(data).digest())

    def _extend(self, pcr: int, digest: bytes) -> None:
        auth = struct.pack(">IHBH", _PASSWORD, 0, 0, 0)
        self._command(
            _SESSIONS,
            _PCR_EXTEND,
            struct.pack(">II", pcr, len(auth))
            + auth
            + struct.pack(">IH", 1, _SHA256)
            + digest,
        )

    def _command(self, tag: int, code: int, body: bytes) -> bytes:
        """One TPM command on a connection of its own."""
        request = struct.pack(">HII", tag, 10 + len(body), code) + body
        answer = b""

        def done() -> bool:
            # Another user's connection may be open; the TPM serves one.
            nonlocal answer
            try:
                with socket.create_connection(
                    (ADDRESS, self.port), timeout=5
                ) as sock:
                    sock.sendall(request)
                    answer = sock.recv(4096)
            except OSError:
                return False
            return len(answer) >= 10

        wait_until(done, 10, f"answer of the TPM of {self.node}")
        result = struct.unpack(">I", answer[6:10])[0]
        if result:
            raise CloudError(
                f"TPM command {code:#x} on {self.node}: {result:#x}"
            )
        return answer[10:]
