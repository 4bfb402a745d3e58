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

"""A host whose agent is a process that can be killed at a named step.

swtpm, libvirtd, qemu-img and the agent are real; the key server is that of
``world``; the test is nova-compute.
"""

import contextlib
import datetime
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mh_core.akcert import issue_ak_certificate
from mh_core.launch_policy import LaunchPolicy
from mh_nova.agent.paths import PART, Root, base_name
from mh_nova.agent.prover import Prover
from mh_nova.agent.secrets import PREFIX, Libvirt
from mh_nova.agent.tpm import Tpm
from tests.fixture import halting, tls
from tests.fixture.swtpm import Swtpm
from tests.functional.mh_nova.agent.world import (
    HOST,
    KEY_ID,
    MIB,
    Kms,
    Tenant,
    World,
)

HOST_ID = "0b1f6b5e-6f4e-4a6e-9a53-2a3f3f0f1e77"


class Refused(Exception):
    """The agent said no, with this event."""


class Gone(Exception):
    """The agent hung up."""


def _enroller() -> Any:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "enroller")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(30))
        .add_extension(x509.BasicConstraints(True, 0), True)
        .sign(key, hashes.SHA256())
    )
    return SimpleNamespace(key=key, certificate=certificate)


@dataclass
class Mortal:
    """
    :param libvirt: URI of the host's libvirtd.
    """

    folder: Path
    libvirt: str

    def __post_init__(self) -> None:
        self.tenant = Tenant(
            self.folder, launch_policy=LaunchPolicy(snapshots=True)
        )
        self.authority = tls.Authority(self.folder / "tls")
        enroller = _enroller()
        self.kms = Kms(self.authority, self.tenant, enroller)
        self.kms.twist = lambda payload: replace(
            payload, audit=f"{uuid.uuid4()}#7"
        )
        self.instances = self.folder / "instances"
        self.state = self.folder / "state"
        (self.instances / "_base").mkdir(parents=True)
        self.state.mkdir(mode=0o700)
        (self.folder / "qemu.conf").write_text("max_core = 0\n")
        self.root = Root(str(self.instances))
        self.halt = halting.Halt(self.folder / "halt")
        self.socket = self.folder / "run" / "agent.sock"
        self.instance = ""
        self.pid = 0
        self._caller = threading.local()
        self.tpm = Swtpm(self.folder / "tpm")
        self.tpm.manufacture()
        self.tpm.start()
        device = Tpm(self.tpm.tcti, str(self.state / "tpm.lock"))
        now = datetime.datetime.now(datetime.UTC)
        Prover(device, str(self.state), "").set_ak_certificate(
            issue_ak_certificate(
                *(enroller.key, enroller.certificate, device.ak(), HOST_ID),
                *(HOST, now, datetime.timedelta(1), 7),
            )
        )
        self._configure()
        self._log = (self.folder / "log").open("ab")
        self._forker = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.fixture.halting_agent"),
                *("--fork", "--config-file", self.folder / "mh-agent.conf"),
            ],
            env={**os.environ, halting.FOLDER: str(self.halt.folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def _configure(self) -> None:
        options = {
            "host": HOST,
            "socket": self.socket,
            "allowed_uids": os.getuid(),
            "instances_path": self.instances,
            "state_dir": self.state,
            "tcti": self.tpm.tcti,
            "event_log": "",
            "kms_origins": self.kms.origin,
            "kms_ca_file": self.authority.ca_file,
            "attest_ca_file": self.authority.ca_file,
            "libvirt_uri": self.libvirt,
            "libvirt_domain_dir": "/dev/shm",
            "libvirt_kept": "",
            "qemu_conf": self.folder / "qemu.conf",
            "timeout": 5,
            "measure_timeout": 20,
        }
        (self.folder / "mh-agent.conf").write_text(
            "[DEFAULT]\nuse_stderr = true\n[agent]\n"
            + "".join(f"{k} = {v}\n" for k, v in options.items())
            + "[listener]\nenabled = false\n"
        )

    # -- the agent's life

    def start(self) -> None:
        forker = self._forker
        assert forker.stdin is not None
        assert forker.stdout is not None
        before = self.log.count("agent.ready")
        forker.stdin.write("\n")
        forker.stdin.flush()
        self.pid = int(forker.stdout.readline())
        end = time.monotonic() + 30
        while self.log.count("agent.ready") == before:
            assert time.monotonic() < end, self.log[-3000:]
            assert Path(f"/proc/{self.pid}").exists(), self.log[-3000:]
            time.sleep(0.02)
        # ready is said before the first is served
        self.ask("status")

    def die(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        while Path(f"/proc/{self.pid}").exists():
            time.sleep(0.005)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        assert self._forker.stdin is not None
        self._forker.stdin.close()
        self._forker.wait(10)
        self._log.close()
        self.kms.stop()
        self.tpm.stop()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def ask(self, verb: str, **members: Any) -> dict[str, Any]:
        """:raises Refused: with the event.
        :raises Gone: the agent did not answer."""
        killed = getattr(self._caller, "killed", None)
        if killed is not None and killed.is_set():
            raise Gone
        body = json.dumps({"verb": verb, **members}).encode()
        answer = b""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(60)
                client.connect(str(self.socket))
                client.sendall(struct.pack(">I", len(body)) + body)
                while part := client.recv(65536):
                    answer += part
        except OSError as exc:
            raise Gone from exc
        if not answer:
            raise Gone
        found = json.loads(answer[4:])
        if not found.pop("ok"):
            raise Refused(found["error"]["event"], found["error"]["message"])
        return dict(found)

    # -- what nova-compute does

    @property
    def directory(self) -> Path:
        return self.instances / self.instance

    @property
    def base(self) -> Path:
        return self.instances / "_base" / base_name(self.tenant.image)

    @property
    def part(self) -> Path:
        return self.base.with_name(self.base.name + PART)

    def new(self) -> None:
        self.instance = str(uuid.uuid4())

    def prepare(self, purpose: str) -> None:
        self.ask(
            "prepare",
            instance=self.instance,
            image=self.tenant.image,
            project="p" * 32,
            user="u" * 32,
            host=HOST,
            key_url=self.kms.url,
            key_id=KEY_ID,
            manifest=self.tenant.manifest,
            ticket="",
            compat=False,
            purpose=purpose,
            virtual_size=self.tenant.virtual_size,
            disks=[{"name": "disk", "size": 16 * MIB}],
            user_data_digest="",
        )

    def again(self) -> None:
        """Started as it is, by what the agent has on record."""
        self.run("start")

    def run(self, purpose: str) -> None:
        xml = World.xml(cast(World, self))
        self.ask("start", instance=self.instance, xml=xml, purpose=purpose)
        self.ask("started", instance=self.instance, ok=True)

    def spawn(self) -> None:
        """A launch whose base is not there yet."""
        self.prepare("launch")
        self.part.write_bytes(self.tenant.data)
        self.directory.mkdir()
        self.ask("make", instance=self.instance, downloaded=True)
        self.run("launch")

    def arrive(self) -> None:
        """The disk is there, the record is not; it is to be larger."""
        self.prepare("migrate-in")
        self.ask("make", instance=self.instance, downloaded=False)
        self.ask("resize", instance=self.instance, disk="disk", size=24 * MIB)
        self.run("migrate-in")
        self.ask("arrived", instance=self.instance)

    def unknown(self) -> None:
        """The disk has just come from another host."""
        self.die()
        for kind in ("instances", "leases"):
            (self.state / kind / f"{self.instance}.json").unlink()
        self.start()

    def snapshot(self) -> None:
        self.ask("snapshot", instance=self.instance, image=str(uuid.uuid4()))
        self._copied()
        self.ask("storing", instance=self.instance)
        self.ask("register", instance=self.instance)
        self.ask("end", instance=self.instance)

    def flatten(self) -> None:
        self.ask("flatten", instance=self.instance)
        self._copied()
        self.ask("end", instance=self.instance)

    def _copied(self) -> None:
        while not self.ask("copy", instance=self.instance)["done"]:
            pass

    def remove(self) -> None:
        """nova deletes the instance, and no agent hears of it."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.part.unlink(missing_ok=True)

    def forget(self) -> None:
        self.ask("forget", instance=self.instance)

    # -- death at a step

    def dies_at(self, step: str, operation: Callable[[], None]) -> None:
        """Killed there, in the middle of an operation, and started."""
        failed: list[BaseException] = []

        def work() -> None:
            try:
                operation()
            except (Gone, Refused) as exc:
                failed.append(exc)

        self.halt.order(step)
        thread = threading.Thread(target=work)
        thread.start()
        try:
            self.halt.wait(30)
        finally:
            self.die()
            thread.join(30)
            self.halt.clear()
        assert not thread.is_alive()
        self.start()

    def left_at(self, step: str, operation: Callable[[], None]) -> None:
        """nova-compute is killed there, and its successor begins; the verb
        that it waited for ends later."""
        killed = threading.Event()

        def work() -> None:
            self._caller.killed = killed
            with contextlib.suppress(Gone, Refused):
                operation()

        self.halt.order(step)
        thread = threading.Thread(target=work)
        thread.start()
        try:
            self.halt.wait(30)
            killed.set()
            successor = threading.Thread(target=self.ask, args=("sweep",))
            successor.start()
            time.sleep(0.05)
        finally:
            killed.set()
            self.halt.go()
            thread.join(30)
            self.halt.clear()
        successor.join(30)
        assert not thread.is_alive()

    # -- what is left

    def secrets(self) -> list[str]:
        found = Libvirt(self.libvirt).connection().listAllSecrets(0)
        return [
            one.UUIDString()
            for one in found
            if one.usageID().startswith(PREFIX)
        ]

    def half(self) -> list[str]:
        """Files that somebody was about to finish."""
        ends = (".new", ".mh-new", ".part.disk")
        return [
            str(path.relative_to(self.folder))
            for folder in (self.state, self.instances)
            for path in folder.rglob("*")
            if path.name.endswith(ends)
            or path.name.startswith(("snapshot-", "flattened-"))
        ]

    def records(self) -> list[str]:
        """Of instances, leases and receipts."""
        return sorted(
            f"{path.parent.name}/{path.name}"
            for kind in ("instances", "plans", "leases", "receipts")
            for path in (self.state / kind).iterdir()
        )

    def told(self) -> bool:
        """Whether the key server has every receipt."""
        end = time.monotonic() + 15
        while any((self.state / "receipts").iterdir()):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True
