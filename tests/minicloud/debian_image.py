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
"""A real operating system as a guest: Debian's kernel, init and userland.

Made from Debian's packages on a disk with two partitions and a boot
loader, without mounting anything: syslinux on a FAT partition starts the
kernel, which loads its drivers from an initrd and hands over to sysvinit
on an ext4 root.  Each boot prints a line with the image's token and the
number of the boot on the first serial port.

    disk = build(run / "debian")
"""

from __future__ import annotations

import collections.abc
import dataclasses
import fcntl
import hashlib
import os
import pathlib
import secrets
import shutil
import stat
import subprocess

from tests.minicloud import bootimage
from tests.minicloud.pids import CloudError

GREETING = "MH-DEBIAN-BOOTED"
KERNEL = "linux-image-cloud-amd64"
PACKAGES = (
    *("base-files", "base-passwd", "bash", "busybox-static", "coreutils"),
    *("dash", "debianutils", "grep", "hostname", "libacl1", "libattr1"),
    *("libblkid1", "libc-bin", "libc6", "libcap2", "libcrypt1", "libgmp10"),
    *("libmount1", "libpcre2-8-0", "libselinux1", "libsmartcols1"),
    *("libtinfo6", "libudev1", "libuuid1", "mount", "sed", "sysvinit-core"),
    *("tzdata", "util-linux"),
)
# What the root disk needs, in the order of loading.
MODULES = (
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
)
SECTOR = 512
BOOT_START, BOOT_SECTORS = 2048, 32 * 2048
ROOT_START = BOOT_START + BOOT_SECTORS
ROOT_MIB = 128
MBR = pathlib.Path("/usr/lib/syslinux/mbr/mbr.bin")

SYSLINUX = """\
SERIAL 0 115200
DEFAULT debian
PROMPT 0
LABEL debian
KERNEL /vmlinuz
INITRD /initrd.img
APPEND root=/dev/vda2 ro console=ttyS0 quiet mitigations=off
"""

INITRD = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /dev /root
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do /bin/busybox insmod $module; done
n=0
until [ -b /dev/vda2 ] || [ $n -gt 200 ]; do
    n=$((n + 1))
    /bin/busybox sleep 0.05
done
/bin/busybox mount -t ext4 -o ro /dev/vda2 /root || echo "MH-DEBIAN-NO-ROOT"
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""

INITTAB = """\
id:2:initdefault:
si::sysinit:/etc/rc.boot
w1:2:respawn:/bin/sleep 86400
ca::ctrlaltdel:/sbin/shutdown -r now
pf::powerwait:/sbin/shutdown -h now
"""

RC = f"""\
#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mountpoint -q /proc || mount -t proc proc /proc
mount -o remount,rw /
. /etc/os-release
boots=$(($(cat /var/lib/boots) + 1))
echo $boots > /var/lib/boots
sync
echo "{GREETING} token=$(cat /etc/mh-token) boot=$boots" \\
    "$PRETTY_NAME, $(uname -sr)" > /dev/ttyS0
"""


@dataclasses.dataclass(frozen=True)
class Disk:
    """A bootable disk image and what its guest prints."""

    path: pathlib.Path
    token: str


def build(folder: pathlib.Path, marker: bytes = b"") -> Disk:
    """Make a qcow2 image with a token of its own.

    :param folder: the parts that take long are made once and kept here.
    :param marker: content of the file /marker in the root file system.
    """
    base = cached(folder)
    token = "debian-" + secrets.token_hex(8)
    raw = folder / f"{token}.raw"
    path = folder / f"{token}.qcow2"
    _run("cp", "--sparse=always", base, raw)
    try:
        _put(raw, "/etc/mh-token", token.encode() + b"\n")
        if marker:
            _put(raw, "/marker", marker)
        _run("qemu-img", "convert", "-O", "qcow2", raw, path)
    finally:
        raw.unlink()
    return Disk(path, token)


def boot_files(
    disk: pathlib.Path, folder: pathlib.Path
) -> tuple[pathlib.Path, pathlib.Path]:
    """Kernel and initrd of a disk of this recipe, copied to a folder."""
    start = BOOT_START * SECTOR
    found = folder / "vmlinuz", folder / "initrd.img"
    for path in found:
        _run(
            *("mcopy", "-n", "-o", "-i", f"{disk}@@{start}"),
            *(f"::{path.name}", path),
        )
    return found


def extend(
    initrd: pathlib.Path,
    entries: collections.abc.Sequence[tuple[str, int, bytes]],
) -> None:
    """Put files over those of an initrd: the kernel unpacks one archive
    after the other.

    :param entries: as :func:`cpio`.
    """
    with initrd.open("ab") as file:
        file.write(bytes(-file.tell() % 512))
        file.write(cpio(entries))


