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

"""The driver as nova loads it; of nova, only what would need libvirt or a
database is replaced, by something that notes the call."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nova.conf
import pytest
from nova import exception, objects
from nova.compute import provider_tree as tree
from nova.compute import task_states
from nova.virt import driver as virt_driver
from nova.virt.libvirt import imagecache
from nova.virt.libvirt.driver import InjectionInfo, LibvirtDriver
from oslo_messaging import MessagingTimeout

from mh_core.encoding import unb64u
from mh_nova.hook import faults
from mh_nova.hook.base import TrustedDriver
from mh_nova.hook.guard import TRAIT
from tests.functional.mh_nova.hook.conftest import (
    IMAGE,
    Glance,
    Stock,
    base_file,
    make_instance,
    message,
    write_disk,
)
from tests.unit.mh_nova.hook.fake_agent import (
    INSTANCE,
    TRUSTED,
    FakeAgent,
    known,
    no,
)
from tests.unit.mh_nova.hook.test_properties import image

CONF = nova.conf.CONF
pytestmark = pytest.mark.usefixtures("saved")
XML = "<domain><name>x</name></domain>"
UNTRUSTED = {
    **TRUSTED,
    "trusted": False,
    "findings": [{"event": "agent.guard.tmpfs", "message": "not on tmpfs"}],
}


def spawn(driver: Any, instance: Any, info: Any = None) -> None:
    driver.spawn(None, instance, None, [], "", {}, block_device_info=info)


def hard_reboot(driver: Any, instance: Any) -> None:
    driver._hard_reboot(None, instance, None, [])


# The gate


def test_a_start_is_admitted_with_its_xml_and_reported(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("_create_guest")
    stock.during = lambda driver: list(agent.verbs())
    before = driver._create_guest(None, XML, make_instance())
    # nova's own start happened between the two
    assert before[-1] == "start"
    assert agent.verbs()[-2:] == ["start", "started"]
    assert agent.asked("start")[0]["xml"] == XML
    assert agent.asked("start")[0]["purpose"] == "start"
    assert agent.asked("started")[0]["ok"] is True


def test_a_start_that_fails_is_reported(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    def fail(driver: Any) -> None:
        raise exception.InternalError("qemu")

    stock.replace("_create_guest")
    stock.during = fail
    with pytest.raises(exception.InternalError):
        driver._create_guest(None, XML, make_instance())
    assert agent.asked("started")[0]["ok"] is False


@pytest.mark.parametrize(
    "answer", [no("agent.kms.refused"), no("agent.admit.disk"), None]
)
def test_no_start_without_the_agents_word(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    saved: list[dict[str, str]],
    answer: Any,
) -> None:
    stock.replace("_create_guest")
    agent.answers["start"] = answer
    with pytest.raises(exception.NovaException) as caught:
        driver._create_guest(None, XML, make_instance(), power_on=True)
    assert stock.calls == []
    assert agent.asked("started")[0]["ok"] is False
    assert message(caught.value).startswith("Trusted start refused: ")
    assert saved[-1][faults.REFUSED] == message(caught.value)


@pytest.mark.parametrize(
    "error",
    [exception.InstanceNotFound(instance_id="x"), MessagingTimeout("slow")],
)
def test_what_cannot_be_told_changes_no_outcome(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(self: Any, *args: Any) -> None:
        raise error

    monkeypatch.setattr(objects.Instance, "save", fail)
    stock.replace("_create_guest")
    stock.during = lambda driver: "guest"
    before = {faults.REFUSED: "an earlier reason", "mh_ticket": "T" * 43}
    one = make_instance(metadata=before)
    assert driver._create_guest(None, XML, one) == "guest"
    assert one.metadata == {"mh_ticket": "T" * 43}
    agent.answers["start"] = no("agent.admit.disk")
    with pytest.raises(exception.NovaException, match=r"agent\.admit\.disk"):
        driver._create_guest(None, XML, one)
    assert stock.calls == ["_create_guest"]


def test_paused_is_started_but_defined_is_not(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("_create_guest")
    one = make_instance()
    driver._create_guest(None, XML, one, power_on=False, pause=True)
    assert "start" in agent.verbs()
    agent.seen.clear()
    driver._create_guest(None, XML, one, power_on=False)
    assert set(agent.verbs()) <= {"ours"}
    assert stock.calls == ["_create_guest"] * 2


def test_a_guest_that_runs_is_not_lost_with_the_agent(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("_create_guest")
    agent.answers["started"] = None
    stock.during = lambda driver: "guest"
    assert driver._create_guest(None, XML, make_instance()) == "guest"


def test_a_host_that_lost_trust_starts_nothing_of_ours(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("_create_guest")
    agent.answers["status"] = UNTRUSTED
    with pytest.raises(exception.NovaException, match=r"agent\.guard\.tmpfs"):
        driver._create_guest(None, XML, make_instance())
    assert stock.calls == []
    assert "start" not in agent.verbs()


# Launch


def test_launch(driver: Any, agent: FakeAgent, stock: Stock) -> None:
    stock.replace("spawn", "_create_guest")
    one = make_instance()

    def start(driver: Any) -> None:
        stock.during = lambda driver: None
        driver._create_guest(None, XML, one)

    stock.during = start
    spawn(driver, one)
    assert stock.calls == ["spawn", "_create_guest"]
    assert agent.asked("prepare")[0]["purpose"] == "launch"
    assert agent.asked("start")[0]["purpose"] == "launch"
    assert "forget" not in agent.verbs()
    # the next start is not a launch
    driver._create_guest(None, XML, one)
    assert agent.asked("start")[1]["purpose"] == "start"


def test_a_refused_launch_aborts_the_build_and_is_forgotten(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("spawn", "_create_guest")
    agent.answers["start"] = no(
        "agent.kms.refused", "the key server refused: kms.release.project"
    )
    one = make_instance()
    stock.during = lambda driver: driver._create_guest(None, XML, one)
    with pytest.raises(exception.BuildAbortException) as caught:
        spawn(driver, one)
    assert message(caught.value) == (
        "Trusted launch refused: the key server refused: "
        "kms.release.project [agent.kms.refused]"
    )
    assert stock.calls == ["spawn"]
    assert agent.verbs()[-2:] == ["started", "forget"]


@contextlib.contextmanager
def option(name: str, value: Any, group: str | None = None) -> Iterator[None]:
    CONF.set_override(name, value, group)
    try:
        yield
    finally:
        CONF.clear_override(name, group)


@pytest.mark.parametrize(
    ("changes", "info", "cause"),
    [
        ({"kernel_id": IMAGE}, None, "launch.kernel"),
        ({"ramdisk_id": IMAGE}, None, "launch.kernel"),
        ({"image_ref": ""}, None, "launch.volume"),
        (
            {},
            {"block_device_mapping": [{"boot_index": 0}]},
            "launch.volume",
        ),
    ],
)
def test_refused_before_anything_is_made(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    changes: dict[str, Any],
    info: Any,
    cause: str,
) -> None:
    stock.replace("spawn")
    with pytest.raises(exception.BuildAbortException) as caught:
        spawn(driver, make_instance(**changes), info)
    assert message(caught.value).endswith(f"[hook.{cause}]")
    assert stock.calls == []
    assert set(agent.verbs()) <= {"ours", "forget"}


GIB = 1 << 30


@pytest.mark.parametrize(
    ("changes", "flavor", "info", "names"),
    [
        ({}, {}, None, []),
        ({}, {"swap": 64}, None, [("disk.swap", 64 << 20)]),
        ({}, {"ephemeral_gb": 2}, None, [("disk.local", 2 * GIB)]),
        (
            {"config_drive": "True"},
            {"ephemeral_gb": 3, "swap": 64},
            {
                "ephemerals": [{"size": 1}, {"size": 2}],
                "swap": {"device_name": "vdd", "swap_size": 32},
            },
            [
                ("disk.eph0", GIB),
                ("disk.eph1", 2 * GIB),
                ("disk.swap", 32 << 20),
                ("disk.config", 0),
            ],
        ),
    ],
)
def test_more_disks_are_asked_for_with_the_root_disk(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    changes: dict[str, Any],
    flavor: dict[str, int],
    info: Any,
    names: list[tuple[str, int]],
) -> None:
    stock.replace("spawn")
    one = make_instance(**changes)
    for name, value in flavor.items():
        setattr(one.flavor, name, value)
    spawn(driver, one, info)
    (request,) = agent.asked("prepare")
    assert [
        (disk["name"], disk["size"]) for disk in request["disks"][1:]
    ] == names


def test_files_are_not_left_out_without_a_word(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("spawn")
    with pytest.raises(exception.BuildAbortException, match=r"launch\.files"):
        driver.spawn(None, make_instance(), None, [("/x", b"y")], "", {})
    assert stock.calls == []
    driver.spawn(
        None, make_instance(config_drive="True"), None, [("/x", b"y")], "", {}
    )
    assert stock.calls == ["spawn"]


class Metadata:
    """nova's InstanceMetadata, without a cloud to ask."""

    def __init__(self, instance: Any, **more: Any) -> None:
        self.more = more

    def metadata_for_config_drive(self) -> Iterator[tuple[str, bytes]]:
        yield "openstack/latest/user_data", b"user-data"
        yield "openstack/2012-08-10/user_data", b"user-data"
        yield (
            "openstack/latest/meta_data.json",
            repr(self.more["extra_md"]).encode(),
        )


