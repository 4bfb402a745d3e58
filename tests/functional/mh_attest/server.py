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
"""``mh-attest-serve`` and ``mh-attest-manage`` as an operator runs them."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import requests

from tests.fixture.tls import Authority

CONFIG = """
[api]
bind_port = {port}
certificate_file = {server.certificate}
key_file = {server.key}
[authority]
issuer = https://127.0.0.1:{port}
state_dir = {folder}/state
[database]
connection = sqlite:///{folder}/attest.sqlite
[enrolment]
ek_ca_dir = {folder}/ek-ca
listener_networks = 127.0.0.0/8
[listener_client]
certificate_file = {client.certificate}
key_file = {client.key}
ca_file = {ca}
[trust]
max_age = 2
timeout = 3
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One attestation server, in a process of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.tls = Authority(folder / "tls")
        self.client = self.tls.issue("attest client")
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        (folder / "ek-ca").mkdir()
        self.config = folder / "mh-attest.conf"
        self.config.write_text(
            CONFIG.format(
                port=self.port,
                server=self.tls.issue("attest"),
                client=self.client,
                ca=self.tls.ca_file,
                folder=folder,
            )
        )
        self.tokens: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def manage(self, *argv: str, status: int = 0) -> str:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "mh_attest.cmd.manage"),
                *("--config-file", self.config, *argv),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    def token(self, role: str) -> str:
        if role not in self.tokens:
            out = self.folder / f"token-{role}"
            self.manage(
                *("token", "create", "--name", role, "--roles", role),
                *("--out", str(out)),
            )
            assert out.stat().st_mode & 0o777 == 0o600
            self.tokens[role] = out.read_text().strip()
        return self.tokens[role]

    def start(self) -> None:
        with open(self.folder / "serve.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mh_attest.cmd.serve"),
                    *("--config-file", self.config),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                self.call("GET", "/healthcheck")
            except requests.ConnectionError:
                time.sleep(0.1)
            else:
                return
        raise RuntimeError(self.log())

    def stop(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        return process.wait(20)

    def log(self) -> str:
        return (self.folder / "serve.log").read_text()

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        role: str | None = None,
        status: int | None = None,
    ) -> Any:
        headers = {}
        if role is not None:
            headers["Authorization"] = f"Bearer {self.token(role)}"
        answer = requests.request(
            method,
            self.url + path,
            json=body,
            headers=headers,
            verify=str(self.tls.ca_file),
            timeout=30,
        )
        assert status in (None, answer.status_code), answer.text
        return json.loads(answer.content) if answer.content else None
