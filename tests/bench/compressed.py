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
"""What a compressed image inside LUKS would bring, and what it costs.

``python -m tests.bench.compressed [MiB] [folder with real files]``: three
bases of the same content under an overlay of ours, in turns:

``plain``
    a zstd qcow2, not encrypted: what people upload today;
``encrypted``
    qcow2 with LUKS inside: what we make of it;
``export``
    a zstd qcow2 inside raw LUKS, opened by a qemu-nbd of its own and read
    through a unix socket; booted as well.

For each: bytes moved, milliseconds until the first MiB is read (the export's
own start included), 4 KiB reads 68 KiB apart and 1 MiB reads in order, in
microseconds of CPU for each request, of all processes, and the export's
memory. The last line is JSON.
"""

import contextlib
import json
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from mh_core.image import luks1, overlay
from mh_core.secret import Secret
from mh_glance import encrypt
from tests.minicloud import bootimage

MIB = 1 << 20
BASE, TOP = bytes(range(32)), bytes(range(32, 64))
ROUNDS = 3


def _secret(key: bytes) -> int:
    fd = os.memfd_create("mh")
    os.write(fd, luks1.passphrase(key))
    return fd


class Keys:
    """Both keys as arguments and descriptors of a tool."""

    def __init__(self) -> None:
        self.fds = [_secret(BASE), _secret(TOP)]
        self.words = [
            word
            for name, fd in zip(("base", "top"), self.fds, strict=True)
            for word in ("--object", f"secret,id={name},file=/dev/fd/{fd}")
        ]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


