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
"""A trusted guest with a virtual TPM: its state is the tenant's.

While the guest is off, the state is opened with the key that the tenant's
key server derives, and a mark is put into the TPM's NV memory: what comes
later finds it, or the TPM is not the same one.
"""

from __future__ import annotations

import collections.abc
import json
import secrets
import shutil
import subprocess
import typing

import pytest
from openstack import exceptions

from mh_core import vtpm as names
from tests.e2e.test_5_moves import Counting, only
from tests.e2e.test_D_suspend import encrypted  # noqa: F401
from tests.minicloud import guest, key_manager, vtpm
from tests.minicloud.layout import REPOSITORY
from tests.minicloud.node import Node
from tests.minicloud.search import Needle, Search, default_roots
from tests.minicloud.story import Story
from tests.minicloud.trusted import wait_for
from tests.minicloud.world import TRUSTED_FLAVOR, TrustedImage, World

#: Instances move between node1 and node3 here; see conftest.
MOVES = True
pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]

FLAVOR = "m1.vtpm.trusted"
#: The only kind that nova's API lets migrate while it runs.
HOST_FLAVOR = "m1.vtpm.host.trusted"
PLAIN = "m1.vtpm.plain"


@pytest.fixture(scope="module")
def image(world: World, story: Story, second_host: Node) -> TrustedImage:
    image = story.ready()
    for name, more in (
        (FLAVOR, {}),
        (
            HOST_FLAVOR,
            {
                "hw:tpm_model": "tpm-crb",
                "hw:tpm_secret_security": "host",
            },
        ),
    ):
        world.product.openstack(
            "admin",
            *("trusted", "flavor", "create", name),
            *("--ram", "64", "--vcpus", "1", "--disk", "1"),
        )
        world.admin.compute.create_flavor_extra_specs(
            world.admin.compute.find_flavor(name),
            {"hw:tpm_version": "2.0", **more},
        )
    return image


class WithTpm(Counting):
    """A server, and the TPM that its guest has."""

    mark = b""

    def __init__(
        self, world: World, image: TrustedImage, server: typing.Any
    ) -> None:
        super().__init__(world, image, server)
        self._copy = world.product.workstation / "tpm"

    def key(self) -> bytes:
        return vtpm.key(self.world.product, self.image.key_id, self.id)

    def put_mark(self, node: Node) -> None:
        self.mark = b"mark:" + secrets.token_hex(24).encode()
        vtpm.mark(vtpm.folder(node, self.id) / "tpm2", self.key(), self.mark)

    def opens(self, node: Node, key: bytes | None) -> bool:
        """Does the key open the state?  Then the mark is in it."""
        found = vtpm.read(vtpm.folder(node, self.id) / "tpm2", key, self._copy)
        assert found in (None, self.mark)
        return found is not None

    def same(self, node: Node) -> None:
        """It is the TPM that was marked."""
        assert self.opens(node, self.key())

    def stop(self) -> None:
        self.world.tenant.compute.stop_server(self.id)
        self.settle("SHUTOFF")

    def start(self, node: Node) -> None:
        with self.asking(node, "start"):
            self.world.tenant.compute.start_server(self.id)
            self.settle("ACTIVE")
            self.booted()
        self.no_secret(node)

    def no_secret(self, node: Node) -> None:
        assert node.virsh("secret-list").stdout.strip() == ""

    def no_tpm_on(self, node: Node) -> None:
        assert not vtpm.folder(node, self.id).exists()


def boot(world: World, image: TrustedImage, name: str, flavor: str) -> WithTpm:
    with only(world, world.node1):
        made = world.boots(name, image, flavor=flavor)
    server = WithTpm(world, image, made)
    server.booted(0)
    server.on(world.node1)
    return server


@pytest.fixture(scope="module")
def server(
    world: World, image: TrustedImage
) -> collections.abc.Iterator[WithTpm]:
    server = boot(world, image, "sealed", FLAVOR)
    yield server
    if left := world.admin.compute.find_server(server.id):
        world.delete(left)


# -- it starts


def test_it_has_one_and_the_tenant_its_key(
    world: World, server: WithTpm
) -> None:
    node = world.node1
    xml = node.virsh("dumpxml", server.id).stdout
    assert f"<encryption secret='{names.secret_uuid(server.id)}'/>" in xml
    server.no_secret(node)
    assert vtpm.encrypted(vtpm.state(node, server.id))
    released = [
        record
        for record in world.releases(server.image.key_id)
        if record.get("claims", {}).get("instance") == server.id
    ]
    assert {"name": "vtpm", "luks_uuid": server.id} in released[-1]["disks"]
    # nova has no secret of it, and so nothing in a key manager
    record = json.loads(
        (
            node.folder
            / f"var/lib/mystery-hill/agent/instances/{server.id}.json"
        ).read_text()
    )
    assert record["vtpm"] is True
    assert "vtpm_secret_uuid" not in str(world.admin.compute.get_server(
        server.id
    ).to_dict())  # fmt: skip


