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

"""Plain instances on the minicloud: the ground the other tests stand on."""

from __future__ import annotations

import collections.abc
import pathlib
import secrets

import pytest

from tests.minicloud import bootimage, guest, listening
from tests.minicloud.cloud import Cloud

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cloud() -> collections.abc.Iterator[Cloud]:
    with Cloud() as cloud:
        cloud.purge()
        yield cloud


def _disk(folder: pathlib.Path) -> tuple[pathlib.Path, str]:
    token = "token-" + secrets.token_hex(8)
    return bootimage.write(folder / "disk", token.encode()), token


@pytest.mark.parametrize("host", ["node1", "node2"])
def test_plain_boot_prints_the_token_of_its_disk(
    cloud: Cloud, tmp_path: pathlib.Path, host: str
) -> None:
    disk, token = _disk(tmp_path)
    admin = cloud.connect("admin")
    flavor = guest.flavor(admin, "m1.plain")
    image = guest.upload(admin, f"plain-{host}", disk)
    server = guest.boot(admin, f"plain-{host}", image, flavor, host=host)
    try:
        assert server.hypervisor_hostname == host
        text = guest.wait_console(admin, server, token)
        assert "MH-GUEST-BOOTED" in text
    finally:
        guest.delete(admin, server)


def test_a_member_boots_a_server(cloud: Cloud, tmp_path: pathlib.Path) -> None:
    disk, token = _disk(tmp_path)
    guest.flavor(cloud.connect("admin"), "m1.plain")
    tenant = cloud.connect("tenant")
    image = guest.upload(tenant, "plain-tenant", disk)
    server = guest.boot(
        tenant, "plain-tenant", image, tenant.compute.find_flavor("m1.plain")
    )
    try:
        guest.wait_console(tenant, server, token)
    finally:
        guest.delete(tenant, server)


def test_nothing_listens_beyond_the_loopback(cloud: Cloud) -> None:
    pids = cloud.pids()
    assert len(listening.sockets(pids)) >= 12
    assert listening.beyond_loopback(pids) == set()


def test_what_died_comes_back_and_guests_live_on(
    cloud: Cloud, tmp_path: pathlib.Path
) -> None:
    disk, token = _disk(tmp_path)
    admin = cloud.connect("admin")
    flavor = guest.flavor(admin, "m1.plain")
    image = guest.upload(admin, "plain-recover", disk)
    server = guest.boot(admin, "plain-recover", image, flavor, host="node2")
    guest.wait_console(admin, server, token)
    running = cloud.node2.guests()
    for name in ("nova-scheduler", "rabbitmq", "node2-libvirtd"):
        cloud.processes.kill(name)
    cloud.start()
    assert cloud.node2.guests() == running
    other = guest.boot(admin, "plain-after", image, flavor, host="node2")
    guest.wait_console(admin, other, token)
    for left in (server, other):
        guest.delete(admin, left)


def test_a_host_is_rebooted(cloud: Cloud, tmp_path: pathlib.Path) -> None:
    disk, token = _disk(tmp_path)
    admin = cloud.connect("admin")
    flavor = guest.flavor(admin, "m1.plain")
    image = guest.upload(admin, "plain-reboot", disk)
    server = guest.boot(admin, "plain-reboot", image, flavor, host="node1")
    cloud.node1.reboot()
    assert cloud.node1.guests() == []
    cloud.node1.start_compute()
    # Nova sees that the guest is gone, and starts it again when asked.
    server = guest.wait_status(admin, server, "SHUTOFF")
    admin.compute.start_server(server)
    guest.wait_status(admin, server, "ACTIVE")
    assert len(cloud.node1.guests()) == 1
    guest.wait_console(admin, server, token)
    guest.delete(admin, server)


def test_the_domain_directory_is_on_tmpfs(cloud: Cloud) -> None:
    for node in cloud.nodes:
        shown = node.command(
            ["stat", "-f", "-c", "%T", "/var/lib/libvirt/qemu"]
        )
        assert shown.stdout.strip() == "tmpfs"
        assert node.command(["hostname"]).stdout.strip() == node.name
