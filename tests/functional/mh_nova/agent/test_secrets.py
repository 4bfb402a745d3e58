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
"""Secrets in a real libvirtd, and a guest that starts with them.

The libvirtd is private: its own mount namespace, its own directories; only
its socket is seen from here.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from mh_core.errors import Unavailable
from mh_core.secret import Secret
from mh_nova.agent.ours import Ours
from mh_nova.agent.secrets import PREFIX, Libvirt, Secrets
from tests.functional.mh_nova.agent.world import World

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("libvirtd") is None,
    reason="needs root and libvirtd",
)

SETUP = r"""
set -e
for d in /run /var/lib/libvirt /etc/libvirt /var/log/libvirt \
    /var/cache/libvirt /var/log/swtpm /var/lib/swtpm-localca; do
  mkdir -p $d; mount -t tmpfs -o size=64m tmpfs $d
done
mkdir -p /run/libvirt /run/lock /var/lib/libvirt/qemu /etc/libvirt/qemu \
    /var/log/libvirt/qemu
cat > /etc/libvirt/qemu.conf <<END
stdio_handler = "file"
security_driver = "none"
user = "root"
group = "root"
swtpm_user = "root"
swtpm_group = "root"
cgroup_controllers = []
namespaces = []
remember_owner = 0
dynamic_ownership = 0
max_core = 0
END
cat > /etc/libvirt/libvirtd.conf <<END
unix_sock_dir = "$SOCKETS"
auth_unix_rw = "none"
auth_unix_ro = "none"
host_uuid = "$HOST_UUID"
END
exec libvirtd -f /etc/libvirt/libvirtd.conf
"""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    sockets = tmp_path_factory.mktemp("lv")
    process = subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", SETUP],
        env={
            **os.environ,
            "SOCKETS": str(sockets),
            "HOST_UUID": str(uuid.uuid4()),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    uri = f"qemu:///system?socket={sockets}/libvirt-sock"
    try:
        for _ in range(200):
            if process.poll() is not None:
                pytest.skip("libvirtd does not start here")
            try:
                Libvirt(uri).connection()
                break
            except Unavailable:
                time.sleep(0.1)
        else:
            pytest.skip("libvirtd does not answer here")
        yield uri
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture
def connection(uri: str) -> Libvirt:
    return Libvirt(uri)


def names(connection: Libvirt) -> set[str]:
    return {
        secret.UUIDString()
        for secret in connection.connection().listAllSecrets(0)
    }


def key() -> Secret:
    return Secret(os.urandom(32))


def test_defined_private_and_dropped(connection: Libvirt) -> None:
    secrets = Secrets(connection, 60)
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    secrets.define("i", {one: key(), two: key()})
    assert {one, two} <= names(connection)
    secret = connection.connection().secretLookupByUUIDString(one)
    assert secret.usageID() == PREFIX + one
    xml = secret.XMLDesc(0)
    assert "ephemeral='yes'" in xml
    assert "private='yes'" in xml
    with pytest.raises(libvirt.libvirtError, match="private"):
        secret.value(0)
    secrets.drop("i")
    assert not {one, two} & names(connection)
    secrets.drop("i")


def test_defined_again(connection: Libvirt) -> None:
    secrets = Secrets(connection, 60)
    one = str(uuid.uuid4())
    secrets.define("i", {one: key()})
    secrets.define("i", {one: key()})
    secrets.drop("i")
    assert one not in names(connection)


def test_lease_ends(connection: Libvirt) -> None:
    secrets = Secrets(connection, 1)
    secrets.start()
    one = str(uuid.uuid4())
    secrets.define("i", {one: key()})
    assert one in names(connection)
    deadline = time.monotonic() + 5
    while one in names(connection) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert one not in names(connection)
    secrets.stop()


def test_swept_but_not_those_of_others(connection: Libvirt) -> None:
    Secrets(connection, 60).define("i", {str(uuid.uuid4()): key()})
    other = str(uuid.uuid4())
    foreign = connection.connection().secretDefineXML(
        f"<secret ephemeral='yes' private='yes'><uuid>{other}</uuid>"
        "<usage type='volume'><volume>of-nova</volume></usage></secret>",
        0,
    )
    # as after a crash: nothing is remembered
    Secrets(connection, 60).sweep()
    assert names(connection) == {other}
    foreign.undefine()


def test_libvirt_is_away(tmp_path: Path) -> None:
    secrets = Secrets(Libvirt(f"qemu:///system?socket={tmp_path}/no"), 60)
    with pytest.raises(Unavailable) as caught:
        secrets.define("i", {str(uuid.uuid4()): key()})
    assert caught.value.event == "agent.secrets.define"
    secrets.sweep()


def test_a_guest_starts_and_runs_on(
    connection: Libvirt, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    world = World(tmp_path)
    secrets = Secrets(connection, 60)
    world.launcher._p.__dict__["secrets"] = secrets
    ours = Ours(world.root, world.store, connection)
    domain = None
    try:
        world.make()
        # no network to attach to here
        xml = re.sub(
            r"<interface.*</interface>", "", world.xml(), flags=re.DOTALL
        )
        connect = connection.connection()
        with pytest.raises(libvirt.libvirtError, match="[Ss]ecret"):
            connect.createXML(xml, 0)
        world.start(xml=xml)
        domain = connect.createXML(xml, 0)
        world.launcher.started(world.instance, True)
        assert not names(connection)
        assert domain.isActive()
        assert connection.domain_xml(world.instance)
        assert ours.why(world.instance) == "record"
        world.store.drop_instance(world.instance)
        assert ours.why(world.instance) == "header of disk"
        world.disk.rename(tmp_path / "away")
        assert ours.why(world.instance) == "domain"
        assert ours.why(world.new_instance()) == ""
    finally:
        if domain is not None:
            domain.destroy()
        world.stop()
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
