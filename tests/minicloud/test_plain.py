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

from tests.minicloud import bootimage, guest
from tests.minicloud.cloud import Cloud

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cloud() -> collections.abc.Iterator[Cloud]:
    with Cloud() as cloud:
        yield cloud


@pytest.mark.parametrize("host", ["node1", "node2"])
def test_plain_boot_prints_the_token_of_its_disk(
    cloud: Cloud, tmp_path: pathlib.Path, host: str
) -> None:
    token = "token-" + secrets.token_hex(8)
    disk = bootimage.write(tmp_path / "disk", token.encode())
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
    token = "token-" + secrets.token_hex(8)
    disk = bootimage.write(tmp_path / "disk", token.encode())
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
