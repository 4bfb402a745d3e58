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
"""Hostile file systems end the process that reads them, and nothing else.

Each case is measured within limits of its own; whatever comes of it, the
caller gets an answer or one of the errors below in time, has as many open
descriptors and children as before, and measures a good disk right after.
The seed of the random cases is printed; ``MH_FUZZ`` makes more of them.
"""

import os
import pathlib
import random
import time
from collections.abc import Callable, Iterator

import pytest

from mh_core.errors import MHError
from mh_reader.run import Limits
from tests.functional.mh_reader import disks
from tests.functional.mh_reader.conftest import measure

LIMITS = Limits(seconds=15, memory=192 << 20, entries=2_000)
ROUNDS = int(os.environ.get("MH_FUZZ", "8"))
ALLOWED = {
    "ok",
    "reader.run.disk",
    "reader.run.ended",
    "reader.run.protocol",
    "reader.run.time",
}


def outcome(
    path: pathlib.Path, what: str = "all", names: tuple[str, ...] = ()
) -> str:
    begin = time.monotonic()
    found, message = "ok", ""
    try:
        measure(path, what, names, LIMITS)
    except MHError as exc:
        found, message = exc.event, exc.message
    assert len(message) < 400
    assert message.isprintable()
    if found == "reader.run.disk":
        found = message
    # the limit, and what starting takes on a busy machine
    assert time.monotonic() - begin < LIMITS.seconds + 30
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    def state() -> tuple[int, list[str]]:
        here = pathlib.Path("/proc/self")
        children = (here / f"task/{os.getpid()}/children").read_text()
        return len(os.listdir(here / "fd")), children.split()

    before = state()
    yield
    assert state() == before


def _small(kind: str, folder: pathlib.Path, files: pathlib.Path) -> bytes:
    """A file system of few blocks, so that most bits mean something."""
    source = folder / "source"
    (source / "boot").mkdir(parents=True)
    (source / "boot/grub.cfg").write_text("linux\n")
    (source / "file").write_bytes(os.urandom(9000))
    for number in range(30):
        (source / f"boot/name-{number:02}").write_text(str(number))
    disk = folder / kind
    if kind == "ext4":
        disks.ext(disk, source, mib=2)
    elif kind == "ext2":
        disks.ext(disk, source, "-t", "ext2", mib=1)
    elif kind == "xfs":
        disks.xfs(disk, source)
    elif kind == "fat":
        disks.fat(disk, source, 2, 12)
    elif kind == "ntfs":
        (source / "boot/grub.cfg").rename(source / "grub.cfg")
        for entry in (source / "boot").iterdir():
            entry.rename(source / entry.name)
        (source / "boot").rmdir()
        disks.ntfs(disk, source)
    else:
        parts = {1: disks.ext(folder / "root", source, mib=2)}
        script = "label: gpt\n1 : size=2M, type=L\n2 : size=1M, type=S\n"
        if kind == "lvm":
            disks.lvm(disk, {"vg0/root": parts[1]})
        else:
            if kind == "mbr":
                script = (
                    "label: dos\n1 : size=2M, type=83\n2 : size=4M, type=5\n"
                    "5 : size=1M, type=83\n6 : size=1M, type=83\n"
                )
            disks.partitioned(disk, script, parts, 8)
    return disk.read_bytes()


def _where(data: bytes) -> list[int]:
    """Offsets of the sectors that hold anything."""
    return [
        at
        for at in range(0, len(data), 512)
        if data[at : at + 512].strip(b"\0")
    ]


@pytest.mark.parametrize(
    "kind", ["ext4", "ext2", "xfs", "fat", "ntfs", "gpt", "mbr", "lvm"]
)
def test_turned_bits_and_lost_ends(
    tmp_path: pathlib.Path, files: pathlib.Path, kind: str
) -> None:
    good = _small(kind, tmp_path, files)
    used = _where(good)
    disk = tmp_path / "disk"
    disk.write_bytes(good)
    assert outcome(disk) == "ok"
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    dice = random.Random(seed)  # noqa: S311
    seen = set()
    for turn in range(ROUNDS):
        bad = bytearray(good)
        for _ in range(dice.choice((1, 4, 40, 400))):
            at = dice.choice(used) + dice.randrange(512)
            if dice.random() < 0.5:
                bad[at] ^= 1 << dice.randrange(8)
            else:
                bad[at] = dice.choice((0, 0xFF, 0x7F, 0x80, 1))
        if turn % 4 == 3:
            del bad[dice.choice(used) + dice.randrange(512) + 1 :]
        disk.write_bytes(bad)
        found = outcome(disk)
        seen.add(found)
        assert found in ALLOWED or " " in found
    assert seen


def _debugfs(disk: pathlib.Path, *commands: str) -> None:
    disks.run("debugfs", "-w", "-f", "-", disk, text="\n".join(commands))


@pytest.fixture
def ext4(tmp_path: pathlib.Path, linked: pathlib.Path) -> pathlib.Path:
    return disks.ext(tmp_path / "disk", linked)


