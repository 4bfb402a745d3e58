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

"""mh-kms-serve as a process of its own, on TLS and a free port."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import requests

from tests.functional.mh_kms.authority import token_file
from tests.functional.mh_kms.tls import Ca


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class KmsServer:
    """:param authority: origin of the attestation authority."""

    def __init__(self, folder: pathlib.Path, ca: Ca, authority: str) -> None:
        self.folder, self.ca = folder, ca
        self.port = free_port()
        self.origin = f"https://127.0.0.1:{self.port}"
        certificate, key = ca.leaf("kms")
        self.config = folder / "mh-kms.conf"
        self.config.write_text(
            f"""
[DEFAULT]
debug = true
use_stderr = true
[kms]
origin = {self.origin}
[database]
connection = sqlite:///{folder}/kms.sqlite
[software_key_store]
kek_file = {folder}/kek
[authority]
ca_file = {ca.file}
timeout = 10
tokens = {authority}={token_file(folder)}
[server]
bind_port = {self.port}
certificate_file = {certificate}
key_file = {key}
threads = 4
"""
        )
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, module: str, *argv: str) -> list[str]:
        name = f"mh_kms.cmd.{module}"
        head = [sys.executable, "-m", name, "--config-file"]
        return [*head, str(self.config), *argv]

    def manage(self, *argv: str) -> str:
        done = subprocess.run(
            self.command("manage", *argv),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command("serve"), stdout=log, stderr=log
            )
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                if self.call("GET", "/healthcheck").status_code == 200:
                    return
            except requests.ConnectionError:
                assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def children(self) -> list[int]:
        """Processes whose parent is the server."""
        assert self.process is not None
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid and fields[0] != "Z":
                found.append(int(path.parent.name))
        return found

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(20)

    def call(
        self, method: str, path: str, body: Any = None, token: str = ""
    ) -> requests.Response:
        headers = {"Connection": "close"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return requests.request(
            method,
            self.origin + path,
            json=body,
            headers=headers,
            verify=str(self.ca.file),
            timeout=20,
        )


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rsplit(")", 1)[1].split()[0] != "Z"


def gone(pids: list[int], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def environment(pid: int) -> bytes:
    """What anybody of the same user sees of a process."""
    base = f"/proc/{pid}"
    found = b""
    for name in ("environ", "cmdline"):
        with open(os.path.join(base, name), "rb") as file:
            found += file.read()
    return found
