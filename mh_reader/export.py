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
"""An image as a block export of one connection; nothing in clear on a disk.

``qemu-nbd`` opens the image through descriptors it is handed, the key in a
memfd.  Its socket lies in a directory of our own that is gone as soon as we
are connected, and it serves one connection.
"""

import fcntl
import os
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from mh_core.errors import Unavailable
from mh_core.secret import Secret
from mh_reader.nbd import Nbd

EVENT = "reader.export"
_START = 20.0
_POLL = 0.004
#: Of an encrypted disk: QEMU's driver to how it is told the key.
_KEYED = {
    "qcow2": "driver=qcow2,encrypt.format=luks,encrypt.key-secret=mh",
    "luks": "driver=luks,key-secret=mh",
}


class Source(Protocol):
    """Blocks of a disk.

    :param size: bytes.
    """

    size: int

    def read(self, offset: int, count: int) -> bytes: ...


def _memfd(data: bytes) -> int:
    fd = os.memfd_create("mh", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(
        fd,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK,
    )
    return fd


def encrypted(
    fd: int, driver: str, passphrase: Secret
) -> AbstractContextManager[Source]:
    """A disk as a host keeps it.

    :param fd: open for reading.
    :param driver: qcow2 (with LUKS inside), or luks.
    :raises Unavailable: as :func:`exported`.
    """
    options = f"{_KEYED[driver]},file.driver=file,file.locking=off"
    return exported(fd, f"{options},file.filename=/dev/fd/{fd}", passphrase)


@contextmanager
def exported(
    fd: int, image: str, passphrase: Secret | None = None, timeout: int = 60
) -> Iterator[Source]:
    """
    :param fd: the image, open for reading.
    :param image: QEMU's options for it; they name the format, and
        ``/dev/fd/<fd>``.
    :param passphrase: the secret ``mh`` in the options.
    :param timeout: seconds for one answer of the export.
    :raises Unavailable: ``reader.export.qemu-nbd``, ``reader.nbd.*``.
    """
    argv = ["qemu-nbd", "--read-only", "--shared=1", "--cache=writeback"]
    pass_fds = [fd]
    if passphrase is not None:
        secret = _memfd(passphrase.reveal())
        pass_fds.append(secret)
        argv += ["--object", f"secret,id=mh,file=/dev/fd/{secret}"]
    with tempfile.TemporaryDirectory(prefix="mh-nbd-") as folder:
        path = f"{folder}/s"
        argv += ["--socket", path, "--image-opts", image]
        try:
            child = subprocess.Popen(
                argv,
                pass_fds=pass_fds,
                env={"PATH": os.environ.get("PATH", os.defpath)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError as exc:
            raise Unavailable(
                EVENT + ".qemu-nbd", "qemu-nbd is not installed (qemu-utils)"
            ) from exc
        finally:
            if passphrase is not None:
                os.close(secret)
        try:
            connection = _connect(child, path)
        except BaseException:
            _end(child)
            raise
    nbd: Nbd | None = None
    try:
        connection.settimeout(timeout)
        nbd = Nbd(connection)
        yield nbd
    finally:
        connection.close()
        _end(child)


def _connect(child: "subprocess.Popen[bytes]", path: str) -> socket.socket:
    try:
        # a core dump of the tool would hold the key
        resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))
    except ProcessLookupError:
        pass
    end = time.monotonic() + _START
    while time.monotonic() < end:
        if child.poll() is not None:
            break
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            time.sleep(_POLL)
            continue
        return connection
    child.kill()
    words = child.stderr.read(2048) if child.stderr else b""
    text = words.decode("utf-8", "replace").strip().split("\n")[-1]
    raise Unavailable(EVENT + ".qemu-nbd", f"qemu-nbd failed: {text[:200]}")


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    child.wait()
    if child.stderr:
        child.stderr.close()
