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
"""libvirt's save directory on an ext4 with encryption, as on a real host."""

from __future__ import annotations

import collections.abc
import contextlib

from tests.minicloud.node import Node

SAVE = "/var/lib/libvirt/qemu/save"
_MOUNT = f"""
truncate -s $SIZE $ROOT/save.img
mkfs.ext4 -q -O encrypt $ROOT/save.img
mkdir -p $ROOT/save-disk
mount -o loop $ROOT/save.img $ROOT/save-disk
python -m mh_nova.cmd.save_dir $ROOT/save-disk/save
mount --bind $ROOT/save-disk/save {SAVE}
"""
_UNMOUNT = f"umount {SAVE}; umount $ROOT/save-disk; rm -f $ROOT/save.img"


@contextlib.contextmanager
def encrypted(node: Node, size: str = "128M") -> collections.abc.Iterator[str]:
    """While the context lasts, on a node that runs.

    :param size: of the file system, as ``truncate`` takes it.
    :returns: why there is none (the kernel has no fscrypt, say), or "".
    """
    env = {"ROOT": str(node.folder), "SIZE": size}
    done = node.command(["sh", "-ec", _MOUNT], env=env, check=False)
    if done.returncode:
        yield f"no ext4 with encryption here: {done.stderr[-200:]}"
        return
    try:
        yield ""
    finally:
        node.command(["sh", "-c", _UNMOUNT], env=env, check=False)
