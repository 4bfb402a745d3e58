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

"""A compute host: mount and UTS namespace, libvirt, nova-compute, a TPM.

Everything of a node lives in its own folder below the base directory and
is seen inside the namespace at the usual places of a host.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import os
import pathlib
import shutil
import subprocess
import typing
import uuid

from tests.minicloud import config, layout
from tests.minicloud.layout import PORTS
from tests.minicloud.namespace import Namespace
from tests.minicloud.pids import CloudError, Ready, end_pids, wait_until
from tests.minicloud.process import Supervisor, Words
from tests.minicloud.services import Controller, consumers
from tests.minicloud.tpm import Authority, Tpm

#: What Nova logs when it has reached libvirt (nova.virt.libvirt.driver).
CONNECTED = "Connection event '1'"


@dataclasses.dataclass
class Options:
    """How nova-compute runs on a node; may be changed between restarts."""

    command: list[str] = dataclasses.field(
        default_factory=lambda: ["nova-compute"]
    )
    driver: str = "libvirt.LibvirtDriver"
    force_raw_images: bool = True
    virt_type: str = "qemu"
    # Appended to this node's configuration file.
    extra: str = ""
    # Appended to libvirt's qemu.conf, and its hook script; for new machines.
    qemu_conf: str = ""
    libvirt_hook: str = ""
    # Added to the environment of nova-compute.
    env: dict[str, str] = dataclasses.field(default_factory=dict)


class Node:
    """One compute host of the minicloud."""

    def __init__(
        self,
        number: int,
        where: layout.Layout,
        processes: Supervisor,
        controller: Controller,
    ) -> None:
        self.name = f"node{number}"
        self.address = f"127.0.0.1{number}"
        self.where = where
        self.folder = where.base / self.name
        self.options = Options()
        self._config = where.etc / f"compute{number}.conf"
        self._processes = processes
        self._controller = controller
        self._connections_wanted = 0
        self.namespace = Namespace(
            self.name, where, processes, controller.environment()
        )
        self.tpm = Tpm(
            self.name,
            where.state / f"tpm-{self.name}",
            PORTS[f"tpm of {self.name}"],
            Authority(where.state / "tpm-ca"),
            self.folder / "var/lib/mystery-hill/eventlog",
            processes,
            controller.environment(),
        )

    # -- the machine

    def start(self) -> None:
        """Power on: TPM, namespace, virtlogd and libvirtd."""
        self.tpm.start()
        if self.namespace.alive and not self.namespace.intact():
            self._stop_inside()
        if not self.namespace.alive:
            self.namespace.start()
            self._configure_libvirt()
        self.start_libvirt()

    def stop(self) -> None:
        """Power off: whatever runs in the namespace ends with it."""
        self._stop_inside()
        self.tpm.stop()

    def _stop_inside(self) -> None:
        self.stop_compute()
        self.destroy_guests()
        for name in reversed(self._running()):
            self._processes.stop(name)
        end_pids(self.namespace.inhabitants())
        self._processes.stop(self.namespace.holder)

    def reboot(self) -> None:
        """Power off and on; nova-compute and added processes stay off."""
        self.stop()
        self.start()

    def _running(self) -> list[str]:
        """The node's processes but those of the machine itself."""
        machine = (self.namespace.holder, self.tpm.name)
        return [
            name
            for name in self._processes.names()
            if name.startswith(f"{self.name}-") and name not in machine
        ]

    def path(self, name: str) -> pathlib.Path:
        """A path inside the node as seen from outside of it."""
        return self.namespace.path(name)

    def forget(self) -> None:
        """Remove what Nova and libvirt keep here, and no one else's."""
        for name in (
            "instances",
            "state",
            "tmp",
            "etc/libvirt",
            "run/libvirt",
            "var/lib/libvirt",
            "var/log/libvirt",
            "var/cache/libvirt",
            "var/lib/swtpm-localca",
            "var/log/swtpm",
        ):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    # -- processes inside

    def environment(self) -> dict[str, str]:
        """The whole environment of every process of the node."""
        return self._controller.environment() | {
            "TMPDIR": f"{self.folder}/tmp"
        }

    def run(
        self,
        name: str,
        argv: Words,
        env: collections.abc.Mapping[str, str] | None = None,
        *,
        inputs: collections.abc.Iterable[pathlib.Path] = (),
        ready: Ready | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Start a process in the node; it is known as NODE-NAME."""
        self._processes.start(
            f"{self.name}-{name}",
            self.namespace.inside(argv),
            env=self.environment() | dict(env or {}),
            inputs=inputs,
            ready=ready,
            timeout=timeout,
        )

    def end(self, name: str, timeout: float = 5.0) -> None:
        """End a process started by `run`."""
        self._processes.stop(f"{self.name}-{name}", timeout)

    def kill(self, name: str) -> None:
        """End a process started by `run` as a crash would."""
        self._processes.kill(f"{self.name}-{name}")

    def runs(self, name: str) -> bool:
        return self._processes.alive(f"{self.name}-{name}")

    def pid(self, name: str) -> int:
        return self._processes.pid(f"{self.name}-{name}")

    def log(self, name: str) -> pathlib.Path:
        return self._processes.log(f"{self.name}-{name}")

    def command(
        self,
        argv: Words,
        *,
        env: collections.abc.Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 60.0,
        **more: typing.Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the node to its end, with its output."""
        done = subprocess.run(
            self.namespace.inside(argv),
            text=True,
            timeout=timeout,
            check=False,
            env=self.environment() | dict(env or {}),
            capture_output=True,
            **more,
        )
        if check and done.returncode:
            raise CloudError(
                f"{self.name}: {' '.join(map(str, argv))}: "
                f"{done.returncode}: {done.stderr.strip()}"
            )
        return done

    # -- libvirt

    def _configure_libvirt(self) -> None:
        etc = self.folder / "etc/libvirt"
        names = {
            "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, self.name)),
            "IP": self.address,
        }
        for name, text in (
            ("libvirtd.conf", config.LIBVIRTD),
            ("qemu.conf", config.QEMU),
        ):
            (etc / name).write_text(config.render(text, names))
        with (etc / "qemu.conf").open("a") as file:
            file.write(self.options.qemu_conf)
        if self.options.libvirt_hook:
            hook = etc / "hooks" / "qemu"
            hook.parent.mkdir(exist_ok=True)
            hook.write_text(self.options.libvirt_hook)
            hook.chmod(0o755)

    def start_libvirt(self) -> None:
        run = self.folder / "run/libvirt"
        self.run(
            "virtlogd",
            ["/usr/sbin/virtlogd", "-p", "/run/libvirt/virtlogd.pid"],
            ready=(run / "virtlogd-sock").exists,
        )
        if self.runs("nova-compute") and not self.runs("libvirtd"):
            self._connections_wanted = self._connections() + 1
        etc = self.folder / "etc/libvirt"
        self.run(
            "libvirtd",
            [
                *("/usr/sbin/libvirtd", "--listen"),
                *("-p", "/run/libvirt/libvirtd.pid"),
            ],
            inputs=[etc / "libvirtd.conf", etc / "qemu.conf"],
            ready=lambda: not self.virsh("version", check=False).returncode,
        )

    def _connections(self) -> int:
        """How often nova-compute said that it reached libvirt."""
        log = self.log("nova-compute")
        return log.read_text(errors="replace").count(CONNECTED)

    @property
    def settled(self) -> bool:
        """Whether nova-compute knows of every libvirtd it has now.

        Nova disables the service of a host whose libvirtd went away, and
        enables it when it next asks for something: both in its own time,
        after the new libvirtd answers.
        """
        return self._connections() >= self._connections_wanted

    def restart_libvirtd(self) -> None:
        """Stop libvirtd and start it; the guests run on."""
        self.end("libvirtd")
        self.start_libvirt()

    def virsh(
        self,
        *words: str,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        return self.command(["virsh", "-q", *words], check=check)

    def guests(self) -> list[str]:
        """The names of the running guests."""
        return self.virsh("list", "--name").stdout.split()

    def destroy_guests(self) -> None:
        """End the guests, through libvirt if it still answers."""
        if not self.runs("libvirtd"):
            return
        listed = self.virsh("list", "--name", check=False)
        for name in listed.stdout.split():
            self.virsh("destroy", name, check=False)

    # -- nova-compute

    def configure(self) -> None:
        """Write this node's part of the configuration of Nova."""
        names = config.values(self.where) | {
            "HOST": self.name,
            "IP": self.address,
            "NODE_STATE": f"{self.folder}/state",
            "DRIVER": self.options.driver,
            "FORCE_RAW": str(self.options.force_raw_images).lower(),
            "VIRT_TYPE": self.options.virt_type,
        }
        self._config.write_text(
            config.render(config.COMPUTE, names, self.options.extra)
        )

    def start_compute(self) -> None:
        self.configure()
        files = [self.where.etc / "nova-compute.conf", self._config]
        search = f"{self.where.shims}:{self.environment()['PATH']}"
        argv: list[str | os.PathLike[str]] = list(self.options.command)
        for path in files:
            argv += ["--config-file", path]
        self.run(
            "nova-compute",
            argv,
            {"PATH": search} | self.options.env,
            inputs=files,
            ready=lambda: consumers(f"compute.{self.name}") > 0,
            timeout=120,
        )

    def stop_compute(self) -> None:
        """Until the bus, too, knows that it is gone: the next one is ready
        when it is there."""
        self.end("nova-compute", timeout=10)
        self._unheard()

    def kill_compute(self) -> None:
        """As a crash would."""
        self.kill("nova-compute")
        self._unheard()

    def _unheard(self) -> None:
        wait_until(
            lambda: consumers(f"compute.{self.name}") == 0,
            20,
            f"nova-compute of {self.name} to be gone",
        )

    def restart_compute(self) -> None:
        """With whatever `options` say now."""
        self.stop_compute()
        self.start_compute()

    def wait_gone(self, name: str, timeout: float = 30.0) -> None:
        """Wait for a guest to be off, without asking Nova."""
        wait_until(
            lambda: name not in self.guests(), timeout, f"end of {name}"
        )
