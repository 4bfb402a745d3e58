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
"""Encrypt a plain image into qcow2 with LUKS inside.

The header is written by ``mh_core.image``; ``qemu-img convert`` fills it.
Only ciphertext is ever written.  The passphrase reaches the tool through a
memfd: it is in no file, no argument and no environment.
"""

import fcntl
import hashlib
import os
import re
import resource
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from mh_core.errors import InputError, MHError, Unavailable
from mh_core.image import luks1, overlay, qcow2
from mh_core.secret import Secret
from mh_glance.inspect import Source, inspect, tool_environment
from mh_glance.progress import Progress, Silent

EVENT = "client.encrypt"
_CHUNK = 1 << 20
_PERCENT = re.compile(rb"\(([0-9]{1,3})\.[0-9]+/100%\)")


@dataclass(frozen=True)
class Ciphertext:
    """An encrypted image file; all figures are of the whole file.

    :param path: the only file written; it holds ciphertext.
    :param size: bytes.
    :param virtual_size: bytes the guest sees.
    """

    path: str
    size: int
    virtual_size: int
    sha256: str
    sha512: str
    luks_uuid: str


@contextmanager
def work_dir(beside: str) -> Iterator[str]:
    """A directory of our own (0700) for ciphertext, removed at the end.

    In the folder of the source, where there is likely to be room; else
    where temporary files go.
    """
    folder = os.path.dirname(os.path.abspath(beside))
    home = folder if os.access(folder, os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix=".mh-image-", dir=home) as own:
        yield own


def _memfd(data: bytes) -> int:
    fd = os.memfd_create("mh", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(
        fd,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK,
    )
    return fd


def _follow(stream: IO[bytes], progress: Progress) -> None:
    """Read ``qemu-img -p``: "    (12.34/100%)" and a carriage return."""
    tail = b""
    while chunk := os.read(stream.fileno(), 4096):
        tail = (tail + chunk)[-256:]
        if found := _PERCENT.findall(tail):
            progress.update(int(found[-1]), 100)


def _convert(
    source: int, form: Source, target: int, key: Secret, progress: Progress
) -> None:
    secret = _memfd(luks1.passphrase(key.reveal()))
    argv = [
        "qemu-img", "convert", "-p", "-n", "--target-is-zero",
        "--object", f"secret,id=mh,file=/dev/fd/{secret}",
        "--image-opts", "--target-image-opts",
        f"driver={form.driver},file.driver=file,"
        f"file.filename=/dev/fd/{source}",
        "driver=qcow2,encrypt.format=luks,encrypt.key-secret=mh,"
        f"file.driver=file,file.filename=/dev/fd/{target}",
    ]  # fmt: skip
    try:
        child = subprocess.Popen(
            argv,
            pass_fds=(source, target, secret),
            env=tool_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as exc:
        raise Unavailable(
            EVENT + ".qemu-img", "qemu-img is not installed (qemu-utils)"
        ) from exc
    finally:
        os.close(secret)
    try:
        # a core dump of the tool would hold the key
        resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))
    except ProcessLookupError:
        pass
    with child:
        try:
            if child.stdout is not None:
                _follow(child.stdout, progress)
            words = child.stderr.read(2048) if child.stderr else b""
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        text = words.decode("utf-8", "replace").strip().split("\n")[-1]
        raise MHError(EVENT + ".qemu-img", f"qemu-img failed: {text[:300]}")
    progress.finish()


def digests(
    fd: int, size: int, progress: Progress | None = None
) -> tuple[str, str]:
    """SHA-256 and SHA-512 (hex) of the first ``size`` bytes of a file.

    :raises InputError: ``client.encrypt.read``: the file is shorter.
    """
    progress = progress or Silent()
    first, second = hashlib.sha256(), hashlib.sha512()
    done = 0
    while done < size:
        data = os.pread(fd, min(_CHUNK, size - done), done)
        if not data:
            raise InputError(EVENT + ".read", "the file became shorter")
        first.update(data)
        second.update(data)
        done += len(data)
        progress.update(done, size)
    progress.finish()
    return first.hexdigest(), second.hexdigest()


def encrypt(
    path: str,
    target: str,
    key: Secret,
    *,
    form: str | None = None,
    luks_uuid: uuid.UUID | None = None,
    random: Callable[[int], bytes] = os.urandom,
    convert_progress: Progress | None = None,
    hash_progress: Progress | None = None,
) -> Ciphertext:
    """Make an encrypted image from a plain one.

    1. the source is inspected, and stays open from here on;
    2. an empty encrypted image of the same virtual size is written;
    3. qemu-img fills it; holes stay holes;
    4. the result is parsed as strictly as a host will, and hashed.

    :param target: a file that does not exist yet.
    :param key: 32 bytes.
    :param form: format of the source, see ``mh_glance.inspect.inspect``.
    :raises InputError: ``client.image.*``, ``client.encrypt.file``.
    :raises MHError: ``client.encrypt.qemu-img``.
    """
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise InputError(
            EVENT + ".file", f"cannot read {path}: {exc.strerror}"
        ) from exc
    try:
        # 1
        found = inspect(source, form)
        out = os.open(
            target, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600
        )
        try:
            # 2
            name = luks_uuid or uuid.uuid4()
            overlay.write(
                out, found.virtual_size, key.reveal(), name, random, None
            )
            # 3
            _convert(source, found, out, key, convert_progress or Silent())
            # 4
            header, luks = qcow2.inspect(out)
            qcow2.check(header, backing=None, virtual_size=found.virtual_size)
            size = os.fstat(out).st_size
            sha256, sha512 = digests(out, size, hash_progress)
        finally:
            os.close(out)
    except OSError as exc:
        raise InputError(
            EVENT + ".file", f"cannot write the image: {exc.strerror}"
        ) from exc
    finally:
        os.close(source)
    return Ciphertext(
        target, size, found.virtual_size, sha256, sha512, str(luks.uuid)
    )
