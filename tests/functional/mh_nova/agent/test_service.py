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
"""The daemon itself: started as an operator does, with a real TPM."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mh_core.audit import verify_chain
from mh_nova.agent.journal import read
from tests.fixture import tls
from tests.fixture.swtpm import Swtpm, free_port_pair


@dataclass
class Agent:
    folder: Path
    tpm: Swtpm
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def path(self) -> Path:
        return self.folder / "run" / "agent.sock"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def write_config(self, **agent: Any) -> None:
        authority = tls.Authority(self.folder / "tls")
        leaf = authority.issue("listener")
        options = {
            "host": "node1",
            "socket": self.path,
            "allowed_uids": os.getuid(),
            "instances_path": self.folder / "instances",
            "state_dir": self.folder / "state",
            "tcti": self.tpm.tcti,
            "event_log": "",
            "kms_origins": "https://127.0.0.1:1",
            "libvirt_uri": f"qemu:///system?socket={self.folder}/none",
            "libvirt_domain_dir": "/dev/shm",
            "libvirt_kept": "",
            "qemu_conf": self.folder / "qemu.conf",
            **agent,
        }
        listener = {
            "bind_port": free_port_pair(),
            "cert_file": leaf.certificate,
            "key_file": leaf.key,
            "client_ca_file": authority.ca_file,
            "client_sha256": leaf.sha256,
        }
        (self.folder / "instances" / "_base").mkdir(
            parents=True, exist_ok=True
        )
        (self.folder / "qemu.conf").write_text("max_core = 0\n")
        (self.folder / "mh-agent.conf").write_text(
            "[DEFAULT]\ndebug = true\n[agent]\n"
            + "".join(f"{k} = {v}\n" for k, v in options.items())
            + "[listener]\n"
            + "".join(f"{k} = {v}\n" for k, v in listener.items())
        )

    def start(self) -> None:
        log_file = self.folder / "log"
        before = self.log.count("agent.ready") if log_file.exists() else 0
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "mh_nova.cmd.agent",
                    "--config-file",
                    str(self.folder / "mh-agent.conf"),
                ],
                stdout=log,
                stderr=log,
            )
        for _ in range(300):
            if self.log.count("agent.ready") > before:
                return
            assert self.process.poll() is None, self.log
            time.sleep(0.05)
        raise AssertionError(self.log)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    def ask(self, verb: str, **members: Any) -> Any:
        body = json.dumps({"verb": verb, **members}).encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(self.path))
            client.sendall(struct.pack(">I", len(body)) + body)
            answer = b""
            while part := client.recv(65536):
                answer += part
        return json.loads(answer[4:])


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    folder = tmp_path_factory.mktemp("agent")
    tpm = Swtpm(folder / "tpm")
    tpm.manufacture()
    tpm.start()
    agent = Agent(folder, tpm)
    agent.write_config()
    agent.start()
    yield agent
    assert agent.process is not None
    if agent.process.poll() is None:
        agent.stop()
    tpm.stop()


def test_status_before_enrolment(agent: Agent) -> None:
    answer = agent.ask("status")
    assert answer["ok"]
    assert answer["trusted"] is False
    assert answer["enrolled"] is False
    assert [one["event"] for one in answer["findings"]] == [
        "agent.guard.enrolled"
    ]


def test_not_trusted_not_prepared(agent: Agent) -> None:
    one = str(uuid.uuid4())
    answer = agent.ask(
        "prepare",
        instance=one,
        image=one,
        project="p",
        user="u",
        host="node1",
        key_url=f"https://127.0.0.1:1/v1/keys/{one}",
        key_id=one,
        manifest="a.b.c",
        ticket="",
        compat=False,
        purpose="launch",
        virtual_size=1 << 20,
        disks=[{"name": "disk", "size": 0}],
        user_data_digest="",
    )
    assert answer["error"]["event"] == "agent.guard.enrolled"


def test_libvirt_is_away(agent: Agent) -> None:
    """Whether an instance is ours cannot be told: not answered by no."""
    answer = agent.ask("ours", instance=str(uuid.uuid4()))
    assert answer["error"]["event"] == "agent.libvirt"


def test_hardened(agent: Agent) -> None:
    assert agent.process is not None
    proc = Path(f"/proc/{agent.process.pid}")
    limits = (proc / "limits").read_text()
    (core,) = [
        line for line in limits.splitlines() if line.startswith("Max core")
    ]
    assert core.split()[4:6] == ["0", "0"]
    assert (agent.folder / "state").stat().st_mode & 0o777 == 0o700
    for path in (agent.folder / "state").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_restart(agent: Agent) -> None:
    assert agent.stop() == 0
    assert not agent.path.exists()
    assert "agent.stopped" in agent.log
    agent.start()
    assert agent.ask("status")["ok"]
    verify_chain(read(agent.folder / "state" / "audit.log"))


def test_killed_and_started(agent: Agent) -> None:
    assert agent.process is not None
    agent.process.kill()
    agent.process.wait(10)
    with (agent.folder / "state" / "audit.log").open("ab") as log:
        log.write(b'{"half a li')
    agent.start()
    assert agent.ask("status")["ok"]
    verify_chain(read(agent.folder / "state" / "audit.log"))


def test_a_changed_audit_log_stops_it(agent: Agent) -> None:
    agent.stop()
    log = agent.folder / "state" / "audit.log"
    good = log.read_bytes()
    log.write_bytes(good.replace(b"agent.started", b"agent.stArted", 1))
    with pytest.raises(AssertionError, match="core.audit.chain"):
        agent.start()
    assert agent.process is not None
    assert agent.process.wait(10) == 1
    log.write_bytes(good)
    agent.start()


def test_tpm_gone(agent: Agent) -> None:
    agent.tpm.stop()
    events = [one["event"] for one in agent.ask("status")["findings"]]
    assert "agent.guard.tpm" in events
    agent.tpm.start()
    events = [one["event"] for one in agent.ask("status")["findings"]]
    assert "agent.guard.tpm" not in events
