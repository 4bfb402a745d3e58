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
"""Cinder beside a running cloud: tables, user, endpoint, three processes."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import typing

from tests.minicloud import layout, setup_cloud
from tests.minicloud.layout import ADDRESS, PORTS
from tests.minicloud.pids import wait_until
from tests.minicloud.services import Controller, consumers
from tests.minicloud.setup_cloud import Setup

#: Host and back end as Cinder's services are known by.
BACKEND = "controller@files"
URL = f"http://{ADDRESS}:{PORTS['cinder']}/v3/%(project_id)s"


def disconnect(folder: pathlib.Path) -> None:
    """Devices that a cloud which has ended has left.

    :param folder: of the volumes' files.
    """
    for found in folder.glob("volume-*@*"):
        file = folder / found.name.partition("@")[0]
        # by now another file may be what the device shows
        devices = subprocess.run(
            ["/usr/sbin/losetup", "--noheadings", "-O", "NAME", "-j", file],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        if found.read_text() in devices:
            subprocess.run(
                ["/usr/sbin/losetup", "--detach", found.read_text()],
                check=False,
            )
        found.unlink()


class Cinder:
    """Only where it is wanted: who does not need it does not pay for it."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._where = controller.where

    @property
    def complete(self) -> bool:
        """It was set up, and is in the catalogue."""
        return self._mark.exists()

    @property
    def _mark(self) -> pathlib.Path:
        return self._where.state / "cinder" / "complete"

    def start(self) -> None:
        """Until it can make volumes; nothing happens where it runs."""
        for name in ("cinder", "volumes"):
            (self._where.state / name).mkdir(exist_ok=True)
        self._set_up()
        self._daemons()
        self._controller.web("cinder")
        with setup_cloud.connect("admin") as cloud:
            wait_until(
                lambda: self._pools(cloud), 60, "Cinder's back end", pause=0.3
            )

    def _set_up(self) -> None:
        if self.complete:
            return
        setup = Setup(self._controller)
        self._controller.sql("create database if not exists cinder;")
        setup.manage("cinder", "cinder.conf", ("db", "sync"))
        with setup_cloud.connect("admin") as cloud:
            identity = cloud.identity
            setup.user(
                identity,
                "cinder",
                "secret",
                identity.find_project("service"),
                ("admin", "service"),
            )
            setup.endpoint(identity, "cinder", "volumev3", URL)
        self._mark.touch()

    def _daemons(self) -> None:
        conf = self._where.etc / "cinder.conf"
        self._controller.processes.start(
            "cinder-daemons",
            [
                *(sys.executable, "-m", "tests.minicloud.volumes.daemons"),
                *("--config-file", conf),
            ],
            env=self._controller.environment()
            | {"PYTHONPATH": str(layout.REPOSITORY)},
            inputs=[conf],
            ready=lambda: all(
                consumers(queue) > 0
                for queue in ("cinder-scheduler", f"cinder-volume.{BACKEND}")
            ),
            timeout=90,
        )

    @staticmethod
    def _pools(cloud: typing.Any) -> bool:
        """Whether the scheduler knows the back end."""
        return any(
            pool.name.startswith(BACKEND)
            for pool in cloud.block_storage.backend_pools()
        )