@pytest.mark.parametrize("rescue", [False, True])
def test_a_config_drive_goes_to_the_agent_and_to_no_file(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    where: Path,
    monkeypatch: pytest.MonkeyPatch,
    rescue: bool,
) -> None:
    monkeypatch.setattr(
        "mh_nova.hook.operations.config_drive.instance_metadata."
        "InstanceMetadata",
        Metadata,
    )
    monkeypatch.setattr(
        "nova.virt.configdrive.ConfigDriveBuilder.make_drive",
        lambda *args: pytest.fail("written in the clear"),
    )
    stock.replace("_build_device_metadata")
    injection = InjectionInfo(network_info=None, files=[], admin_pass="secret")
    one = make_instance(config_drive="True")
    driver._create_configdrive(None, one, injection, rescue=rescue)
    (request,) = agent.asked("drive")
    assert request["name"] == "disk.config" + (".rescue" if rescue else "")
    files = {
        path: unb64u(file["data"])
        for file in request["files"]
        for path in file["paths"]
    }
    assert len(request["files"]) == 2
    assert files["openstack/latest/user_data"] == b"user-data"
    assert b"secret" in files["openstack/latest/meta_data.json"]
    assert list(where.iterdir()) == []
    # a drive that is there stays
    (where / INSTANCE).mkdir()
    (where / INSTANCE / request["name"]).touch()
    driver._create_configdrive(None, one, injection, rescue=rescue)
    assert len(agent.asked("drive")) == 1
    # and none where none is wanted
    driver._create_configdrive(None, make_instance(), injection)
    assert len(agent.asked("drive")) == 1


