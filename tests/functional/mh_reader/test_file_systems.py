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
"""Every file system and partition table, against the files themselves."""

import pathlib
import subprocess

import pytest

from mh_core.errors import Denied
from tests.functional.mh_reader import disks
from tests.functional.mh_reader.conftest import measure


def _flat(files: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Files without directories, for NTFS."""
    folder.mkdir()
    for name in ("bootmgr", "program", "empty"):
        (folder / name).write_bytes(b"")
    (folder / "bootmgr").write_bytes((files / "boot/vmlinuz-6.1").read_bytes())
    (folder / "program").write_bytes((files / "usr/bin/program").read_bytes())
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ("-t", "ext2"),
        ("-t", "ext3"),
        ("-t", "ext4"),
        ("-t", "ext4", "-O", "inline_data"),
        ("-t", "ext4", "-b", "1024", "-I", "128"),
        ("-t", "ext4", "-O", "^extents,^64bit"),
        ("-t", "ext4", "-O", "^metadata_csum,bigalloc"),
    ],
    ids=" ".join,
)
def test_ext(
    tmp_path: pathlib.Path, linked: pathlib.Path, options: tuple[str, ...]
) -> None:
    disk = disks.ext(tmp_path / "disk", linked, *options)
    found = measure(disk, "all")
    assert found["disk:/"] == disks.tree(linked, unix=True)
    names = ["/etc/passwd", "/etc/link", "disk:/etc/absolute", "disk:/boot/"]
    assert measure(disk, "modules", names) == {
        "disk:/etc/passwd": disks.sha256(linked / "etc/passwd"),
        "disk:/etc/link": disks.sha256(linked / "usr/bin/program"),
        "disk:/etc/absolute": disks.sha256(linked / "etc/passwd"),
        "disk:/boot/": disks.tree(linked / "boot", unix=True),
    }


def test_xfs(tmp_path: pathlib.Path, linked: pathlib.Path) -> None:
    disk = disks.xfs(tmp_path / "disk", linked)
    found = measure(disk, "all")
    assert found == {"disk:/": disks.tree(linked, unix=True)}
    assert measure(disk, "modules", ["/etc/link", "/deep/a/sparse"]) == {
        "disk:/etc/link": disks.sha256(linked / "usr/bin/program"),
        "disk:/deep/a/sparse": disks.sha256(linked / "deep/a/sparse"),
    }


@pytest.mark.parametrize(("mib", "bits"), [(4, 12), (24, 16), (40, 32)])
def test_fat(
    tmp_path: pathlib.Path, files: pathlib.Path, mib: int, bits: int
) -> None:
    source = files if bits > 12 else files / "boot/grub"
    disk = disks.fat(tmp_path / "disk", source, mib, bits)
    found = measure(disk, "all")
    assert found["disk:/"] == disks.tree(source, unix=False)
    if bits > 12:
        # as its users do, it does not tell capital letters apart
        assert measure(disk, "modules", ["/BOOT/Grub/GRUB.cfg"]) == {
            "disk:/BOOT/Grub/GRUB.cfg": disks.sha256(
                files / "boot/grub/grub.cfg"
            )
        }


def test_ntfs(tmp_path: pathlib.Path, files: pathlib.Path) -> None:
    folder = _flat(files, tmp_path / "flat")
    disk = disks.ntfs(tmp_path / "disk", folder)
    found = measure(disk, "all")
    assert found["disk:/"] == disks.tree(folder, unix=False)
    assert measure(disk, "boot") == {
        "disk:@boot-area": found["disk:@boot-area"],
        "disk:/bootmgr": disks.sha256(folder / "bootmgr"),
    }


def test_an_ntfs_stream_beside_a_file_is_measured(
    tmp_path: pathlib.Path, files: pathlib.Path
) -> None:
    folder = _flat(files, tmp_path / "flat")
    disk = disks.ntfs(tmp_path / "disk", folder)
    before = measure(disk, "all")
    stream = folder / "program"
    disks.run("ntfscp", "-q", "-N", "beside", disk, stream, "empty")
    after = measure(disk, "all")
    assert after["disk:/"] != before["disk:/"]


GPT = """\
label: gpt
1 : size=1M, type=21686148-6449-6E6F-744E-656564454649
2 : size=24M, type=U
5 : size=24M, type=L
6 : size=2M, type=S
"""


def _efi(folder: pathlib.Path) -> pathlib.Path:
    (folder / "EFI/BOOT").mkdir(parents=True)
    (folder / "EFI/BOOT/BOOTX64.EFI").write_bytes(b"MZ" + bytes(9000))
    (folder / "other.txt").write_text("not to boot from\n")
    return folder


def test_gpt_and_what_it_boots_from(
    tmp_path: pathlib.Path, linked: pathlib.Path
) -> None:
    core = tmp_path / "core.img"
    core.write_bytes(b"GRUB" * 5000)
    efi = _efi(tmp_path / "efi")
    parts = {
        1: core,
        2: disks.fat(tmp_path / "esp", efi, 24),
        5: disks.ext(tmp_path / "root", linked),
    }
    disk = disks.partitioned(tmp_path / "disk", GPT, parts, 64, b"\xeb" * 440)
    assert set(measure(disk, "all")) == {
        *("disk:@boot-area", "disk:@table", "p1:@raw", "p2:@boot-area"),
        *("p5:@boot-area", "p2:/", "p5:/", "p6:@raw"),
    }
    boot = measure(disk, "boot")
    assert set(boot) == {
        *("disk:@boot-area", "disk:@table", "p1:@raw", "p2:@boot-area"),
        *("p5:@boot-area", "p2:/EFI/", "p5:/boot/grub/", "p5:/vmlinuz"),
        *("p5:/boot/vmlinuz-6.1", "p5:/boot/initrd.img-6.1"),
    }
    assert boot["p2:/EFI/"] == disks.tree(efi / "EFI", unix=False)
    assert boot["p5:/vmlinuz"] == boot["p5:/boot/vmlinuz-6.1"]
    assert boot["p5:/boot/vmlinuz-6.1"] == disks.sha256(
        linked / "boot/vmlinuz-6.1"
    )
    assert boot["p5:/boot/grub/"] == disks.tree(
        linked / "boot/grub", unix=True
    )


@pytest.mark.parametrize(
    ("offset", "module"),
    [
        (3, "disk:@boot-area"),
        (40 * 512, "disk:@table"),
        (1 << 20, "p1:@raw"),
        ((2 << 20) + 100, "p2:@boot-area"),
        ((26 << 20) + 100, "p5:@boot-area"),
    ],
)
def test_each_place_a_boot_loader_lives_in_counts(
    tmp_path: pathlib.Path, files: pathlib.Path, offset: int, module: str
) -> None:
    parts = {
        2: disks.fat(tmp_path / "esp", _efi(tmp_path / "efi"), 24),
        5: disks.ext(tmp_path / "root", files),
    }
    disk = disks.partitioned(tmp_path / "disk", GPT, parts, 64)
    before = measure(disk, "boot")
    with open(disk, "r+b") as file:
        file.seek(offset)
        file.write(b"\xcc")
    after = measure(disk, "boot")
    assert {name for name in after if after[name] != before[name]} == {module}


def test_mbr_with_logical_partitions(
    tmp_path: pathlib.Path, files: pathlib.Path
) -> None:
    script = (
        "label: dos\n1 : size=24M, type=c, bootable\n"
        "2 : size=64M, type=5\n5 : size=26M, type=83\n6 : size=26M, type=83\n"
    )
    root = disks.ext(tmp_path / "root", files)
    efi = _efi(tmp_path / "efi")
    parts = {1: disks.fat(tmp_path / "fat", efi, 24), 5: root, 6: root}
    disk = disks.partitioned(tmp_path / "disk", script, parts, 96)
    found = measure(disk, "all")
    assert found["p1:/"] == disks.tree(efi, unix=False)
    assert found["p5:/"] == found["p6:/"]
    with pytest.raises(Denied, match=r"/etc/passwd: is on p5, p6; name it"):
        measure(disk, "modules", ["/etc/passwd"])
    name = "p6:/etc/passwd"
    assert measure(disk, "modules", [name]) == {
        name: disks.sha256(files / "etc/passwd")
    }


def test_lvm(tmp_path: pathlib.Path, files: pathlib.Path) -> None:
    root = disks.ext(tmp_path / "root", files, mib=32)
    flat = _flat(files, tmp_path / "flat")
    data = disks.ntfs(tmp_path / "data", flat)
    pv = disks.lvm(tmp_path / "pv", {"vg0/root": root, "vg0/data": data})
    script = "label: gpt\n1 : size=129M, type=V\n"
    disk = disks.partitioned(tmp_path / "disk", script, {1: pv}, 132)
    for one in (pv, disk):
        found = measure(one, "all")
        assert found["vg0/root:/"] == measure(root, "all")["disk:/"]
        assert found["vg0/data:/"] == disks.tree(flat, unix=False)
    assert measure(disk, "modules", ["/etc/passwd"]) == {
        "vg0/root:/etc/passwd": disks.sha256(files / "etc/passwd")
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/nothing", "is on no volume"),
        ("disk:/etc/nothing", "is not there"),
        ("p1:/etc/passwd", "no such volume"),
        ("disk:/etc", "is no regular file"),
        ("disk:/etc/passwd/", "is no directory"),
        ("disk:/etc/passwd/x", "is not there"),
        ("disk:/loop-a", "too many symbolic links"),
        ("disk:/etc/long", "is not there"),
        ("disk:@table", "there is no such area"),
        ("disk:/../../etc/../deep/fifo", "is no regular file"),
    ],
)
def test_a_module_that_is_not_there(
    tmp_path: pathlib.Path, linked: pathlib.Path, name: str, words: str
) -> None:
    disk = disks.ext(tmp_path / "disk", linked)
    with pytest.raises(Denied, match=words) as caught:
        measure(disk, "modules", [name])
    assert caught.value.event == "reader.run.disk"


def test_a_volume_that_is_not_known_counts_byte_by_byte(
    tmp_path: pathlib.Path,
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"nothing we know" * 70_000)
    assert measure(disk, "all") == {"disk:@raw": disks.sha256(disk)}
    with pytest.raises(Denied, match="nothing to measure"):
        measure(disk, "boot")


def test_the_tools_agree_on_what_is_in_there(
    tmp_path: pathlib.Path, linked: pathlib.Path
) -> None:
    """debugfs reads with e2fsprogs' code, the reader with libfsext's."""
    disk = disks.ext(tmp_path / "disk", linked)
    out = subprocess.run(
        ["debugfs", "-R", "cat /boot/vmlinuz-6.1", disk],
        capture_output=True,
        check=True,
    ).stdout
    (tmp_path / "out").write_bytes(out)
    name = "disk:/boot/vmlinuz-6.1"
    assert measure(disk, "modules", [name]) == {
        name: disks.sha256(tmp_path / "out")
    }
