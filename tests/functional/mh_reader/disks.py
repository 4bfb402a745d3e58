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
"""File systems and disks made by Debian's own tools, without mounting."""

import hashlib
import json
import os
import pathlib
import stat
import struct
import subprocess

MIB = 1 << 20
VECTORS = pathlib.Path(__file__).resolve().parents[2] / "vectors" / "reader"


def run(*argv: str | os.PathLike[str], text: str | None = None) -> str:
    done = subprocess.run(
        list(map(str, argv)),
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (argv, done.stderr or done.stdout)
    return done.stdout


def plant(root: pathlib.Path) -> pathlib.Path:
    """A small operating system's worth of files."""
    for name in ("etc", "boot/grub/i386-pc", "usr/bin", "deep/a/b/c"):
        (root / name).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "etc/empty").write_bytes(b"")
    (root / "boot/vmlinuz-6.1").write_bytes(os.urandom(3 * MIB + 17))
    (root / "boot/initrd.img-6.1").write_bytes(os.urandom(MIB))
    (root / "boot/grub/grub.cfg").write_text("linux /boot/vmlinuz-6.1\n")
    (root / "boot/grub/i386-pc/normal.mod").write_bytes(os.urandom(5000))
    program = root / "usr/bin/program"
    program.write_bytes(os.urandom(300_000))
    program.chmod(0o4755)
    with open(root / "deep/a/sparse", "wb") as file:
        file.truncate(2 * MIB)
        file.seek(5 * MIB)
        file.write(b"end")
    for number in range(300):
        (root / f"deep/a/b/file-{number:03}").write_text(f"{number}\n")
    return root


def plant_links(root: pathlib.Path) -> None:
    """What FAT and NTFS have not."""
    (root / "etc/link").symlink_to("../usr/bin/program")
    (root / "etc/absolute").symlink_to("/etc/passwd")
    (root / "etc/long").symlink_to("/" + "x" * 200)
    (root / "vmlinuz").symlink_to("boot/vmlinuz-6.1")
    (root / "loop-a").symlink_to("loop-b")
    (root / "loop-b").symlink_to("loop-a")
    (root / "etc/\u00fcml\u00e4ut").write_text("name\n")
    os.link(root / "etc/passwd", root / "etc/hard")
    os.mkfifo(root / "deep/fifo")


def ext(
    path: pathlib.Path, folder: pathlib.Path, *options: str, mib: int = 24
) -> pathlib.Path:
    run(
        *("mke2fs", "-q", "-F", *(options or ("-t", "ext4"))),
        *("-d", folder, path, f"{mib}M"),
    )
    return path


def xfs(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """xfsprogs makes nothing smaller than 300 MiB; it is sparse."""
    lines = ["/dev/null", "0 0", "d--755 0 0"]

    def walk(directory: pathlib.Path) -> None:
        for entry in sorted(directory.iterdir()):
            status = entry.lstat()
            mode = stat.S_IMODE(status.st_mode)
            setuid = "u" if mode & stat.S_ISUID else "-"
            if entry.is_symlink():
                lines.append(f"{entry.name} l--777 0 0 {os.readlink(entry)}")
            elif entry.is_dir():
                lines.append(f"{entry.name} d--{mode & 0o777:03o} 0 0")
                walk(entry)
                lines.append("$")
            elif stat.S_ISFIFO(status.st_mode):
                lines.append(f"{entry.name} p--{mode & 0o777:03o} 0 0")
            else:
                lines.append(
                    f"{entry.name} -{setuid}-{mode & 0o777:03o} 0 0 {entry}"
                )

    walk(folder)
    lines.append("$")
    proto = path.with_suffix(".proto")
    proto.write_text("\n".join(lines) + "\n")
    _empty(path, 300 * MIB)
    run("mkfs.xfs", "-q", "-f", "-p", proto, path)
    return path


def _empty(path: pathlib.Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)


def fat(
    path: pathlib.Path, folder: pathlib.Path, mib: int = 24, bits: int = 16
) -> pathlib.Path:
    _empty(path, mib * MIB)
    run("mkfs.vfat", "-F", str(bits), path)
    for entry in sorted(folder.iterdir()):
        if not entry.is_symlink():
            run("mcopy", "-i", path, "-s", entry, "::/")
    return path


def ntfs(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Of the folder's own files only: ntfscp makes no directories."""
    _empty(path, 16 * MIB)
    run(
        "mkntfs",
        "-q",
        "-F",
        "-p",
        "0",
        "-s",
        "512",
        "-H",
        "0",
        "-S",
        "0",
        path,
    )
    for entry in sorted(folder.iterdir()):
        run("ntfscp", "-q", path, entry, entry.name)
    return path


def partitioned(
    path: pathlib.Path,
    script: str,
    parts: dict[int, pathlib.Path],
    mib: int,
    code: bytes = b"",
) -> pathlib.Path:
    """A disk made with sfdisk; ``parts`` by partition number."""
    _empty(path, mib * MIB)
    run("sfdisk", "-q", path, text=script)
    table = json.loads(run("sfdisk", "--json", path))["partitiontable"]
    with open(path, "r+b") as disk:
        disk.write(code[:440])
        for entry in table["partitions"]:
            number = int(entry["node"].removeprefix(str(path)))
            if number in parts:
                content = parts[number].read_bytes()
                assert len(content) <= entry["size"] * 512
                disk.seek(entry["start"] * 512)
                disk.write(content)
    return path


def lvm(path: pathlib.Path, parts: dict[str, pathlib.Path]) -> pathlib.Path:
    """A physical volume as lvm2 wrote it, with contents put in."""
    vector = json.loads((VECTORS / "lvm.json").read_text())
    _empty(path, vector["size"])
    with open(path, "r+b") as disk:
        for offset, content in vector["sectors"].items():
            disk.seek(int(offset))
            disk.write(bytes.fromhex(content))
        for name, source in parts.items():
            offset, size = vector["volumes"][name]
            content = source.read_bytes()
            assert len(content) <= size
            disk.seek(offset)
            disk.write(content)
    return path


def sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(folder: pathlib.Path, unix: bool, skip: tuple[str, ...] = ()) -> str:
    """The digest of a directory, from the directory itself.

    Written against the protocol page, with nothing of the reader's.
    """
    total = hashlib.sha256(b"mh/tree/v1\n")

    def lp(data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + data

    def walk(directory: pathlib.Path, path: str) -> None:
        entries = sorted(os.listdir(os.fsencode(directory)))
        for raw in entries:
            name = raw.decode()
            entry = directory / name
            status = entry.lstat()
            size, sha, kind = 0, b"", "?"
            if stat.S_ISLNK(status.st_mode):
                kind = "l"
                target = os.readlink(os.fsencode(entry))
                sha = hashlib.sha256(target).digest()
            elif stat.S_ISREG(status.st_mode):
                kind = "f"
                size = status.st_size
                sha = hashlib.sha256(entry.read_bytes()).digest()
            elif stat.S_ISDIR(status.st_mode):
                kind = "d"
            elif stat.S_ISFIFO(status.st_mode):
                kind = "p"
            numbers = (0, 0, 0, 0, size)
            if unix:
                numbers = (
                    status.st_mode,
                    status.st_uid,
                    status.st_gid,
                    0,
                    size,
                )
            total.update(kind.encode() + lp(f"{path}{name}".encode()))
            total.update(lp(struct.pack(">5Q", *numbers)) + lp(sha))
            if kind == "d":
                walk(entry, f"{path}{name}/")

    walk(folder, "")
    return total.hexdigest()
