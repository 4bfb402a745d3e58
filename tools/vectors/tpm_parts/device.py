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

"""A software TPM of its own, and tpm2-tools to talk to it."""

import os
import pathlib
import socket
import struct
import subprocess
import time
from types import TracebackType


class Tpm:
    """An swtpm on two loopback ports, with its state in a directory.

    EK certificates come from a CA made for the occasion. There is no
    resource manager: after each command the transient objects and the
    sessions are flushed, unless `keep` says otherwise.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.authority = directory / "ca"
        self.commands: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = dict(os.environ)
        self._control = ""

    def __enter__(self) -> "Tpm":
        self._manufacture()
        self._start("not-need-init,startup-clear")
        return self

    def _start(self, flags: str) -> None:
        port = _free_pair()
        self._process = subprocess.Popen(
            [
                "swtpm",
                "socket",
                "--tpm2",
                "--tpmstate",
                f"dir={self.state}",
                "--server",
                f"type=tcp,port={port},bindaddr=127.0.0.1,disconnect",
                "--ctrl",
                f"type=tcp,port={port + 1},bindaddr=127.0.0.1",
                "--flags",
                flags,
            ]
        )
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port + 1)).close()
                break
            except OSError:
                time.sleep(0.02)
        self._control = f"127.0.0.1:{port + 1}"
        self._environment["TPM2TOOLS_TCTI"] = (
            f"swtpm:host=127.0.0.1,port={port}"
        )

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=10)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _manufacture(self) -> None:
        ca = self.authority
        for path in (self.state, ca):
            path.mkdir(parents=True)
        (ca / "setup.conf").write_text(
            "create_certs_tool = /usr/bin/swtpm_localca\n"
            f"create_certs_tool_config = {ca}/localca.conf\n"
            f"create_certs_tool_options = {ca}/localca.options\n"
            "active_pcr_banks = sha1,sha256\n"
        )
        (ca / "localca.conf").write_text(
            f"statedir = {ca}\nsigningkey = {ca}/signkey.pem\n"
            f"issuercert = {ca}/issuercert.pem\n"
            f"certserial = {ca}/certserial\n"
        )
        (ca / "localca.options").write_text(
            "--platform-manufacturer MH\n--platform-version 1\n"
            "--platform-model test\n"
        )
        subprocess.run(
            [
                "swtpm_setup",
                "--tpm2",
                "--tpmstate",
                self.state,
                "--config",
                ca / "setup.conf",
                "--create-ek-cert",
                "--pcr-banks",
                "sha1,sha256",
                "--write-ek-cert-files",
                self.state,
                "--logfile",
                self.state / "setup.log",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def run(
        self, tool: str, *arguments: str, keep: bool = False, data: bytes = b""
    ) -> bytes:
        """Run a tool in the directory; return what it prints."""
        self.commands.append(" ".join((tool, *arguments)))
        done = subprocess.run(
            [tool, *arguments],
            cwd=self.directory,
            env=self._environment,
            input=data,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(
                f"{tool} {' '.join(arguments)}:\n{done.stderr.decode()}"
            )
        if not keep:
            self.flush()
        return done.stdout

    def flush(self) -> None:
        """Forget every transient object and loaded session."""
        for option in ("-t", "-l"):
            subprocess.run(
                ["tpm2_flushcontext", option],
                cwd=self.directory,
                env=self._environment,
                capture_output=True,
                check=True,
            )

    def restart(self, locality: int) -> None:
        """Reset the TPM and start it up from a locality."""
        self._stop()
        self._start("not-need-init")
        subprocess.run(
            ["swtpm_ioctl", "--tcp", self._control, "-l", str(locality)],
            check=True,
        )
        # Not with tpm2_startup: its TCTI sets locality 0 first.
        host, _, port = self._control.partition(":")
        with socket.create_connection((host, int(port) - 1)) as data:
            data.sendall(struct.pack(">HIIH", 0x8001, 12, 0x144, 0))
            if data.recv(10)[-4:] != bytes(4):
                raise SystemExit("TPM2_Startup failed")

    def read(self, name: str) -> bytes:
        """Return a file's contents."""
        return (self.directory / name).read_bytes()

    def write(self, name: str, content: bytes) -> str:
        """Write a file; return its name."""
        (self.directory / name).write_bytes(content)
        return name

    def last(self, count: int = 1) -> str:
        """Return the last commands run, for a vector's record."""
        return "; ".join(self.commands[-count:])


def _free_pair() -> int:
    """Return P where P and P + 1 are free: the TCTI wants them so."""
    for port in range(24700, 25700, 2):
        try:
            for candidate in (port, port + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", candidate))
        except OSError:
            continue
        return port
    raise SystemExit("no free pair of ports")
