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
"""What the measuring process runs, and the digest of it.

The sources go to the process as one zip archive in a memfd and the libraries
as open descriptors: what was hashed is what runs, whatever happens to the
files' names meanwhile.
"""

import fcntl
import hashlib
import importlib.util
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mh_core.encoding import labelled_digest
from mh_core.errors import Denied, Unavailable

EVENT = "reader.program"
#: What a library is used for, and its module.
LIBRARIES = {
    "ext": "pyfsext",
    "xfs": "pyfsxfs",
    "fat": "pyfsfat",
    "ntfs": "pyfsntfs",
    "gpt": "pyvsgpt",
    "lvm": "pyvslvm",
}
_MAIN = b"from mh_reader.inside.main import main\nmain()\n"
_THEN = (1980, 1, 1, 0, 0, 0)
_LARGEST = 64 << 20


@dataclass(frozen=True)
class Program:
    """Open files; valid within :func:`opened`.

    :param archive: descriptor of the zip archive.
    :param libraries: use to (module, descriptor).
    :param digest: SHA-256 (hex) over all of them.
    """

    archive: int
    libraries: dict[str, tuple[str, int]]
    digest: str


def _sources() -> dict[str, bytes]:
    root = Path(__file__).resolve().parent
    found = {
        f"mh_reader/inside/{path.name}": path.read_bytes()
        for path in sorted((root / "inside").glob("*.py"))
    }
    found["mh_reader/__init__.py"] = (root / "__init__.py").read_bytes()
    found["__main__.py"] = _MAIN
    return found


def _archive(sources: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(sources):
            archive.writestr(zipfile.ZipInfo(name, _THEN), sources[name])
    return out.getvalue()


def _memfd(data: bytes) -> int:
    fd = os.memfd_create("mh-reader", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(
        fd,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK,
    )
    return fd


def _library(module: str) -> int:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin:
        raise Unavailable(EVENT + ".library", f"{module} is not installed")
    return os.open(spec.origin, os.O_RDONLY | os.O_CLOEXEC)


def _hash(fd: int) -> bytes:
    digest = hashlib.sha256()
    size = 0
    while part := os.pread(fd, 1 << 20, size):
        digest.update(part)
        size += len(part)
        if size > _LARGEST:
            raise Denied(EVENT + ".library", "a library is too large")
    return digest.digest()


@contextmanager
def opened(expected: str = "") -> Iterator[Program]:
    """
    :param expected: the only digest (hex) that will do; empty: any.
    :raises Unavailable: ``reader.program.library``: not installed.
    :raises Denied: ``reader.program.digest``.
    """
    with ExitStack() as stack:
        try:
            archive = _archive(_sources())
            libraries = {}
            parts = [hashlib.sha256(archive).digest()]
            for use, module in LIBRARIES.items():
                fd = _library(module)
                stack.callback(os.close, fd)
                libraries[use] = (module, fd)
                parts += [use.encode(), _hash(fd)]
            fd = _memfd(archive)
            stack.callback(os.close, fd)
        except OSError as exc:
            raise Unavailable(
                EVENT + ".read", f"the reader cannot be read: {exc.strerror}"
            ) from exc
        digest = labelled_digest("mh/reader/v1", parts).hex()
        if expected and digest != expected:
            raise Denied(
                EVENT + ".digest",
                f"the measuring program is {digest[:16]}…, not the expected "
                f"{expected[:16]}…",
            )
        yield Program(fd, libraries, digest)


def digest() -> str:
    """Of the program that is installed (hex)."""
    with opened() as program:
        return program.digest