def test_a_config_drive_that_is_refused_ends_the_launch(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "mh_nova.hook.operations.config_drive.instance_metadata."
        "InstanceMetadata",
        Metadata,
    )
    stock.replace("_build_device_metadata", "_create_guest", "spawn")
    agent.answers["drive"] = no("agent.config-drive.pinned")
    one = make_instance(config_drive="True")
    injection = InjectionInfo(network_info=None, files=[], admin_pass="")
    steps = {
        "spawn": lambda driver: driver._create_guest(None, XML, one),
        "_create_guest": lambda driver: driver._create_configdrive(
            None, one, injection
        ),
    }
    stock.during = lambda driver: steps.get(
        stock.calls[-1], lambda driver: None
    )(driver)
    with pytest.raises(
        exception.BuildAbortException, match=r"config-drive\.pinned"
    ):
        spawn(driver, one)
    assert agent.verbs()[-2:] == ["started", "forget"]
    assert agent.asked("started")[0]["ok"] is False


def test_operators_options_that_would_leak(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("spawn")
    with (
        option("inject_partition", -1, "libvirt"),
        pytest.raises(exception.BuildAbortException, match="injection"),
    ):
        spawn(driver, make_instance())
    assert stock.calls == []


def test_a_kernel_named_by_the_image_only(
    driver: Any, agent: FakeAgent, glance: Glance, stock: Stock
) -> None:
    stock.replace("spawn")
    glance.images[IMAGE] = image(kernel_id=IMAGE)
    with pytest.raises(exception.BuildAbortException, match=r"launch\.kernel"):
        spawn(driver, make_instance())
    assert stock.calls == []


def test_no_launch_on_a_host_that_may_not(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("spawn")
    agent.answers["status"] = UNTRUSTED
    with pytest.raises(exception.BuildAbortException) as caught:
        spawn(driver, make_instance())
    assert message(caught.value) == (
        "Trusted launch refused: not on tmpfs [agent.guard.tmpfs]"
    )
    assert stock.calls == []


def test_no_launch_without_an_agent(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("spawn")
    agent.close()
    with pytest.raises(exception.BuildAbortException) as caught:
        spawn(driver, make_instance())
    assert message(caught.value).endswith("[hook.agent.unavailable]")
    assert stock.calls == []


# Plain instances


@pytest.mark.parametrize("running", [True, False])
def test_plain_instances_need_no_agent(
    driver: Any, agent: FakeAgent, stock: Stock, running: bool
) -> None:
    names = [
        "spawn",
        "_create_guest",
        "_hard_reboot",
        "_soft_reboot",
        "suspend",
        "snapshot",
        "power_off",
        "rescue",
        "migrate_disk_and_power_off",
        "check_can_live_migrate_source",
        "check_can_live_migrate_destination",
        "pre_live_migration",
        "attach_volume",
        "volume_snapshot_create",
        "_cleanup",
    ]
    stock.replace(*names)
    if not running:
        agent.close()
    one = make_instance(trusted=False, config_drive="True")
    one.flavor.swap = 64
    spawn(driver, one)
    driver._create_guest(None, XML, one)
    hard_reboot(driver, one)
    driver._soft_reboot(one)
    driver.suspend(None, one)
    driver.snapshot(None, one, IMAGE, None)
    one.task_state = task_states.SHELVING
    driver.power_off(one)
    driver.rescue(None, one, None, None, None, None, None)
    driver.migrate_disk_and_power_off(None, one, "d", None, None)
    driver.check_can_live_migrate_source(None, one, None)
    driver.check_can_live_migrate_destination(None, one, None, None)
    driver.pre_live_migration(None, one, None, None, None, None)
    driver.attach_volume(None, {}, one, "/dev/vdb")
    driver.volume_snapshot_create(None, one, IMAGE, {})
    driver._cleanup(None, one, None, cleanup_instance_disks=True)
    assert sorted(stock.calls) == sorted(names)
    assert set(agent.verbs()) <= {"ours"}


# Metadata taken away


def test_stripped_instances_can_be_stopped_and_deleted_only(
    driver: Any, agent: FakeAgent, stock: Stock, where: Path
) -> None:
    stock.replace(
        "_create_guest",
        "_hard_reboot",
        "_soft_reboot",
        "suspend",
        "snapshot",
        "attach_volume",
        "power_off",
        "_cleanup",
    )
    (where / INSTANCE).mkdir()
    write_disk(str(where / INSTANCE / "disk"))
    one = make_instance(trusted=False)
    for refused in (
        lambda: driver._create_guest(None, XML, one),
        lambda: hard_reboot(driver, one),
        lambda: driver._soft_reboot(one),
        lambda: driver.suspend(None, one),
        lambda: driver.attach_volume(None, {}, one, "/dev/vdb"),
    ):
        with pytest.raises(exception.NovaException):
            refused()
    assert stock.calls == []
    driver.power_off(one)
    driver._cleanup(None, one, None, cleanup_instance_disks=True)
    assert stock.calls == ["power_off", "_cleanup"]
    assert agent.verbs()[-1] == "forget"


# Reboots


def test_hard_reboot_refuses_before_the_domain_is_destroyed(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("_hard_reboot")
    agent.answers["status"] = UNTRUSTED
    with pytest.raises(exception.NovaException, match="tmpfs"):
        hard_reboot(driver, make_instance())
    agent.close()
    with pytest.raises(exception.NovaException, match="unavailable"):
        hard_reboot(driver, make_instance())
    assert stock.calls == []


def test_hard_reboot_needs_no_user_token(
    driver: Any, agent: FakeAgent, glance: Glance, stock: Stock
) -> None:
    stock.replace("_hard_reboot")
    glance.images.clear()
    guest = SimpleNamespace(is_active=lambda: True)
    driver._host = SimpleNamespace(get_guest=lambda instance: guest)
    hard_reboot(driver, make_instance())
    assert stock.calls == ["_hard_reboot"]
    assert agent.verbs() == ["ours", "status", "ask-start"]


def test_soft_reboot_never_starts_by_itself(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("_soft_reboot", "_clean_shutdown")
    assert driver._soft_reboot(make_instance()) is False
    assert stock.calls == ["_clean_shutdown"]
    agent.close()
    with pytest.raises(exception.NovaException, match="unavailable"):
        driver._soft_reboot(make_instance())
    assert stock.calls == ["_clean_shutdown"]


# The end


def test_delete_forgets(driver: Any, agent: FakeAgent, stock: Stock) -> None:
    stock.replace("_cleanup")
    driver._cleanup(None, make_instance(), None, cleanup_instance_disks=True)
    assert agent.verbs() == ["forget"]


def test_what_keeps_the_disks_forgets_nothing(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("_cleanup")
    driver._cleanup(None, make_instance(), None)
    assert set(agent.verbs()) <= {"ours"}


def test_rebuilt_from_ours_to_plain(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    """nova changes the metadata first; the host still knows."""
    stock.replace("_cleanup")
    agent.answers["ours"] = known(True, "record")
    one = make_instance(trusted=False)
    driver._cleanup(None, one, None, cleanup_instance_disks=True)
    assert agent.verbs() == ["ours", "forget"]


def test_delete_without_an_agent(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("_cleanup")
    agent.close()
    driver._cleanup(None, make_instance(), None, cleanup_instance_disks=True)
    assert stock.calls == ["_cleanup"]


# The host


def traits(driver: Any) -> set[str]:
    providers = tree.ProviderTree()
    providers.new_root("node1", INSTANCE)
    providers.add_traits("node1", "HW_CPU_X86_AVX")
    driver.update_provider_tree(providers, "node1")
    return set(providers.data("node1").traits)


def test_the_trait_follows_the_agent(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("update_provider_tree")
    assert traits(driver) == {"HW_CPU_X86_AVX", TRAIT}
    agent.answers["status"] = UNTRUSTED
    assert traits(driver) == {"HW_CPU_X86_AVX"}
    agent.answers["status"] = TRUSTED
    assert TRAIT in traits(driver)
    agent.close()
    assert TRAIT not in traits(driver)
    assert stock.calls == ["update_provider_tree"] * 4


def test_the_trait_is_taken_from_a_tree_that_has_it(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("update_provider_tree")
    agent.close()
    providers = tree.ProviderTree()
    providers.new_root("node1", INSTANCE)
    providers.add_traits("node1", TRAIT)
    driver.update_provider_tree(providers, "node1")
    assert TRAIT not in providers.data("node1").traits


def test_changed_nova_source_withdraws_trust_and_serves_plain(
    agent: FakeAgent,
    glance: Glance,
    stock: Stock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def suspend(self, context, instance):  # type: ignore[no-untyped-def]
        stock.calls.append("changed suspend")

    monkeypatch.setattr(LibvirtDriver, "suspend", suspend)
    name = "mh.TrustedLibvirtDriver"
    driver = virt_driver.load_compute_driver(None, name)
    with option("strict_compat", False, "mh"):
        lax = virt_driver.load_compute_driver(None, name)
    # after the load: the check would see this replacement, too
    stock.replace("update_provider_tree")
    assert TRAIT not in traits(driver)
    with pytest.raises(exception.BuildAbortException) as caught:
        spawn(driver, make_instance())
    assert message(caught.value).endswith("[hook.compat.source]")
    driver.suspend(None, make_instance(trusted=False))
    assert stock.calls[-1] == "changed suspend"
    assert TRAIT in traits(lax)


def test_another_cache_directory_is_a_finding(
    agent: FakeAgent, glance: Glance, stock: Stock
) -> None:
    with option("subdirectory_name", "cache", "image_cache"):
        one = virt_driver.load_compute_driver(None, "mh.TrustedLibvirtDriver")
    stock.replace("update_provider_tree")
    assert TRAIT not in traits(one)


def test_init_host_with_and_without_an_agent(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("init_host")
    driver.init_host("node1")
    agent.close()
    driver.init_host("node1")
    assert stock.calls == ["init_host"] * 2


# Properties stripped from an encrypted image: stock nova, real qemu-img


def fetch_plain(driver: Any, one: Any, size: int | None) -> None:
    from nova.virt.libvirt import utils as libvirt_utils

    disk = driver.image_backend.by_name(one, "disk")
    driver._try_fetch_image_cache(
        disk,
        libvirt_utils.fetch_image,
        None,
        imagecache.get_cache_fname(IMAGE),
        IMAGE,
        one,
        size,
    )


@pytest.mark.parametrize("force_raw", [True, False])
@pytest.mark.parametrize("size", [None, 1048576, 4 << 20])
def test_stripped_properties_fail_clearly(
    driver: Any,
    glance: Glance,
    where: Path,
    force_raw: bool,
    size: int | None,
) -> None:
    glance.images[IMAGE] = {
        "id": IMAGE,
        "disk_format": "qcow2",
        "container_format": "bare",
        "properties": {},
    }
    with (
        option("force_raw_images", force_raw),
        pytest.raises(exception.BuildAbortException) as caught,
    ):
        fetch_plain(driver, make_instance(trusted=False), size)
    assert message(caught.value) == (
        "Trusted launch refused: the image is encrypted, but its properties "
        "do not say so [hook.stripped]"
    )
    assert not base_file(where).exists()


@pytest.mark.parametrize("force_raw", [True, False])
def test_a_plain_image_is_fetched_by_nova(
    driver: Any, glance: Glance, where: Path, force_raw: bool
) -> None:
    glance.source.unlink()
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", glance.source, "1M"],
        check=True,
    )
    glance.images[IMAGE] = {
        "id": IMAGE,
        "disk_format": "qcow2",
        "container_format": "bare",
        "properties": {},
    }
    with option("force_raw_images", force_raw):
        fetch_plain(driver, make_instance(trusted=False), 4 << 20)
    base = where / "_base" / imagecache.get_cache_fname(IMAGE)
    assert base.exists()
    assert (where / INSTANCE / "disk").exists()


def test_no_part_of_it_takes_anothers_method(driver: Any) -> None:
    """Its parts are mixed into one class: of two helpers of one name, one
    would be called for the other."""
    where: dict[str, list[str]] = {}
    for part in type(driver).__mro__:
        if part.__module__.startswith("mh_nova."):
            for name in vars(part):
                where.setdefault(name, []).append(part.__name__)
    abstract = vars(TrustedDriver)
    assert {
        name: parts
        for name, parts in where.items()
        if name.startswith("_mh_")
        and len(parts) > 1
        and not getattr(abstract.get(name), "__isabstractmethod__", False)
    } == {}
