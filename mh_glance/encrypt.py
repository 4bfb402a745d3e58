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

from mh_core.errors import (
    InputError,
    MHError,
    Unavailable,
    VerificationError,
)
from mh_core.image import disk, luks1, overlay
from mh_core.manifest import Container
from mh_core.secret import Secret
from mh_glance.inspect import Source, inspect, tool_environment
from mh_glance.progress import Progress, Silent

EVENT = "client.encrypt"
#: Of images: read much, never written again, held against their digest.
#: QEMU decrypts it several times as fast as XTS, which overlays have (ADR 80).
CIPHER = "cbc-essiv:sha256"
_CHUNK = 1 << 20
_PERCENT = re.compile(rb"\(([0-9]{1,3})\.[0-9]+/100%\)")


@dataclass(frozen=True)
class Ciphertext:
    """An encrypted image file; all figures are of the whole file.

    :param path: the only file written; it holds ciphertext.
    :param size: bytes.
    :param virtual_size: bytes the guest sees.
    :param format: as in a manifest.
    :param container: where the file is an OVA.
    :param note: what the tenant should know, or empty.
    """

    path: str
    size: int
    virtual_size: int
    sha256: str
    sha512: str
    luks_uuid: str
    format: str = "qcow2+luks"
    container: Container | None = None
    note: str = ""

    @property
    def disk_format(self) -> str:
        """The image service's word; it has none for LUKS."""
        return "qcow2" if self.format == "qcow2+luks" else "raw"

    @property
    def container_format(self) -> str:
        return "bare" if self.container is None else "ova"


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


#: A hole of raw LUKS would not decrypt to zeros, so none is left there.
_TARGETS = {
    "qcow2": (
        "--target-is-zero",
        "driver=qcow2,encrypt.format=luks,encrypt.key-secret=mh",
    ),
    "luks": ("driver=luks,key-secret=mh",),
}


def _convert(
    source: int,
    form: Source,
    target: int,
    kind: str,
    key: Secret,
    progress: Progress,
) -> None:
    secret = _memfd(luks1.passphrase(key.reveal()))
    argv = [
        "qemu-img", "convert", "-p", "-n",
        "--object", f"secret,id=mh,file=/dev/fd/{secret}",
        "--image-opts", "--target-image-opts",
        form.options(source),
        *_TARGETS[kind],
    ]  # fmt: skip
    argv[-1] += f",file.driver=file,file.filename=/dev/fd/{target}"
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
    kind: str = "qcow2",
    luks_uuid: uuid.UUID | None = None,
    random: Callable[[int], bytes] = os.urandom,
    convert_progress: Progress | None = None,
    hash_progress: Progress | None = None,
) -> Ciphertext:
    """Make an encrypted image from a plain one.

    1. the source is inspected, and stays open from here on;
    2. an empty encrypted image of the same virtual size is written;
    3. qemu-img fills it; holes stay holes, but for raw LUKS;
    4. the result is parsed as strictly as a host will, and hashed.

    :param target: a file that does not exist yet.
    :param key: 32 bytes.
    :param form: format of the source, see ``mh_glance.inspect.inspect``.
    :param kind: of the result: qcow2, or luks for raw LUKS1.
    :raises InputError: ``client.image.*``, ``client.encrypt.file``.
    :raises MHError: ``client.encrypt.qemu-img``.
    """
    source = _open(path)
    try:
        # 1
        found = inspect(source, form)
        out = os.open(
            target, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600
        )
        try:
            # 2
            name = luks_uuid or uuid.uuid4()
            size = found.virtual_size
            if kind == "luks":
                area, _ = luks1.build(
                    luks1.passphrase(key.reveal()), name, random, CIPHER
                )
                os.write(out, area)
                os.ftruncate(out, len(area) + size)
            else:
                overlay.write(
                    out, size, key.reveal(), name, random, None, CIPHER
                )
            # 3
            _convert(
                source, found, out, kind, key, convert_progress or Silent()
            )
            # 4
            made = disk.check(out, kind, size)
            return _described(
                target, out, kind, made, hash_progress, found.note
            )
        finally:
            os.close(out)
    except OSError as exc:
        raise InputError(
            EVENT + ".file", f"cannot write the image: {exc.strerror}"
        ) from exc
    finally:
        os.close(source)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise InputError(
            EVENT + ".file", f"cannot read {path}: {exc.strerror}"
        ) from exc


def _described(
    path: str,
    fd: int,
    kind: str,
    made: disk.EncryptedDisk,
    progress: Progress | None,
    note: str = "",
) -> Ciphertext:
    size = os.fstat(fd).st_size
    sha256, sha512 = digests(fd, size, progress)
    return Ciphertext(
        path,
        size,
        made.virtual_size,
        sha256,
        sha512,
        str(made.luks.uuid),
        "luks" if kind == "luks" else "qcow2+luks",
        note=note,
    )


def adopt(
    path: str, key: Secret, hash_progress: Progress | None = None
) -> Ciphertext:
    """A raw LUKS1 image that the tenant has encrypted by other means.

    Its passphrase must be the key's 64 hex digits, as for images made here.

    :raises InputError: ``client.encrypt.file``, ``client.encrypt.luks``.
    """
    fd = _open(path)
    try:
        found = disk.check(fd, "luks")
        master = disk.unlock(fd, found, luks1.passphrase(key.reveal()))
        disk.check_content(fd, found, master)
        return _described(path, fd, "luks", found, hash_progress)
    except (InputError, VerificationError) as exc:
        if exc.event.startswith(EVENT):
            raise
        raise InputError(
            EVENT + ".luks", f"not usable: {exc.message} ({exc.event})"
        ) from None
    finally:
        os.close(fd)