def test_a_directory_that_contains_itself(ext4: pathlib.Path) -> None:
    _debugfs(ext4, "link /deep /deep/a/b/c/again")
    assert "nested too deeply" in outcome(ext4) or "too many" in outcome(ext4)


def test_links_without_an_end(ext4: pathlib.Path) -> None:
    names = ("disk:/loop-a",)
    assert "too many symbolic links" in outcome(ext4, "modules", names)
    assert outcome(ext4) == "ok", "as such they are measured, not followed"


def test_a_link_that_grows_as_it_is_followed(
    tmp_path: pathlib.Path, files: pathlib.Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x").symlink_to("x/" * 400 + "x")
    disk = disks.ext(tmp_path / "disk", folder)
    found = outcome(disk, "modules", ("disk:/x",))
    assert "too many symbolic links" in found


@pytest.mark.parametrize("field", ["size 0x7fffffffffff", "mode 0xf1a4"])
def test_a_file_that_says_it_is_what_it_cannot_be(
    ext4: pathlib.Path, field: str
) -> None:
    _debugfs(ext4, f"set_inode_field /boot/vmlinuz-6.1 {field}")
    assert outcome(ext4) not in ("ok", "reader.run.time")
    found = outcome(ext4, "modules", ("disk:/etc/passwd",))
    assert found == "ok", "what is not asked for is not in the way"


def test_two_files_of_one_name(ext4: pathlib.Path) -> None:
    data = ext4.read_bytes()
    assert data.count(b"file-001") == 1
    ext4.write_bytes(data.replace(b"file-001", b"file-000"))
    assert "two files of one name" in outcome(ext4)


def test_a_name_with_a_slash(ext4: pathlib.Path) -> None:
    data = ext4.read_bytes()
    ext4.write_bytes(data.replace(b"file-001", b"file/001"))
    assert outcome(ext4) not in ("ok", "reader.run.time")


def test_more_files_than_allowed(
    tmp_path: pathlib.Path, files: pathlib.Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(2_100):
        (folder / f"{number:04}").write_bytes(b"")
    disk = disks.ext(tmp_path / "disk", folder)
    assert "too many files" in outcome(disk)


def _patched(at: int, data: bytes) -> Callable[[bytes], bytes]:
    def change(disk: bytes) -> bytes:
        return disk[:at] + data + disk[at + len(data) :]

    return change


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("mbr", _patched(446 + 8, b"\xff\xff\xff\x7f"), "is not on the disk"),
        ("mbr", _patched(446 + 8, b"\x01\x10\0\0"), "overlap"),
        ("mbr", _patched(446 + 4, b"\xee"), "is damaged"),
        ("gpt", _patched(512 + 16, b"\0\0\0\0"), ""),
        ("gpt", _patched(512 + 80, b"\xff\xff\xff\xff"), ""),
        ("gpt", _patched(1024 + 32, b"\0" * 8), ""),
        ("lvm", _patched(4096, bytes(4096)), ""),
        ("fat", _patched(11, b"\x01\x02"), ""),
        ("fat", _patched(13, b"\x80\xff\xff"), ""),
        ("ntfs", _patched(0x30, b"\xff" * 8), ""),
        ("ntfs", _patched(0x40, b"\x7f"), ""),
        ("xfs", _patched(4, b"\xff\xff\xff\xff"), ""),
        ("xfs", _patched(56, b"\xff" * 8), ""),
        ("ext4", _patched(1024 + 24, b"\xff\xff\xff\xff"), ""),
        ("ext4", _patched(1024 + 40, b"\0\0\0\0"), ""),
        ("ext4", _patched(1024 + 88, b"\xff\xff"), ""),
    ],
)
def test_a_field_that_cannot_be(
    tmp_path: pathlib.Path,
    files: pathlib.Path,
    kind: str,
    change: Callable[[bytes], bytes],
    words: str,
) -> None:
    disk = tmp_path / "bad"
    disk.write_bytes(change(_small(kind, tmp_path, files)))
    found = outcome(disk)
    assert found != "reader.run.time"
    assert words in found


def test_a_chain_of_logical_partitions_that_is_a_loop(
    tmp_path: pathlib.Path, files: pathlib.Path
) -> None:
    disk = bytearray(_small("mbr", tmp_path, files))
    [start] = [
        int.from_bytes(disk[at + 8 : at + 12], "little")
        for at in range(446, 510, 16)
        if disk[at + 4] == 5
    ]
    link = start * 512 + 462
    assert disk[link + 4] == 5
    disk[link + 8 : link + 12] = bytes(4)
    (tmp_path / "bad").write_bytes(disk)
    assert "is a loop" in outcome(tmp_path / "bad")


def test_a_good_disk_afterwards(
    ext4: pathlib.Path, linked: pathlib.Path
) -> None:
    found = measure(ext4, "all", limits=LIMITS)
    assert found["disk:/"] == disks.tree(linked, unix=True)
