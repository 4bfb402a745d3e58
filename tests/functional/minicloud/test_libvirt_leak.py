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
"""The leak of a real libvirt with a real guest is found, and only that."""

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mh_core.image import luks1, overlay
from tests.minicloud.search import Hit, Search, key_needles, libvirt_secrets

pytestmark = [
    pytest.mark.skipif(
        shutil.which("libvirtd") is None, reason="libvirt is not there"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes mounts"),
]
SIZE = 1 << 20
_START = """
set -e
for d in /run /var/lib/libvirt /etc/libvirt /var/log/libvirt \
        /var/cache/libvirt; do
    mkdir -p "$1$d"
    mount --bind "$1$d" $d
done
mkdir -p /run/libvirt /run/lock /var/lib/libvirt/qemu /etc/libvirt/qemu \
    /var/log/libvirt/qemu
test "$2" = disk || mount -t tmpfs -o mode=0751 tmpfs /var/lib/libvirt/qemu
printf '%s\n' 'stdio_handler="file"' 'security_driver="none"' \
    'user="root"' 'group="root"' 'cgroup_controllers=[]' 'namespaces=[]' \
    'remember_owner=0' 'dynamic_ownership=0' > /etc/libvirt/qemu.conf
printf '%s\n' 'auth_unix_rw="none"' 'auth_unix_ro="none"' \
    > /etc/libvirt/libvirtd.conf
exec libvirtd -f /etc/libvirt/libvirtd.conf
"""
_SECRET = """
<secret ephemeral='yes' private='yes'><uuid>{uuid}</uuid>
<usage type='volume'><volume>{uuid}</volume></usage></secret>
"""
_DOMAIN = """
<domain type='qemu'><name>leaky</name><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='{path}'><encryption format='luks' engine='qemu'>
<secret type='passphrase' uuid='{uuid}'/></encryption></source>
<target dev='vda' bus='virtio'/></disk></devices></domain>
"""


@dataclass
class Host:
    """A host whose libvirtd runs one guest with one encrypted disk."""

    folder: Path
    disk: Path
    key: bytes
    pid: int

    def virsh(self, *words: str, text: str = "") -> bool:
        enter = ["nsenter", f"--target={self.pid}", "--mount", "virsh", "-q"]
        done = subprocess.run(
            [*enter, *words],
            input=text,
            text=True,
            capture_output=True,
            timeout=30,
        )
        return done.returncode == 0

    def search(self, *, memory_keys: bool = False) -> list[Hit]:
        return Search(
            [self.folder, Path("/var/lib/libvirt")],
            [],
            key_needles("key", self.key, self.disk),
            everywhere=False,
            memory_keys=memory_keys,
        ).run()


@pytest.fixture(params=["disk", "tmpfs"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    folder = tmp_path / "host"
    key = os.urandom(32)
    disk = tmp_path / "disk"
    fd = os.open(disk, os.O_RDWR | os.O_CREAT, 0o600)
    overlay.write(fd, SIZE, key, uuid.uuid4(), os.urandom, None)
    os.close(fd)
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private"]
            + ["sh", "-c", _START, "sh", folder, request.param],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    host = Host(folder, disk, key, server.pid)
    try:
        end = time.monotonic() + 30
        while not host.virsh("version"):
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        names = {"uuid": str(uuid.uuid4()), "path": str(disk)}
        for name, text in (("s.xml", _SECRET), ("d.xml", _DOMAIN)):
            (folder / name).write_text(text.format(**names))
        phrase = tmp_path / "phrase"
        phrase.write_bytes(luks1.passphrase(key))
        assert host.virsh("secret-define", f"{folder}/s.xml")
        assert host.virsh(
            *("secret-set-value", names["uuid"]),
            *("--plain", "--file", str(phrase)),
        )
        phrase.unlink()
        assert host.virsh("create", "--paused", f"{folder}/d.xml")
        assert host.virsh("secret-undefine", names["uuid"])
        yield host
        host.virsh("destroy", "leaky")
    finally:
        server.terminate()
        server.wait(20)


def test_real_leak(host: Host, request: pytest.FixtureRequest) -> None:
    on_disk = request.node.callspec.params["host"] == "disk"
    found = {
        (hit.needle, hit.encoding, Path(hit.place.split(",")[0]).name)
        for hit in host.search()
    }
    leak = ("key passphrase", "sealed raw", "leaky.log")
    if on_disk:
        assert leak in found
        phrase = luks1.passphrase(host.key)
        assert phrase in libvirt_secrets([host.folder], everywhere=False)
    else:
        assert found == set()
        # the key is in memory, in the host's namespace only, and would do
        assert any(
            (hit.needle, hit.encoding) == leak[:2]
            for hit in host.search(memory_keys=True)
        )
    # the log stays, the key does not
    assert host.virsh("destroy", "leaky")
    assert host.search() == []
