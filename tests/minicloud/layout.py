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

"""Where the minicloud keeps its files, and on which ports it listens.

Everything is below one base directory; every port is on 127.0.0.0/8.
Only the standard library is used, so that the installer can read it.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import sys

ADDRESS = "127.0.0.1"

# name -> port on 127.0.0.1
PORTS = {
    "keystone": 15000,
    "glance": 15092,
    "placement": 15778,
    "nova": 15774,
    "cinder": 15776,
    "neutron": 15696,
    "rabbitmq": 15672,
    "rabbitmq distribution": 15673,
    "epmd": 15674,
    "tpm of node1": 15801,
    "tpm control of node1": 15802,
    "tpm of node2": 15811,
    "tpm control of node2": 15812,
    "tpm of node3": 15821,
    "tpm control of node3": 15822,
}

# The longest path to a Unix socket is 107 bytes; the longest one made
# below the base directory is that of a privilege helper in `tmp`.
LONGEST_BASE = 60

# Mount points that a node needs and that may have to be made, empty.
MOUNT_POINTS = (
    "/etc/libvirt",
    "/etc/mystery-hill",
    "/run/libvirt",
    "/run/mystery-hill",
    "/var/cache/libvirt",
    "/var/lib/libvirt",
    "/var/lib/mystery-hill",
    "/var/lib/swtpm-localca",
    "/var/log/libvirt",
    "/var/log/mystery-hill",
    "/var/log/swtpm",
)

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
RUN = REPOSITORY / "run"


@dataclasses.dataclass(frozen=True)
class Layout:
    """The paths of one minicloud."""

    base: pathlib.Path
    venv: pathlib.Path

    @property
    def bin(self) -> pathlib.Path:
        return self.venv / "bin"

    @property
    def etc(self) -> pathlib.Path:
        """Generated configuration of the OpenStack services."""
        return self.base / "etc"

    @property
    def log(self) -> pathlib.Path:
        return self.base / "log"

    @property
    def tmp(self) -> pathlib.Path:
        """The temporary folder of every process started here."""
        return self.base / "tmp"

    @property
    def home(self) -> pathlib.Path:
        return self.base / "home"

    @property
    def pids(self) -> pathlib.Path:
        return self.base / "pids"

    @property
    def state(self) -> pathlib.Path:
        """Databases, image store, keys: what outlives a restart."""
        return self.base / "state"

    @property
    def instances(self) -> pathlib.Path:
        """An empty mount point; each node sees its own disks there."""
        return self.base / "instances"

    @property
    def shims(self) -> pathlib.Path:
        """`ssh` and `scp` of the nova-computes."""
        return self.base / "shims"

    @property
    def mysql_socket(self) -> pathlib.Path:
        return self.base / "mysql.sock"

    @property
    def glance_store(self) -> pathlib.Path:
        return self.state / "glance"

    def make(self) -> None:
        for folder in (
            self.etc,
            self.log,
            self.tmp,
            self.home,
            self.pids,
            self.state,
            self.instances,
            self.shims,
        ):
            folder.mkdir(parents=True, exist_ok=True)
        self.base.chmod(0o755)


def default_base() -> pathlib.Path:
    return RUN / "cloud"


def default_venv() -> pathlib.Path:
    """The environment that runs the harness runs the cloud, too."""
    return pathlib.Path(sys.prefix)


def empty(folder: pathlib.Path) -> None:
    """Remove what is in a folder, and leave the folder."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