def content(path: Path, size: int, files: str) -> None:
    """Real files, as many as fit."""
    with subprocess.Popen(
        ["tar", "cf", "-", "-C", files, "."],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as tar:
        assert tar.stdout is not None
        with path.open("wb") as out:
            while out.tell() < size and (
                data := tar.stdout.read(min(MIB, size - out.tell()))
            ):
                out.write(data)
            out.truncate(size)
        tar.stdout.close()


def compress(raw: Path, made: Path) -> None:
    subprocess.run(
        [
            *("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2"),
            *("-o", "compression_type=zstd", raw, made),
        ],
        check=True,
    )


def seal(qcow2: Path, made: Path) -> None:
    """The whole file becomes the payload of raw LUKS1."""
    area, _ = luks1.build(luks1.passphrase(BASE), uuid.uuid4(), os.urandom)
    size = -(-qcow2.stat().st_size // 512) * 512
    os.truncate(qcow2, size)
    made.write_bytes(area)
    os.truncate(made, len(area) + size)
    keys = Keys()
    subprocess.run(
        [
            *("qemu-img", "convert", "-n", "-f", "raw", *keys.words),
            *("--target-image-opts", qcow2),
            f"driver=luks,key-secret=base,file.filename={made}",
        ],
        pass_fds=keys.fds,
        check=True,
    )
    keys.close()


def ours(folder: Path, size: int) -> str:
    """An overlay, and its node without the backing file."""
    path = folder / f"overlay-{secrets.token_hex(4)}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    # the backing file is named on the command line
    overlay.write(fd, size, TOP, uuid.uuid4(), os.urandom, None)
    os.close(fd)
    return (
        "driver=qcow2,encrypt.format=luks,encrypt.key-secret=top,"
        f"file.driver=file,file.filename={path},"
    )


@contextlib.contextmanager
def export(image: Path, socket: Path, keys: Keys) -> Iterator[int]:
    """qemu-nbd over the compressed image; its pid."""
    node = (
        "driver=qcow2,file.driver=luks,file.key-secret=base,"
        f"file.file.driver=file,file.file.filename={image}"
    )
    with subprocess.Popen(
        [
            *("qemu-nbd", "--read-only", "--persistent", "--shared=8"),
            *("--socket", socket, *keys.words, "--image-opts", node),
        ],
        pass_fds=keys.fds,
    ) as child:
        try:
            while not socket.exists():
                time.sleep(0.001)
            yield child.pid
        finally:
            child.terminate()
            child.wait()
            socket.unlink(missing_ok=True)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def process_cpu(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def reads(node: str, keys: Keys, count: int, size: int, step: int) -> float:
    """CPU seconds of so many reads by qemu-io."""
    lines = "".join(f"read -q {i * step} {size}\n" for i in range(count))
    before = cpu()
    subprocess.run(
        ["qemu-io", *keys.words, "--image-opts", node],
        pass_fds=keys.fds,
        input=lines.encode(),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return cpu() - before


def first(node: str, keys: Keys) -> None:
    subprocess.run(
        ["qemu-io", *keys.words, "-c", "read 0 1M", "--image-opts", node],
        pass_fds=keys.fds,
        stdout=subprocess.DEVNULL,
        check=True,
    )


def measured(node: str, keys: Keys, size: int, pid: int) -> dict[str, float]:
    """
    :param pid: of an export whose CPU counts, or 0.
    """
    found = {}
    for name, length, step in (("rand", 4096, 68 * 1024), ("seq", MIB, MIB)):
        count = (size - MIB) // step
        before = process_cpu(pid) if pid else 0.0
        used = reads(node, keys, count, length, step)
        used += (process_cpu(pid) if pid else 0.0) - before
        # what qemu-io itself costs
        used -= reads(f"driver=null-co,size={size}", keys, count, length, step)
        found[f"{name}_us"] = used / count * 1e6
    return found


def one_round(
    folder: Path, bases: dict[str, Path], size: int
) -> dict[str, dict[str, float]]:
    keys = Keys()
    rows: dict[str, dict[str, float]] = {}
    backing = {
        "plain": "backing.driver=qcow2,backing.file.driver=file,"
        f"backing.file.filename={bases['plain']}",
        "encrypted": "backing.driver=qcow2,backing.encrypt.format=luks,"
        "backing.encrypt.key-secret=base,backing.file.driver=file,"
        f"backing.file.filename={bases['encrypted']}",
    }
    for name, below in backing.items():
        node = ours(folder, size) + below
        begin = time.monotonic()
        first(node, keys)
        opened = (time.monotonic() - begin) * 1e3
        rows[name] = {"open_ms": opened, **measured(node, keys, size, 0)}
    socket = folder / "nbd"
    node = ours(folder, size) + through(socket)
    begin = time.monotonic()
    with export(bases["export"], socket, keys) as pid:
        first(node, keys)
        opened = (time.monotonic() - begin) * 1e3
        row = {"open_ms": opened, **measured(node, keys, size, pid)}
        status = Path(f"/proc/{pid}/status").read_text()
        peak = status.partition("VmHWM:")[2].split()[0]
        rows["export"] = {**row, "export_kib": float(peak)}
    keys.close()
    return rows


def through(socket: Path) -> str:
    return (
        "backing.driver=raw,backing.file.driver=nbd,"
        f"backing.file.server.type=unix,backing.file.server.path={socket}"
    )


def boots(folder: Path) -> bool:
    """A guest that starts from the compressed image, through the export."""
    token = b"token-" + secrets.token_hex(8).encode()
    raw = bootimage.write(folder / "boot.raw", token)
    compress(raw, folder / "boot.z")
    seal(folder / "boot.z", folder / "boot.luks")
    keys, socket = Keys(), folder / "nbd-boot"
    serial = folder / "serial"
    with export(folder / "boot.luks", socket, keys):
        node = ours(folder, MIB) + through(socket)
        with subprocess.Popen(
            [
                *("qemu-system-x86_64", "-nodefaults", "-display", "none"),
                *("-m", "64", "-serial", f"file:{serial}"),
                *(word.replace("--", "-") for word in keys.words),
                *("-drive", f"if=virtio,{node}"),
            ],
            pass_fds=keys.fds,
        ) as guest:
            end = time.monotonic() + 60
            seen = False
            while not seen and time.monotonic() < end:
                time.sleep(0.1)
                seen = serial.exists() and token in serial.read_bytes()
            guest.kill()
    keys.close()
    return seen


def main() -> None:
    size = int(sys.argv[1]) * MIB if len(sys.argv) > 1 else 256 * MIB
    files = sys.argv[2] if len(sys.argv) > 2 else "/usr/lib"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / "raw"
        content(raw, size, files)
        bases = {
            kind: folder / kind for kind in ("plain", "encrypted", "export")
        }
        compress(raw, bases["plain"])
        compress(raw, folder / "z")
        seal(folder / "z", bases["export"])
        encrypt.encrypt(
            str(raw), str(bases["encrypted"]), Secret(BASE), form="raw"
        )
        rounds = [one_round(folder, bases, size) for _ in range(ROUNDS)]
        rows = {
            kind: {
                "mib": round(bases[kind].stat().st_size / MIB, 1),
                **{
                    key: round(min(one[kind][key] for one in rounds), 1)
                    for key in rounds[0][kind]
                },
            }
            for kind in bases
        }
        for kind, row in rows.items():
            print(f"{kind:<10} {row}")
        print(
            json.dumps(
                {"benchmark": "compressed", "booted": boots(folder), **rows}
            )
        )


if __name__ == "__main__":
    main()
