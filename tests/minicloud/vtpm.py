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
"""The state of a guest's virtual TPM, as somebody with its key reads it.

Only while the guest is off: the state file is libvirt's, and swtpm keeps
what it has read of it.
"""

from __future__ import annotations

import collections.abc
import contextlib
import os
import pathlib
import shutil
import subprocess
import typing
import uuid

from mh_core import vtpm
from mh_core.image.luks1 import passphrase
from tests.minicloud.kms_inside import overlay_key
from tests.minicloud.node import Node
from tests.minicloud.pids import wait_until
from tests.minicloud.process import CloudError
from tests.minicloud.trusted import TrustedCloud

FOLDER = "var/lib/libvirt/swtpm"
FILE = "tpm2/tpm2-00.permall"
_INDEX = "0x1500016"


def folder(node: Node, instance: str) -> pathlib.Path:
    """Where libvirt keeps the TPM of an instance."""
    return node.folder / FOLDER / instance


def state(node: Node, instance: str) -> bytes:
    return (folder(node, instance) / FILE).read_bytes()


def encrypted(data: bytes) -> bool:
    """What swtpm says of a state file in its header (swtpm_nvstore.c:
    version, minimum version, size of the header, flags)."""
    if data[:4] != b"\x02\x01\x00\x0a":
        raise CloudError("not a state file of swtpm")
    return bool(int.from_bytes(data[4:6], "big") & 1)


def key(product: TrustedCloud, key_id: str, instance: str) -> bytes:
    """As the key server's own administrator, from its database."""
    name = uuid.UUID(instance)
    return overlay_key(
        product.mh / "kms" / "mh-kms.conf", key_id, name, vtpm.DISK, name
    )


@contextlib.contextmanager
def opened(
    place: pathlib.Path, secret: bytes | None
) -> collections.abc.Iterator[dict[str, str] | None]:
    """swtpm over a state folder: how tpm2-tools reach it; None where it
    does not take the key.

    :param secret: 32 bytes; None: it is in the clear.
    """
    socket = place / "sock"
    words = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={place}"]
    words += ["--server", f"type=unixio,path={socket}"]
    words += ["--ctrl", f"type=unixio,path={socket}.ctrl"]
    words += ["--flags", "not-need-init,startup-clear"]
    reader = -1
    if secret is not None:
        # never in a file: the search of this host would find it
        reader, writer = os.pipe()
        os.write(writer, passphrase(secret))
        os.close(writer)
        words += ["--key", f"pwdfd={reader},mode=aes-256-cbc"]
    process = subprocess.Popen(
        words,
        pass_fds=[reader] if secret is not None else [],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(
            lambda: process.poll() is not None or socket.exists(),
            10,
            "swtpm over a state",
        )
        # the socket comes first; a key that is wrong, then
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        if process.poll() is None:
            yield {"TPM2TOOLS_TCTI": f"swtpm:path={socket}"}
        else:
            yield None
    finally:
        process.kill()
        process.wait()
        if secret is not None:
            os.close(reader)
        for name in (socket, place / "sock.ctrl", place / ".lock"):
            name.unlink(missing_ok=True)


def _tool(env: dict[str, str], *words: str, **more: typing.Any) -> bytes:
    done = subprocess.run(
        words,
        env={**os.environ, **env},
        capture_output=True,
        check=False,
        **more,
    )
    if done.returncode:
        raise CloudError(f"{words[0]}: {done.stderr.decode().strip()}")
    return done.stdout


def mark(place: pathlib.Path, secret: bytes | None, text: bytes) -> None:
    """Put something into a TPM that only its state file keeps."""
    with opened(place, secret) as env:
        if env is None:
            raise CloudError("the key does not open the TPM's state")
        size = str(len(text))
        _tool(env, "tpm2_nvdefine", "-Q", "-C", "o", "-s", size, _INDEX)
        _tool(
            env, "tpm2_nvwrite", "-Q", "-C", "o", "-i", "-", _INDEX, input=text
        )


def read(
    place: pathlib.Path, secret: bytes | None, copy: pathlib.Path
) -> bytes | None:
    """The mark, from a copy; None where the key does not open the state.

    :param copy: a folder that is made, and removed.
    """
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    try:
        name = pathlib.PurePath(FILE).name
        shutil.copy(place / name, copy / name)
        with opened(copy, secret) as env:
            if env is None:
                return None
            return _tool(env, "tpm2_nvread", "-C", "o", _INDEX)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
