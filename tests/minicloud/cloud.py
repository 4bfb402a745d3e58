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

"""A real OpenStack on one machine, for the demo and the end-to-end tests.

with Cloud(base) as cloud:
    conn = cloud.connect("tenant")
"""

from __future__ import annotations

import collections.abc
import functools
import pathlib
import shutil
import types
import typing

import openstack

from tests.minicloud import (
    config,
    guest,
    layout,
    listening,
    remote,
    setup_cloud,
    steps,
)
from tests.minicloud.node import Node
from tests.minicloud.pids import (
    CloudError,
    Ready,
    ancestors,
    end_pids,
    group_members,
    wait_until,
)
from tests.minicloud.process import Supervisor, Words
from tests.minicloud.services import WSGI, Controller
from tests.minicloud.volumes.service import Cinder, disconnect

#: How Nova begins its reason where it disables a host by itself.
AUTO = "AUTO:"


class Cloud:
    """Keystone, Glance, Placement, Nova and two compute hosts.

    `extra` maps the name of a configuration file (nova.conf, glance-api.conf,
    keystone.conf, placement.conf, cinder.conf, scheduler.conf,
    conductor.conf and nova-compute.conf for both hosts) to text appended to
    it; one host's own is `cloud.node1.options.extra`.  `before_computes` is
    called when all but the nova-computes run.  With `volumes` there is a
    Cinder; a cloud that once had one keeps it.
    """

    def __init__(
        self,
        base: pathlib.Path | None = None,
        *,
        extra: collections.abc.Mapping[str, str] | None = None,
        venv: pathlib.Path | None = None,
        before_computes: collections.abc.Callable[[Cloud], None] | None = None,
        volumes: bool = False,
        report: steps.Report | None = None,
    ) -> None:
        self.where = layout.Layout(
            (base or layout.default_base()).resolve(),
            venv or layout.default_venv(),
        )
        self.extra = dict(extra or {})
        self.before_computes = before_computes
        self._volumes = volumes
        self.report = report
        self.processes = Supervisor(
            self.where.pids, self.where.log, self.where.base
        )
        self.controller = Controller(self.where, self.processes)
        self.node1 = Node(1, self.where, self.processes, self.controller)
        self.node2 = Node(2, self.where, self.processes, self.controller)
        self.nodes = (self.node1, self.node2)
        #: Off until `start_third`: who does not need it does not pay for it.
        self.node3 = Node(3, self.where, self.processes, self.controller)
        self.machines = (*self.nodes, self.node3)

    @property
    def base(self) -> pathlib.Path:
        return self.where.base

    @property
    def endpoints(self) -> dict[str, str]:
        """The URL of each service by its name."""
        urls = {name: url for name, (_, url) in setup_cloud.SERVICES.items()}
        urls["keystone"] = self.env("admin")["OS_AUTH_URL"]
        return urls

    def env(self, user: str) -> dict[str, str]:
        """OS_* variables: admin, tenant or other."""
        return setup_cloud.environment(user)

    def connect(self, user: str) -> openstack.connection.Connection:
        """An SDK connection as admin, tenant or other."""
        return setup_cloud.connect(user)

    def __enter__(self) -> Cloud:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.stop()

    # -- the whole cloud

    def start(self, *, fresh: bool = False) -> None:
        """Start what does not run; change what runs with other settings.

        A set-up that was broken off is begun again from nothing, and so
        is every one if `fresh`.
        """
        setup = setup_cloud.Setup(self.controller)
        if fresh or not setup.complete:
            self.forget()
        else:
            self._end_strays()
        self._check_ports()
        self.where.make()
        self.configure()
        control = self.controller
        plan = [
            steps.Step("mariadb", control.mariadb),
            steps.Step("rabbitmq", control.rabbitmq),
            steps.Step("neutron", control.neutron),
            steps.Step("databases", setup.databases, ("mariadb",)),
            steps.Step("nova tables", setup.nova, ("databases",)),
            steps.Step("keystone tables", setup.keystone, ("databases",)),
            steps.Step(
                "keystone",
                lambda: control.web("keystone"),
                ("keystone tables",),
            ),
            steps.Step("people", setup.people, ("keystone",)),
            steps.Step(
                "placement tables", setup.placement, ("keystone tables",)
            ),
            steps.Step(
                "placement",
                lambda: control.web("placement"),
                ("placement tables",),
            ),
            steps.Step("glance tables", setup.glance, ("placement tables",)),
            steps.Step(
                "glance", lambda: control.web("glance"), ("glance tables",)
            ),
            steps.Step(
                "nova",
                lambda: control.web("nova"),
                ("nova tables", "rabbitmq"),
            ),
        ]
        for name in ("conductor", "scheduler"):
            plan.append(
                steps.Step(
                    f"nova-{name}",
                    functools.partial(control.nova, name),
                    ("nova tables", "rabbitmq", "people", "placement"),
                )
            )
        for node in self.nodes:
            plan.append(steps.Step(f"{node.name} tpm", node.tpm.start))
        for node in self.nodes:
            plan.append(
                steps.Step(
                    node.name,
                    node.start,
                    tuple(f"{other.name} tpm" for other in self.nodes),
                )
            )
        if self.volumes:
            plan.append(
                steps.Step(
                    "cinder",
                    Cinder(control).start,
                    ("people", "rabbitmq", "glance"),
                )
            )
        everything = tuple(step.name for step in plan)
        plan.append(
            steps.Step("before computes", self._before_computes, everything)
        )
        for node in self.nodes:
            plan.append(
                steps.Step(
                    f"{node.name} compute",
                    node.start_compute,
                    ("before computes",),
                )
            )
        plan.append(
            steps.Step(
                "computes up",
                self.wait_computes,
                tuple(f"{node.name} compute" for node in self.nodes),
            )
        )
        steps.run_all(plan, self.report)
        setup.finish()

    def _check_ports(self) -> None:
        """Say at once which ports other programs have."""
        ours = {port for _, port in listening.sockets(self.pids())}
        taken = [
            f"{port} ({name})"
            for name, port in layout.PORTS.items()
            if port not in ours and not listening.free(port)
        ]
        if taken:
            raise CloudError(
                "other programs have these ports of 127.0.0.1: "
                f"{', '.join(taken)}; `ss -ltnp` names them"
            )

    def _before_computes(self) -> None:
        if self.before_computes is not None:
            self.before_computes(self)

    def stop(self) -> None:
        """End everything that was started below the base directory."""
        last = ("mariadb", "rabbitmq", "epmd")
        plan = [steps.Step(node.name, node.stop) for node in self.machines]
        inside = tuple(f"{node.name}-" for node in self.machines)
        for name in self.processes.names():
            if name in last or name.startswith(inside):
                continue
            limit = 2 if name in WSGI else 8
            plan.append(
                steps.Step(
                    name, functools.partial(self.processes.stop, name, limit)
                )
            )
        steps.run_all(plan)
        self.end("mariadb")
        for name in ("rabbitmq", "epmd"):  # nothing of theirs is kept
            self.processes.kill(name)
        self._end_strays(everything=True)
        disconnect(self.where.state / "volumes")

    def forget(self) -> None:
        """Stop, and remove the state of the cloud itself.

        Folders that others made below the base directory or in a node
        (/etc/mystery-hill, /var/lib/mystery-hill) are left alone.
        """
        self.stop()
        for path in (
            self.where.state,
            self.where.log,
            self.where.tmp,
            self.where.base / "rabbitmq",
            self.where.home,
        ):
            shutil.rmtree(path, ignore_errors=True)
        for node in self.machines:
            node.forget()

    def clean(self) -> None:
        """Stop, and remove the whole base directory."""
        self.stop()
        shutil.rmtree(self.where.base, ignore_errors=True)

    def _end_strays(self, everything: bool = False) -> None:
        """End processes of ours that no record speaks of."""
        known = set()
        if not everything:
            for name in self.processes.names():
                record = self.processes.record(name)
                if record is not None and record.alive():
                    known.add(record.pid)
        strays = []
        for pid in self.processes.marked():
            if known.isdisjoint([pid, *ancestors(pid)]):
                strays.append(pid)
        for node in self.machines:
            if everything or not node.namespace.alive:
                strays += node.namespace.inhabitants()
        end_pids(strays)

    def pids(self) -> list[int]:
        """Every process of the cloud and in its nodes, guests too."""
        found = set(self.processes.marked())
        for name in self.processes.names():
            record = self.processes.record(name)
            if record is not None and record.alive():
                found.update(group_members(record.pid))
        for node in self.machines:
            found.update(node.namespace.inhabitants())
        return sorted(found)

    # -- its parts

    def configure(self) -> None:
        """Write every configuration file."""
        names = config.values(self.where)
        unknown = set(self.extra) - set(config.FILES)
        if unknown:
            raise ValueError(f"no such configuration file: {unknown}")
        for name, text in config.FILES.items():
            if self.volumes and name in config.WITH_VOLUMES:
                text += config.NOVA_VOLUMES
            (self.where.etc / name).write_text(
                config.render(text, names, self.extra.get(name, ""))
            )
        shutil.copy(self.where.venv / "etc/nova/api-paste.ini", self.where.etc)
        remote.write(self.where.shims)
        for node in self.machines:
            node.configure()

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
        """Start a process beside the cloud; it ends with the cloud."""
        self.processes.start(
            name,
            argv,
            env=self.controller.environment() | dict(env or {}),
            inputs=inputs,
            ready=ready,
            timeout=timeout,
        )

    def end(self, name: str) -> None:
        """End a process started by `run`."""
        self.processes.stop(name)

    def start_third(
        self, before: collections.abc.Callable[[], None] | None = None
    ) -> Node:
        """Start the third host, unless it runs.

        :param before: called when the machine runs, its nova-compute not.
        """
        node = self.node3
        if not node.runs("nova-compute"):
            node.start()
            if before is not None:
                before()
            node.start_compute()
            self.wait_computes()
        return node

    @property
    def volumes(self) -> bool:
        """Whether there is a Cinder."""
        return self._volumes or Cinder(self.controller).complete

    def restart_scheduler(self) -> None:
        self.configure()
        self.processes.stop("nova-scheduler")
        self.controller.nova("scheduler")

    def restart_api(self) -> None:
        self.configure()
        self.processes.stop("nova")
        self.controller.web("nova")

    def restart_compute(self, node: Node) -> None:
        self.configure()
        node.restart_compute()

    def restart_libvirtd(self, node: Node) -> None:
        node.restart_libvirtd()
        self.wait_computes()

    @staticmethod
    def _disabled(
        conn: openstack.connection.Connection, found: typing.Any
    ) -> bool:
        """Whether Nova itself keeps servers from a host for now."""
        why = (found.service_details or {}).get("disabled_reason") or ""
        if found.status != "enabled":
            return bool(why.startswith(AUTO))
        answer = conn.placement.get(
            f"/resource_providers/{found.id}/traits", microversion="1.6"
        )
        if answer.status_code == 404:
            return True
        return "COMPUTE_STATUS_DISABLED" in answer.json()["traits"]

    def wait_computes(self, timeout: float = 120.0) -> None:
        """Wait until the scheduler can place servers on every host, but for
        those that somebody disabled: Nova enables only what it disabled.
        """
        conn = self.connect("admin")
        nodes = list(self.nodes)
        if self.node3.runs("nova-compute"):
            nodes.append(self.node3)
        want = {node.name for node in nodes}

        def test() -> bool:
            if not all(node.settled for node in nodes):
                return False
            return want <= {
                found.name
                for found in conn.compute.hypervisors(details=True)
                if found.state == "up" and not self._disabled(conn, found)
            }

        wait_until(test, timeout, "all computes to be up", pause=0.3)
        conn.close()

    def purge(self) -> None:
        """Delete every server, image and flavor, through the APIs."""
        conn = self.connect("admin")
        guest.purge(conn)
        conn.close()
