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

"""The mount and UTS namespace that makes a part of this machine a host.

Its folders are those of a host (/etc/libvirt, /run/libvirt, ...) and lie
below the node's own folder; libvirt's domain directory is on tmpfs.
"""

from __future__ import annotations

import collections.abc
import os
import pathlib

from tests.minicloud import config, layout
from tests.minicloud.pids import pids
from tests.minicloud.process import Supervisor, Words

# Directories of libvirt's that hold more than the state of running guests.
_KEPT = ("save", "snapshot", "checkpoint", "nvram", "dump", "ram", "channel")

# Run inside the new namespaces; the mounts vanish with the last process.
_HOLDER = """
set -e
hostname "$NODE"
bind() { mkdir -p "$1"; mount --bind "$1" "$2"; }
for place in $PLACES; do bind "$ROOT$place" "$place"; done
bind "$ROOT/instances" "$INSTANCES"
mount --bind "$ROOT/hosts" /etc/hosts
# libvirt writes the key of its encrypted secrets beside each guest's
# monitor socket: never on a disk.
domains=/var/lib/libvirt/qemu
kept="$ROOT$domains"
mkdir -p $domains
options=mode=0751,nosuid,nodev,noexec,size=64m
mount -t tmpfs -o $options,noswap tmpfs $domains 2>/dev/null ||
    mount -t tmpfs -o $options tmpfs $domains
for name in $KEPT; do
    mkdir $domains/$name
    bind "$kept/$name" $domains/$name
done
# keys of live migration: for this boot only
migration=/run/mystery-hill/migration
mkdir -p $migration
mount -t tmpfs -o mode=0750,nosuid,nodev,noexec,size=1m tmpfs $migration
: > "$ROOT/ready"
exec sleep infinity
"""


class Namespace:
    """Kept by one sleeping process; others are run inside of it."""

    def __init__(
        self,
        name: str,
        where: layout.Layout,
        processes: Supervisor,
        env: collections.abc.Mapping[str, str],
    ) -> None:
        self.name = name
        self.where = where
        self.folder = where.base / name
        self.holder = f"{name}-namespace"
        self._processes = processes
        self._env = env

    def path(self, name: str) -> pathlib.Path:
        """A path inside the node as seen from outside of it."""
        pid = self._processes.pid(self.holder)
        return pathlib.Path(f"/proc/{pid}/root") / name.lstrip("/")

    @property
    def alive(self) -> bool:
        return self._processes.alive(self.holder)

    def intact(self) -> bool:
        """Whether the namespace still shows this node's folders.

        A folder that was removed and made again is another one.
        """
        for place in layout.MOUNT_POINTS:
            try:
                inside = os.stat(self.path(place))
                outside = os.stat(self.folder / place[1:])
            except OSError:
                return False
            if (inside.st_dev, inside.st_ino) != (
                outside.st_dev,
                outside.st_ino,
            ):
                return False
        return True

    def start(self) -> None:
        """Make the namespaces and mount what belongs into them."""
        self._make_folders()
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        self._processes.start(
            self.holder,
            [
                *("/usr/bin/unshare", "--mount", "--uts"),
                *("--propagation", "private", "/bin/sh", "-c", _HOLDER),
            ],
            env=dict(self._env)
            | {
                "NODE": self.name,
                "ROOT": str(self.folder),
                "INSTANCES": str(self.where.instances),
                "PLACES": " ".join(layout.MOUNT_POINTS),
                "KEPT": " ".join(_KEPT),
            },
            ready=ready.exists,
            timeout=20,
        )

    def _make_folders(self) -> None:
        for place in layout.MOUNT_POINTS:
            pathlib.Path(place).mkdir(parents=True, exist_ok=True)
            (self.folder / place[1:]).mkdir(parents=True, exist_ok=True)
        for name in ("instances", "state/lock", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        # What libvirt keeps of a guest while it runs is stale after a boot.
        for place in ("run/libvirt", "run/mystery-hill"):
            layout.empty(self.folder / place)
        (self.folder / "hosts").write_text(config.HOSTS)

    def inhabitants(self) -> list[int]:
        """Every process that has this node's /etc/hosts.

        That is how the guests are found, too, which libvirt detaches.
        """
        try:
            here = os.stat(self.folder / "hosts")
        except OSError:
            return []
        holder = self._processes.record(self.holder)
        found = []
        for pid in pids():
            if holder is not None and pid == holder.pid:
                continue
            try:
                seen = os.stat(f"/proc/{pid}/root/etc/hosts")
            except OSError:
                continue
            if (seen.st_dev, seen.st_ino) == (here.st_dev, here.st_ino):
                found.append(pid)
        return found

    def inside(self, argv: Words) -> list[str]:
        """The command that runs a command inside."""
        pid = self._processes.pid(self.holder)
        return [
            "/usr/bin/nsenter",
            f"--target={pid}",
            "--mount",
            "--uts",
            "--",
            *map(str, argv),
        ]
