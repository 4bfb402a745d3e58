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

"""Real nova modules in this process; no libvirt daemon, no database."""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nova.conf
import nova.image.glance
import nova.privsep
import pytest
from nova import context as nova_context
from nova import exception, objects
from nova.compute import utils as compute_utils
from nova.virt import driver as virt_driver
from nova.virt import images
from nova.virt.libvirt import imagecache
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_concurrency import lockutils

from mh_core.image import overlay
from mh_nova import bootstrap
from mh_nova.hook import conf
from tests.unit.mh_nova.hook.fake_agent import DISKS, INSTANCE, FakeAgent
from tests.unit.mh_nova.hook.test_properties import IMAGE, image

CONF = nova.conf.CONF
LUKS_UUID = uuid.UUID("55555555-5555-4555-8555-555555555555")
SIZE = 1048576
OTHER = "0f6a4f6e-2b1e-4f0e-9d0a-3c5d6a7b8c91"


def write_disk(path: str, backing: str | None = None) -> None:
    """A qcow2+LUKS file as the agent or the tenant's client writes it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        overlay.write(
            fd,
            SIZE,
            bytes(range(32)),
            LUKS_UUID,
            os.urandom,
            (backing, "qcow2") if backing else None,
        )
    finally:
        os.close(fd)


class Chunks(list[bytes]):
    """As glanceclient returns an image's data."""

    wrapped = True


class Glance:
    """Stands for nova's image API; serves one encrypted file."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.images: dict[str, dict[str, Any]] = {IMAGE: image()}
        self.downloads = 0
        self.begun: list[list[str]] = []
        self.agent: FakeAgent | None = None
        self.delay = 0.0

    def get(self, context: Any, image_id: str, **kwargs: Any) -> Any:
        try:
            return self.images[image_id]
        except KeyError:
            raise exception.ImageNotFound(image_id=image_id) from None

    def download(
        self,
        context: Any,
        image_id: str,
        dest_path: str,
        trusted_certs: Any = None,
    ) -> None:
        """nova's own way, which plain images take."""
        self.get(context, image_id)
        self.downloads += 1
        Path(dest_path).write_bytes(self.source.read_bytes())

    def call(
        self,
        context: Any,
        version: int,
        method: str,
        controller: Any = None,
        args: Any = None,
        kwargs: Any = None,
    ) -> Any:
        """What nova's image service asks of Glance: the bytes."""
        assert method == "data"
        # the agent's hash counts; glanceclient's is left out
        assert kwargs == {"do_checksum": False}
        self.get(context, args[0])
        if self.agent is not None:
            self.begun.append(self.agent.verbs())
        self.downloads += 1
        time.sleep(self.delay)
        data = self.source.read_bytes()
        return Chunks([data])


@pytest.fixture(scope="session", autouse=True)
def nova_config() -> None:
    CONF([], project="nova", default_config_files=[])
    conf.register_opts(CONF)
    objects.register_all()
    bootstrap.install()
    # nova's privileged functions run here, without their daemon
    nova.privsep.sys_admin_pctxt.set_client_mode(False)


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "instances"
    path.mkdir()
    CONF.set_override("instances_path", str(path))
    CONF.set_override("host", "node1")
    CONF.set_override("virt_type", "qemu", "libvirt")
    lockutils.set_defaults(lock_path=str(tmp_path / "locks"))
    yield path
    CONF.clear_override("instances_path")
    CONF.clear_override("host")
    CONF.clear_override("virt_type", "libvirt")


@pytest.fixture
def agent(tmp_path: Path, where: Path) -> Iterator[FakeAgent]:
    """Honest unless told otherwise: ``make`` moves and writes."""
    fake = FakeAgent(str(tmp_path / "a.sock"))

    def make(request: dict[str, Any]) -> dict[str, Any]:
        base = base_file(where)
        if request["downloaded"]:
            os.rename(f"{base}.part", base)
        disk = where / request["instance"] / "disk"
        if not disk.exists():
            write_disk(str(disk), str(base))
        return DISKS

    fake.answers["make"] = make
    CONF.set_override("agent_socket", fake.path, "mh")
    CONF.set_override("status_ttl", 0, "mh")
    yield fake
    CONF.clear_override("agent_socket", "mh")
    CONF.clear_override("status_ttl", "mh")
    fake.close()


@pytest.fixture
def glance(
    tmp_path: Path, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> Glance:
    source = tmp_path / "image.qcow2"
    write_disk(str(source))
    fake = Glance(source)
    fake.agent = agent
    monkeypatch.setattr(images, "IMAGE_API", fake)
    monkeypatch.setattr(
        nova.image.glance,
        "get_default_image_service",
        lambda: nova.image.glance.GlanceImageServiceV2(client=fake),
    )
    return fake


def base_file(where: Path) -> Path:
    name = imagecache.get_cache_fname(IMAGE)
    return where / "_base" / f"{name}_36"


def make_instance(trusted: bool = True, **changes: Any) -> objects.Instance:
    flavor = objects.Flavor(
        root_gb=0, ephemeral_gb=0, swap=0, extra_specs={}, memory_mb=64
    )
    fields: dict[str, Any] = {
        "uuid": INSTANCE,
        "id": 1,
        "project_id": "project",
        "user_id": "user",
        "image_ref": IMAGE,
        "host": "node1",
        "kernel_id": "",
        "ramdisk_id": "",
        "config_drive": "",
        "user_data": None,
        "metadata": {"mh_ticket": "T" * 43},
        "system_metadata": {"image_mh_version": "1"} if trusted else {},
        "flavor": flavor,
        "vm_state": "active",
        "task_state": None,
        "trusted_certs": None,
        "migration_context": None,
        "launched_at": None,
        "deleted": False,
    }
    fields.update(changes)
    instance = objects.Instance(**fields)
    instance._context = nova_context.get_admin_context()
    return instance


class Stock:
    """Notes the calls that reach nova's own methods."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.during: Callable[[Any], Any] = lambda driver: None
        self._monkeypatch = monkeypatch

    def replace(self, *names: str) -> None:
        for name in names:
            self._monkeypatch.setattr(LibvirtDriver, name, self._note(name))

    def _note(self, name: str) -> Callable[..., Any]:
        def method(driver: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return self.during(driver)

        return method


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Stock:
    return Stock(monkeypatch)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The metadata of every save of an instance."""
    notes: list[dict[str, str]] = []
    monkeypatch.setattr(
        objects.Instance,
        "save",
        lambda self, *args, **kwargs: notes.append(dict(self.metadata)),
    )
    return notes


@pytest.fixture
def driver(agent: FakeAgent, glance: Glance) -> Any:
    return virt_driver.load_compute_driver(None, "mh.TrustedLibvirtDriver")


def message(exc: Exception) -> str:
    """What nova would show the user."""
    return str(compute_utils.exception_to_dict(exc)["message"])


def migrate_data(**changes: Any) -> Any:
    """Of nova's migrate_data what is looked at."""
    return SimpleNamespace(
        obj_attr_is_set=lambda name: False,
        **{
            "block_migration": True,
            "is_shared_block_storage": False,
            "is_shared_instance_path": False,
            **changes,
        },
    )


@pytest.fixture
def tls(agent: FakeAgent) -> Iterator[None]:
    agent.answers["migration"] = {
        "ok": True,
        "expires_at": int(time.time()) + 600,
    }
    CONF.set_override("live_migration_with_native_tls", True, "libvirt")
    yield
    CONF.clear_override("live_migration_with_native_tls", "libvirt")