def test_only_the_tenants_key_opens_its_state(
    world: World, server: WithTpm
) -> None:
    node = world.node1
    server.stop()
    server.put_mark(node)
    server.same(node)
    assert not server.opens(node, None)
    assert not server.opens(node, secrets.token_bytes(32))
    # control: what a state in the clear would have shown
    clear = world.product.workstation / "clear"
    clear.mkdir()
    subprocess.run(
        ["swtpm_setup", "--tpm2", "--tpm-state", clear],
        check=True,
        capture_output=True,
    )
    vtpm.mark(clear, None, server.mark)
    name = vtpm.FILE.rpartition("/")[2]
    assert server.mark in (clear / name).read_bytes()
    shutil.rmtree(clear)
    assert server.mark not in vtpm.state(node, server.id)
    server.start(node)
    search = Search(
        default_roots(world.cloud.base),
        [world.product.workstation],
        [Needle("mark", server.mark), Needle("TPM key", server.key())],
    )
    assert search.run() == []


def test_a_hard_reboot_keeps_it(world: World, server: WithTpm) -> None:
    node = world.node1
    with server.asking(node, "start"):
        world.tenant.compute.reboot_server(server.id, "HARD")
        server.settle("ACTIVE")
        server.booted()
    server.no_secret(node)
    server.stop()
    server.same(node)
    server.start(node)


def test_a_host_that_starts_again_keeps_it(
    world: World, server: WithTpm
) -> None:
    node = world.node1
    node.options.extra = "[DEFAULT]\nresume_guests_state_on_host_boot = true\n"
    with server.asking(node, "start"):
        node.reboot()
        world.product.start_agent(node)
        node.start_compute()
        world.cloud.wait_computes()
        server.booted()
        server.settle("ACTIVE")
    world.agent_ready(node)
    server.no_secret(node)
    server.stop()
    server.same(node)
    server.start(node)


def test_suspended_and_resumed(
    world: World,
    server: WithTpm,
    encrypted: None,  # noqa: F811
) -> None:
    """Where the save directory is encrypted; its key is asked for again."""
    node = world.node1
    world.tenant.compute.suspend_server(server.id)
    server.settle("SUSPENDED")
    server.no_secret(node)
    with server.asking(node, "start"):
        world.tenant.compute.resume_server(server.id)
        server.settle("ACTIVE")
    server.no_secret(node)
    assert server.id in world.running_guests()
    server.stop()
    server.same(node)
    server.start(node)


# -- it does not start


def test_without_its_key(world: World, server: WithTpm) -> None:
    node = world.node1
    server.stop()
    world.product.stop_kms()
    try:
        assert "agent.kms." in world.refused_start(server.show())
        assert server.show().status == "SHUTOFF"
        server.no_secret(node)
    finally:
        world.product.start_kms()
    server.same(node)
    server.start(node)


@pytest.mark.parametrize("made", ["in-the-clear", "under-another-key"])
def test_with_a_state_of_somebody_elses(
    world: World, server: WithTpm, made: str
) -> None:
    """The guest would take it for its own."""
    node = world.node1
    server.stop()
    place = vtpm.folder(node, server.id) / vtpm.FILE
    kept = place.read_bytes()
    other = world.product.workstation / "other"
    other.mkdir()
    (other / "key").write_bytes(secrets.token_hex(32).encode())
    more = ["--pwdfile", other / "key", "--cipher", "aes-256-cbc"]
    subprocess.run(
        [
            *("swtpm_setup", "--tpm2", "--tpm-state", other),
            *(more if made == "under-another-key" else ()),
        ],
        check=True,
        capture_output=True,
    )
    place.write_bytes((other / place.name).read_bytes())
    shutil.rmtree(other)
    world.tenant.compute.start_server(server.id)
    wait_for("no task", lambda: server.show().task_state is None, 60)
    assert server.id not in world.running_guests()
    server.no_secret(node)
    place.write_bytes(kept)
    if server.show().status == "ERROR":
        world.admin.compute.reset_server_state(server.id, "stopped")
    server.start(node)


@pytest.mark.parametrize("operation", ["rebuild", "shelve", "rescue"])
def test_what_nova_itself_refuses(
    world: World, server: WithTpm, operation: str
) -> None:
    compute = world.tenant.compute
    call = {
        "rebuild": lambda: compute.rebuild_server(
            server.id, image=server.image.id, name="sealed"
        ),
        "shelve": lambda: compute.shelve_server(server.id),
        "rescue": lambda: compute.rescue_server(server.id),
    }[operation]
    with pytest.raises(exceptions.HttpException, match="vTPM"):
        call()
    server.settle("ACTIVE")
    assert server.id in world.running_guests()


