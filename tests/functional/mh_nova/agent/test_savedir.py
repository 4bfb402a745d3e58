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
"""fscrypt on a real ext4, mounted from a file in a namespace of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mh_core.errors import Conflict, Denied, NotFound
from mh_core.secret import Secret
from mh_nova.agent import savedir
from mh_nova.agent.storage import Kind, Storage

MARKER = b"the guest's memory, in a file"

#: Runs in the namespace, with the file system on $MOUNT.
_RUN = """
import json, os, sys
from mh_core.secret import Secret
from mh_core.errors import MHError
from mh_nova.agent import savedir
from mh_nova.agent.storage import Storage
path = os.environ["MOUNT"] + "/save"
said = []
def kind():
    said.append(Storage().kind(path).value)
def set_up(byte):
    try:
        said.append(savedir.set_up(path, Secret(bytes([byte]) * 64)))
    except MHError as exc:
        said.append(exc.event)
exec(sys.stdin.read())
print(json.dumps(said))
"""


def _mountable() -> bool:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        return False
    kernel = Path("/sys/fs/ext4/features/encryption")
    return kernel.exists() and Path("/dev/loop-control").exists()


needs_ext4 = pytest.mark.skipif(
    not _mountable(),
    reason="needs root, loop devices and a kernel with fscrypt",
)


class Disk:
    """A file with an ext4 in it."""

    def __init__(self, folder: Path, *features: str) -> None:
        self.image = folder / "disk.img"
        self.mount = folder / "mount"
        self.mount.mkdir()
        with self.image.open("wb") as file:
            file.truncate(32 << 20)
        subprocess.run(
            ["mkfs.ext4", "-q", *features, str(self.image)],
            check=True,
            timeout=60,
        )

    def run(self, program: str) -> list[str]:
        """Mount it, run a program, let go of it: a boot."""
        done = subprocess.run(
            [
                *("unshare", "--mount", "--propagation", "private"),
                *("sh", "-ec", 'mount -o loop "$IMAGE" "$MOUNT"; exec "$@"'),
                *("sh", sys.executable, "-c", _RUN),
            ],
            env={
                **os.environ,
                "IMAGE": str(self.image),
                "MOUNT": str(self.mount),
            },
            input=program,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    def holds(self, data: bytes) -> bool:
        return data in self.image.read_bytes()


_WRITE = (
    f"\nopen(path + '/guest.save', 'wb').write({MARKER!r} * 100)\nos.sync()\n"
)


@needs_ext4
def test_nothing_in_the_clear_is_on_the_disk(tmp_path: Path) -> None:
    disk = Disk(tmp_path, "-O", "encrypt")
    # control: it would be found
    assert disk.run("os.mkdir(path)\nkind()" + _WRITE) == ["clear"]
    assert disk.holds(MARKER)
    tmp_path.joinpath("disk.img").unlink()
    disk.mount.rmdir()
    disk = Disk(tmp_path, "-O", "encrypt")
    said = disk.run("set_up(1)\nkind()" + _WRITE)
    assert said == ["encrypted", "fscrypt"]
    assert not disk.holds(MARKER)
    assert not disk.holds(b"guest.save")


@needs_ext4
def test_a_key_of_the_machine_opens_it_again(tmp_path: Path) -> None:
    disk = Disk(tmp_path, "-O", "encrypt")
    disk.run("set_up(1)" + _WRITE)
    # the key was not given yet: nothing can be written
    assert disk.run("kind()") == ["clear"]
    said = disk.run(
        "set_up(1)\nkind()\n"
        "said.append(open(path + '/guest.save', 'rb').read(29).decode())"
    )
    assert said == [
        "the machine's key was given to it",
        "fscrypt",
        MARKER.decode(),
    ]


@needs_ext4
def test_a_key_of_another_boot_makes_it_anew(tmp_path: Path) -> None:
    disk = Disk(tmp_path, "-O", "encrypt")
    disk.run("set_up(1)\nos.chown(path, 7, 8)\nos.chmod(path, 0o710)" + _WRITE)
    said = disk.run(
        "set_up(2)\nkind()\nsaid.append(str(os.listdir(path)))\n"
        "s = os.stat(path)\n"
        "said.append(f'{s.st_uid} {s.st_gid} {s.st_mode & 0o777:o}')"
    )
    assert said == [
        "made anew: its old key is gone",
        "fscrypt",
        "[]",
        "7 8 710",
    ]


@needs_ext4
def test_files_in_the_clear_are_left_alone(tmp_path: Path) -> None:
    disk = Disk(tmp_path, "-O", "encrypt")
    said = disk.run(
        "os.mkdir(path)" + _WRITE + "set_up(1)\nkind()\n"
        "said.append(str(os.listdir(path)))"
    )
    assert said == ["agent.save-dir.files", "clear", "['guest.save']"]


@needs_ext4
def test_a_file_system_without_encryption(tmp_path: Path) -> None:
    disk = Disk(tmp_path, "-O", "^encrypt")
    assert disk.run("set_up(1)\nkind()") == ["agent.fscrypt.key", "clear"]


@needs_ext4
def test_a_weak_policy_is_not_one(tmp_path: Path) -> None:
    """AES-128-CBC, which the kernel would do."""
    disk = Disk(tmp_path, "-O", "encrypt")
    said = disk.run(
        "from mh_nova.agent import fscrypt\n"
        "fscrypt._AES_256_XTS, fscrypt._AES_256_CTS = 5, 6\n"
        "os.mkdir(path)\nset_up(1)\nkind()"
    )
    assert said == ["encrypted", "clear"]


def test_not_there_and_mounted(tmp_path: Path) -> None:
    key = Secret(bytes(64))
    with pytest.raises(NotFound) as caught:
        savedir.set_up(str(tmp_path / "none/save"), key)
    assert caught.value.event == "agent.save-dir.parent"
    with pytest.raises(Conflict) as mounted:
        savedir.set_up("/dev/shm", key)
    assert mounted.value.event == "agent.save-dir.mounted"


def test_the_key_of_the_machine(tmp_path: Path) -> None:
    one, lasting = savedir.boot_key(None)
    other, _ = savedir.boot_key(str(tmp_path))
    assert not lasting
    assert one != other
    path = tmp_path / savedir.CREDENTIAL
    path.write_bytes(bytes(64))
    assert savedir.boot_key(str(tmp_path)) == (Secret(bytes(64)), True)
    for size in (0, 32, 63, 65):
        path.write_bytes(bytes(size))
        with pytest.raises(Denied):
            savedir.boot_key(str(tmp_path))


def test_in_memory() -> None:
    assert Storage().kind("/dev/shm") is Kind.MEMORY
