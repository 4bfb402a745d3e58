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
"""The agent with the seed's own design, for the benchmark only.

Before the launch the whole image is decrypted and encrypted again into the
instance's own LUKS file.  Header, key release, TPM and checks are ours, so
that the difference is the design's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from mh_core.image.luks1 import passphrase
from mh_nova.agent.attempt import Opened
from mh_nova.agent.facts import base_path
from mh_nova.agent.launch import Launcher
from mh_nova.agent.measure import Measured
from mh_nova.agent.store import DiskRecord, InstanceRecord
from mh_nova.cmd import agent

_honest = Launcher._make_disk


def _memfd(secret: bytes) -> int:
    fd = os.memfd_create("bench")
    os.write(fd, secret)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _copying(
    self: Launcher,
    record: InstanceRecord,
    disk: DiskRecord,
    opened: Opened,
    measured: Measured,
) -> DiskRecord:
    made = _honest(self, record, disk, opened, measured)
    base = base_path(self._p.root, record, disk)
    if base is None:
        return made
    path = os.path.join(self._conf.instances_path, record.instance, disk.name)
    key = opened.payload.overlay_keys[disk.name]
    source = _memfd(passphrase(opened.payload.dek.reveal()))
    target = _memfd(passphrase(key.reveal()))

    def image(name: str, secret: str) -> str:
        options = {
            "driver": "qcow2",
            "encrypt.format": "luks",
            "encrypt.key-secret": secret,
            "file.driver": "file",
            "file.filename": name,
            "backing": None,
        }
        return "json:" + json.dumps(options)

    try:
        subprocess.run(
            [
                *("qemu-img", "convert", "-n", "-W", "-m", "4"),
                *("--object", f"secret,id=in,file=/dev/fd/{source}"),
                *("--object", f"secret,id=out,file=/dev/fd/{target}"),
                *("-O", "qcow2", image(base.path, "in"), image(path, "out")),
            ],
            pass_fds=(source, target),
            check=True,
        )
    finally:
        os.close(source)
        os.close(target)
    return made


if __name__ == "__main__":
    Launcher._make_disk = _copying  # type: ignore[method-assign]
    sys.exit(agent.main())