def _run(
    *argv: str | os.PathLike[str], cwd: pathlib.Path | None = None
) -> str:
    done = subprocess.run(
        list(map(str, argv)),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise CloudError(
            f"{' '.join(map(str, argv[:3]))}: {done.returncode}: "
            f"{(done.stderr or done.stdout).strip()[-2000:]}"
        )
    return done.stdout


def _put(disk: pathlib.Path, name: str, content: bytes) -> None:
    """Write a file into the root partition, without mounting it."""
    source = disk.with_suffix(".file")
    source.write_bytes(content)
    try:
        where = f"{disk}?offset={ROOT_START * SECTOR}"
        _run("debugfs", "-w", "-R", f"write {source} {name}", where)
        if not _run("debugfs", "-R", f"cat {name}", where):
            raise CloudError(f"{name} is not in {disk}")
    finally:
        source.unlink()


def cached(folder: pathlib.Path) -> pathlib.Path:
    """The disk without a token, made unless this recipe's is there."""
    recipe = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"base-{recipe[:16]}.raw"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return path
        for old in folder.glob("base-*.raw"):
            old.unlink()
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        new = work / "disk.raw"
        _assemble(new, *_system(work), work)
        new.rename(path)
        shutil.rmtree(work)
    return path


def _download(names: tuple[str, ...], folder: pathlib.Path) -> None:
    command = ("apt-get", "download", "-q", "-o", "APT::Sandbox::User=root")
    try:
        _run(*command, *names, cwd=folder)
    except CloudError:  # no package lists, or old ones
        _run("apt-get", "update", "-q")
        _run(*command, *names, cwd=folder)


def _kernel() -> str:
    """The package that holds the newest kernel."""
    shown = _run("apt-cache", "depends", KERNEL)
    for line in shown.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    raise CloudError(f"{KERNEL} is not in the package lists")


def _system(work: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The root file system and the boot folder, from the packages."""
    packages, root, kernel, boot = (
        work / name for name in ("packages", "root", "kernel", "boot")
    )
    for path in (packages, root, kernel, boot):
        path.mkdir()
    _download((*PACKAGES, KERNEL), packages)
    _download((_kernel(),), packages)
    for package in packages.glob("*.deb"):
        part = kernel if package.name.startswith("linux-image") else root
        _run("dpkg-deb", "-x", package, part)
    for name in ("doc", "man", "locale", "info", "lintian", "zoneinfo"):
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    _configure(root)
    [image] = (kernel / "boot").glob("vmlinuz-*")
    shutil.copy(image, boot / "vmlinuz")
    [modules] = (kernel / "lib/modules").iterdir()
    _initrd(boot / "initrd.img", modules / "kernel", root / "bin/busybox")
    (boot / "syslinux.cfg").write_text(SYSLINUX)
    return root, boot


def _configure(root: pathlib.Path) -> None:
    """What the packages' own scripts would have set up."""
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "mnt"):
        (root / name).mkdir(exist_ok=True)
    for name in ("passwd", "group"):
        shutil.copy(
            root / f"usr/share/base-passwd/{name}.master", root / "etc" / name
        )
    (root / "etc/hostname").write_text("debian\n")
    (root / "etc/fstab").write_text("/dev/vda2 / ext4 defaults 0 1\n")
    (root / "etc/inittab").write_text(INITTAB)
    (root / "var/lib/boots").write_text("0\n")
    rc = root / "etc/rc.boot"
    rc.write_text(RC)
    rc.chmod(0o755)


def _initrd(
    path: pathlib.Path, modules: pathlib.Path, busybox: pathlib.Path
) -> None:
    """A cpio archive: busybox, a script and the drivers of the disk."""
    entries = [
        ("bin", stat.S_IFDIR | 0o755, b""),
        ("modules", stat.S_IFDIR | 0o755, b""),
        ("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()),
        ("init", stat.S_IFREG | 0o755, INITRD.encode()),
    ]
    for number, name in enumerate(MODULES):
        entries.append(
            (
                f"modules/{number}-{pathlib.PurePath(name).name}",
                stat.S_IFREG | 0o644,
                (modules / name).read_bytes(),
            )
        )
    path.write_bytes(cpio(entries))


def cpio(
    entries: collections.abc.Sequence[tuple[str, int, bytes]],
) -> bytes:
    """An archive in the "newc" form that the kernel unpacks.

    :param entries: name, mode with the kind of file, content.
    """
    archive = b""
    for number, (name, mode, data) in enumerate(
        [*entries, ("TRAILER!!!", 0, b"")], 1
    ):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0)
        header = "070701" + "".join(f"{field:08x}" for field in fields)
        header += f"{len(name) + 1:08x}{0:08x}"
        archive += _padded(header.encode() + name.encode() + b"\0")
        archive += _padded(data)
    return archive


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _assemble(
    disk: pathlib.Path,
    root: pathlib.Path,
    boot: pathlib.Path,
    work: pathlib.Path,
) -> None:
    """Two file systems, partition table and boot loader on one disk."""
    fat, ext4 = work / "boot.fat", work / "root.ext4"
    with open(fat, "wb") as file:
        file.truncate(BOOT_SECTORS * SECTOR)
    _run(
        *("mformat", "-i", fat, "-T", str(BOOT_SECTORS), "-h", "64"),
        *("-s", "32", "-H", str(BOOT_START), "-v", "BOOT", "::"),
    )
    for name in sorted(entry.name for entry in boot.iterdir()):
        _run("mcopy", "-i", fat, boot / name, f"::/{name}")
    _run("syslinux", "--install", fat)
    _run(
        *("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", root),
        *("-J", "size=4", "-m", "0", ext4, f"{ROOT_MIB}M"),
    )
    total = ROOT_START + ROOT_MIB * 2048
    sector = bytearray(SECTOR)
    code = MBR.read_bytes()
    sector[: len(code)] = code
    sector[446:462] = bootimage.partition_entry(
        BOOT_START, BOOT_SECTORS, kind=0x0E
    )
    sector[462:478] = bootimage.partition_entry(
        ROOT_START, ROOT_MIB * 2048, active=False
    )
    sector[510:512] = b"\x55\xaa"
    with open(disk, "wb") as file:
        file.write(sector)
        file.truncate(total * SECTOR)
    for part, start in ((fat, BOOT_START), (ext4, ROOT_START)):
        _run(
            *("dd", f"if={part}", f"of={disk}", "bs=1M"),
            *("conv=notrunc,sparse", f"seek={start // 2048}", "status=none"),
        )
