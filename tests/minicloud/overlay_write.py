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
"""Writing into an instance's encrypted disk while it is off.

With the keys that only tenant and key server have: what a guest would have
written, without a guest that can.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
import typing
import uuid

from mh_core import jose
from mh_core.image.luks1 import passphrase
from tests.minicloud.kms_inside import overlay_key
from tests.minicloud.node import Node
from tests.minicloud.process import CloudError
from tests.minicloud.world import World

_SECTOR = 512


def dek(world: World, key_id: str) -> bytes:
    """A key, as its owner: by the key server's delivery."""
    own = jose.generate_key()
    answer = world.kms(
        "POST", f"/v1/keys/{key_id}/deliver", {"jwk": jose.public(own)}
    )
    return jose.unwrap(answer["jwe"], own, b"mh/key-deliver/v1")


def record(node: Node, instance: str) -> dict[str, typing.Any]:
    """The agent's record of an instance."""
    state = node.folder / "var/lib/mystery-hill/agent/instances"
    found: dict[str, typing.Any] = json.loads(
        (state / f"{instance}.json").read_text()
    )
    return found


def disk_key(world: World, node: Node, instance: str) -> bytes:
    """The key of an instance's root disk, from the key server's database."""
    known = record(node, instance)
    [disk] = [one for one in known["disks"] if one["name"] == "disk"]
    return overlay_key(
        world.product.mh / "kms" / "mh-kms.conf",
        known["key_id"],
        uuid.UUID(instance),
        "disk",
        uuid.UUID(disk["luks_uuid"]),
    )


def _memfd(data: bytes) -> int:
    fd = os.memfd_create("token")
    os.write(fd, data)
    return fd


def write_token(world: World, node: Node, instance: str) -> str:
    """Put a new console token into the second sector; the token."""
    known = record(node, instance)
    [disk] = [one for one in known["disks"] if one["name"] == "disk"]
    instances = node.folder / "instances"
    token = "written-" + secrets.token_hex(8)
    fds = [
        _memfd(token.encode().ljust(_SECTOR, b"\0")),
        _memfd(passphrase(disk_key(world, node, instance))),
    ]
    options = (
        "driver=qcow2,encrypt.format=luks,encrypt.key-secret=top,"
        f"file.driver=file,file.filename={instances / instance / 'disk'}"
    )
    if disk["base"]:
        fds.append(_memfd(passphrase(dek(world, known["key_id"]))))
        name = hashlib.sha1(known["image"].encode()).hexdigest()  # noqa: S324
        options += (
            ",backing.driver=qcow2,backing.encrypt.format=luks,"
            "backing.encrypt.key-secret=base,backing.file.driver=file,"
            f"backing.file.filename={instances / '_base' / (name + '_36')}"
        )
    argv = ["qemu-io"]
    for name, fd in zip(("top", "base"), fds[1:], strict=False):
        argv += ["--object", f"secret,id={name},file=/dev/fd/{fd}"]
    command = f"write -s /dev/fd/{fds[0]} {_SECTOR} {_SECTOR}"
    try:
        done = subprocess.run(
            [*argv, "--image-opts", options, "-c", command],
            pass_fds=fds,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        for fd in fds:
            os.close(fd)
    if done.returncode or "wrote" not in done.stdout:
        raise CloudError(f"qemu-io: {done.stdout} {done.stderr}")
    return token