def test_a_resize_without_it_is_refused(world: World, server: WithTpm) -> None:
    world.tenant.compute.resize_server(
        server.id, world.admin.compute.find_flavor(TRUSTED_FLAVOR).id
    )
    server.settle("ACTIVE")
    wait_for("the reason", lambda: "hook.migrate.vtpm" in server.reasons(), 20)
    assert server.id in world.running_guests()


# -- it moves


def test_cold_there_and_back(world: World, server: WithTpm) -> None:
    with server.asking(world.node3, "migrate-in"):
        server.migrate(world.node3)
        server.settle("VERIFY_RESIZE")
        server.on(world.node3)
        server.booted()
    server.no_secret(world.node3)
    server.revert()
    server.on(world.node1)
    server.booted(0)
    server.no_tpm_on(world.node3)
    server.stop()
    server.same(world.node1)
    server.migrate(world.node3)
    server.settle("VERIFY_RESIZE")
    server.confirm("SHUTOFF")
    server.no_tpm_on(world.node1)
    server.nothing_of_it_on(world.node1)
    server.same(world.node3)
    server.start(world.node3)


def test_confirmed_without_its_key(world: World, server: WithTpm) -> None:
    """nova had not put the state into its place when it was refused."""
    server.stop()
    world.product.stop_kms()
    try:
        server.migrate(world.node1)
        server.settle("VERIFY_RESIZE")
        server.confirm("SHUTOFF")
        server.no_tpm_on(world.node1)
        server.no_tpm_on(world.node3)
    finally:
        world.product.start_kms()
    server.start(world.node1)
    server.stop()
    server.same(world.node1)
    server.start(world.node1)


def test_live(world: World, image: TrustedImage) -> None:
    """Each host's agent asks for the key; nova sends none."""
    server = boot(world, image, "mobile", HOST_FLAVOR)
    server.stop()
    server.put_mark(world.node1)
    server.start(world.node1)
    with server.asking(world.node3, "migrate-in"):
        world.admin.compute.live_migrate_server(
            server.id, host="node3", block_migration="auto"
        )
        server.settle("ACTIVE")
    assert server.show().hypervisor_hostname == "node3", server.reasons()
    for node in (world.node1, world.node3):
        server.no_secret(node)
    server.no_tpm_on(world.node1)
    server.stop()
    server.same(world.node3)
    server.start(world.node3)
    world.delete(server.show())
    server.no_tpm_on(world.node3)


# -- and ends


def test_deleted_it_is_gone(world: World, server: WithTpm) -> None:
    world.delete(server.show())
    for node in (world.node1, world.node3):
        server.no_tpm_on(node)
        server.nothing_of_it_on(node)


# -- those of others


@pytest.fixture
def managed(world: World) -> collections.abc.Iterator[Node]:
    """node1 with the cloud's key manager."""
    node = world.node1
    before = node.options.extra, node.options.env
    node.options.extra = f"[key_manager]\nbackend = {key_manager.BACKEND}\n"
    node.options.env = {"PYTHONPATH": str(REPOSITORY)}
    world.cloud.restart_compute(node)
    world.cloud.wait_computes()
    world.agent_ready(node)
    yield node
    node.options.extra, node.options.env = before
    world.cloud.restart_compute(node)
    world.cloud.wait_computes()
    world.agent_ready(node)


def test_a_plain_guest_has_its_key_from_the_clouds_key_manager(
    world: World, image: TrustedImage, managed: Node
) -> None:
    """The same driver, the same host: nova's own way, untouched."""
    picture, token = world.plain_disk()
    flavor = guest.flavor(world.admin, PLAIN, **{"hw:tpm_version": "2.0"})
    plain = guest.boot(
        world.admin, "plain-tpm", picture, flavor, host=managed.name
    )
    guest.wait_console(world.admin, plain, token)
    keys = managed.folder / "state" / key_manager.FOLDER
    (kept,) = keys.iterdir()
    assert kept.name in managed.virsh("dumpxml", plain.id).stdout
    assert vtpm.encrypted(vtpm.state(managed, plain.id))
    world.admin.compute.reboot_server(plain.id, "HARD")
    guest.wait_status(world.admin, plain, "ACTIVE")
    assert [path.name for path in keys.iterdir()] == [kept.name]
    # one of ours beside it: nothing is asked of the key manager
    beside = boot(world, image, "beside", FLAVOR)
    assert [path.name for path in keys.iterdir()] == [kept.name]
    world.delete(beside.show())
    assert [path.name for path in keys.iterdir()] == [kept.name]
    guest.delete(world.admin, plain)
    # nova does that last, when the server is no more
    wait_for("the key's deletion", lambda: list(keys.iterdir()) == [], 30)
    assert not vtpm.folder(managed, plain.id).exists()
    world.admin.image.delete_image(picture.id)
