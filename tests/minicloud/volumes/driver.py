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
"""A Cinder back end of sparse raw files in one folder of this machine.

None of Cinder's own does without device-mapper, a network file system or
a storage cluster; this needs nothing of the kernel for files.  The rest of
Cinder, and all of Nova and os-brick, are theirs: volumes reach a host as those
of IBM's GPFS do, a file at the same path on every host, which Nova gives to
QEMU without connecting anything.  What nova's block device mapping holds::

    {"driver_volume_type": "gpfs",
     "data": {"name": "volume-UUID", "device_path": "FOLDER/volume-UUID",
              "qos_specs": null, "access_mode": "rw", "encrypted": false,
              "cacheable": false, "enforce_multipath": true},
     "status": "reserved", "instance": "UUID of the server",
     "attached_at": "", "detached_at": "", "volume_id": "UUID",
     "serial": "UUID"}

and in the domain::

    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='FOLDER/volume-UUID'/><target dev='vdb' bus='virtio'/>
      <serial>UUID</serial><alias name='ua-UUID'/></disk>

A volume made with the metadata ``connect=device`` is a device instead, as
one of iSCSI or Fibre Channel, and another device on each host: a loop device,
from the moment that a host's attachment is made until it is deleted.  Who has
which stands beside the file: see `note`.

A snapshot is a copy; of a volume that is being written, a torn one.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import typing

from cinder.volume.drivers import remotefs
from oslo_config import cfg

OPTIONS = [
    cfg.StrOpt("files_folder", help="Existing folder of the volumes' files."),
    cfg.BoolOpt("files_sparsed_volumes", default=True, help="Sparse files."),
]


def note(path: str, host: str) -> pathlib.Path:
    """Where the device of a volume on a host is written down.

    :param path: of the volume's file.
    :param host: as nova calls it.
    """
    return pathlib.Path(f"{path}@{host}")


def _losetup(*words: str) -> str:
    return subprocess.run(
        ["/usr/sbin/losetup", *words],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


class FilesDriver(remotefs.RemoteFSDriver):  # type: ignore[misc]
    """Its share is a folder that is there already."""

    VERSION = "1.0"
    driver_volume_type = "gpfs"
    driver_prefix = "files"
    _thin_provisioning_support = True

    def __init__(self, *args: typing.Any, **words: typing.Any) -> None:
        super().__init__(*args, **words)
        self.configuration.append_config_values(OPTIONS)
        # The cloud runs as root: no sudo, no rootwrap.
        self._execute_as_root = False
        self._supports_encryption = True

    # -- the share

    def _ensure_share_mounted(self, share: str) -> None:
        """Nothing to mount."""

    def _ensure_shares_mounted(self) -> None:
        self._mounted_shares = [self.configuration.files_folder]

    def _find_share(self, volume: typing.Any) -> str:
        return str(self.configuration.files_folder)

    def _get_mount_point_for_share(self, path: str) -> str:
        return path

    def _get_capacity_info(self, share: str) -> tuple[int, int, int]:
        found = shutil.disk_usage(share)
        return found.total, found.free, found.used

    def _update_volume_stats(self) -> None:
        """Sparse files: as much as is asked for; no host would notice that
        an attached one grew; several may have one at once."""
        super()._update_volume_stats()
        self._stats["online_extend_support"] = False
        self._stats["multiattach"] = True
        for name in ("total_capacity_gb", "free_capacity_gb"):
            self._stats[name] = "infinite"

    # -- what Cinder asks of a back end

    def initialize_connection(
        self, volume: typing.Any, connector: typing.Any
    ) -> dict[str, typing.Any]:
        kind, path = self.driver_volume_type, self.local_path(volume)
        if (volume.metadata or {}).get("connect") == "device":
            where = note(path, connector["host"])
            if not where.exists():
                where.write_text(_losetup("--find", "--show", path))
            kind, path = "local", where.read_text()
        return {
            "driver_volume_type": kind,
            "data": {"name": volume.name, "device_path": path},
        }

    def terminate_connection(
        self,
        volume: typing.Any,
        connector: dict[str, typing.Any] | None,
        **words: typing.Any,
    ) -> None:
        """Of one host, or of all."""
        where = note(
            self.local_path(volume), connector["host"] if connector else "*"
        )
        for found in where.parent.glob(where.name):
            _losetup("--detach", found.read_text())
            found.unlink()

    def _create_encrypted_volume_file(
        self, path: str, size_gb: int, encryption: typing.Any, ctxt: typing.Any
    ) -> None:
        """Of a volume type with encryption: Nova makes the LUKS header at
        the first attachment, as in a volume of LVM."""
        self._create_sparsed_file(path, size_gb)

    def extend_volume(self, volume: typing.Any, new_size: int) -> None:
        """To that many GiB."""
        self._create_sparsed_file(self.local_path(volume), new_size)

    def _snapshot_path(self, snapshot: typing.Any) -> str:
        return os.path.join(self.configuration.files_folder, snapshot.name)

    def _copy(self, source: str, target: str) -> None:
        self._execute("cp", "--sparse=always", "--", source, target)

    def create_snapshot(self, snapshot: typing.Any) -> None:
        self._copy(
            self.local_path(snapshot.volume), self._snapshot_path(snapshot)
        )

    def delete_snapshot(self, snapshot: typing.Any) -> None:
        self._delete(self._snapshot_path(snapshot))

    def create_volume_from_snapshot(
        self, volume: typing.Any, snapshot: typing.Any
    ) -> dict[str, str]:
        volume.provider_location = self._find_share(volume)
        path = self.local_path(volume)
        self._copy(self._snapshot_path(snapshot), path)
        self._create_sparsed_file(path, volume.size)
        return {"provider_location": volume.provider_location}
