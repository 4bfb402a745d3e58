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
"""Volumes, between nova's own code and the agent.

nova's driver, its volume drivers and its configuration classes are real;
libvirt's guest is one that notes what it is given.
"""

import copy
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import nova.conf
import pytest
from lxml import etree
from nova import context as nova_context
from nova import exception, objects
from nova.compute import power_state
from nova.virt.libvirt import migration
from nova.virt.libvirt.driver import LibvirtDriver
from nova.virt.libvirt.volume import gpfs
from nova.virt.libvirt.volume import volume as libvirt_volume

from mh_core import volume
from mh_core.errors import Denied, MHError
from mh_nova.agent import domain_volume
from mh_nova.agent.admit import admit_volume
from mh_nova.hook.operations.live_migration import LiveMigration
from tests.functional.mh_nova.hook.conftest import (
    Stock,
    make_instance,
    message,
)
from tests.unit.mh_nova.hook.fake_agent import (
    TRUSTED,
    FakeAgent,
    known,
    no,
)

CONF = nova.conf.CONF
pytestmark = pytest.mark.usefixtures("saved")
CONTEXT = nova_context.get_admin_context()
VOLUME = str(uuid.UUID(int=7))
PATH = "/volumes/volume-7"


class Guest:
    """What nova asks of a guest when it plugs in."""

    def __init__(self) -> None:
        self.devices: list[str] = []
        self.error: Exception | None = None

    def get_power_state(self, host: Any) -> int:
        return int(power_state.RUNNING)

    def attach_device(self, conf: Any, persistent: bool, live: bool) -> None:
        if self.error is not None:
            raise self.error
        assert persistent
        assert live
        self.devices.append(conf.to_xml())


class Back:
    """nova's drivers for files and devices, and what they connected."""

    def __init__(self, driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        found = {
            "gpfs": gpfs.LibvirtGPFSVolumeDriver(driver._host),
            "local": libvirt_volume.LibvirtVolumeDriver(driver._host),
            "fake": libvirt_volume.LibvirtFakeVolumeDriver(driver._host),
        }
        for one in found.values():
            for name in ("connect_volume", "disconnect_volume"):
                monkeypatch.setattr(one, name, self._note(name))
        monkeypatch.setattr(driver, "volume_drivers", found)

    def _note(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append(name)


@pytest.fixture
def guest(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Guest:
    one = Guest()
    monkeypatch.setattr(driver._host, "get_guest", lambda instance: one)
    monkeypatch.setattr(driver._host, "find_secret", lambda *args: None)
    monkeypatch.setattr(
        type(driver), "_build_device_metadata", lambda *args: None
    )
    return one


@pytest.fixture
def back(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Back:
    return Back(driver, monkeypatch)


def info(kind: str = "gpfs", **changes: Any) -> dict[str, Any]:
    return {
        "driver_volume_type": kind,
        "data": {
            "device_path": PATH,
            "access_mode": "rw",
            "encrypted": changes.pop("encrypted", False),
            # some of Cinder's back ends name it here as well
            "volume_id": changes.pop("other", ""),
        },
        "serial": VOLUME,
        **changes,
    }


def attach(driver: Any, connection: Any, one: Any = None, **more: Any) -> Any:
    instance = make_instance() if one is None else one
    instance.flavor.extra_specs = {}
    return driver.attach_volume(
        CONTEXT, connection, instance, "/dev/vdb", **more
    )


def refused(driver: Any, connection: Any, **more: Any) -> str:
    with pytest.raises(exception.InvalidVolume) as caught:
        attach(driver, connection, **more)
    text = message(caught.value)
    assert text.endswith("]")
    return text.rpartition("[")[2].rstrip("]")


def asked(agent: FakeAgent) -> list[str]:
    return [verb for verb in agent.verbs() if verb.startswith("attach")]


@pytest.mark.parametrize("kind", ["gpfs", "local"])
def test_attached_as_the_agent_admitted_it(
    driver: Any, agent: FakeAgent, guest: Guest, back: Back, kind: str
) -> None:
    attach(driver, info(kind))
    (device,) = guest.devices
    (request,) = [seen for seen in agent.seen if seen["verb"] == "attach"]
    assert request["xml"] == device
    # which is what the agent's decision lets pass
    expected = domain_volume.of(etree.fromstring(device))
    assert expected == domain_volume.ExpectedVolume(
        VOLUME, "file" if kind == "gpfs" else "block", PATH
    )
    assert admit_volume(device, expected).allowed
    assert asked(agent) == ["attach", "attached"]
    assert agent.seen[-1]["ok"] is True
    assert back.calls == ["connect_volume"]


def test_a_plain_guest_gets_novas_own(
    driver: Any, agent: FakeAgent, guest: Guest, back: Back
) -> None:
    attach(driver, info(), make_instance(trusted=False))
    (device,) = guest.devices
    assert "encryption" not in device
    assert asked(agent) == []


@pytest.mark.parametrize(
    ("changes", "more", "event"),
    [
        ({"encrypted": True}, {}, "hook.volume.encrypted"),
        ({}, {"encryption": {"provider": "luks"}}, "hook.volume.encrypted"),
        ({"multiattach": True}, {}, "hook.volume.shared"),
    ],
)
def test_a_kind_that_the_cloud_reads_or_shares(
    driver: Any,
    agent: FakeAgent,
    guest: Guest,
    back: Back,
    changes: dict[str, Any],
    more: dict[str, Any],
    event: str,
) -> None:
    assert refused(driver, info(**changes), **more) == event
    assert back.calls == []
    assert guest.devices == []
    assert asked(agent) == []


@pytest.mark.parametrize(
    "connection",
    [info("fake"), info(serial=""), info(other=str(uuid.UUID(int=8)))],
)
def test_a_kind_that_cannot_be_encrypted_here(
    driver: Any,
    agent: FakeAgent,
    guest: Guest,
    back: Back,
    connection: dict[str, Any],
) -> None:
    connection = copy.deepcopy(connection)
    assert refused(driver, connection) == "hook.volume.kind"
    assert back.calls == ["connect_volume", "disconnect_volume"]
    assert guest.devices == []
    assert asked(agent) == ["attached"]


def test_the_agent_says_no(
    driver: Any, agent: FakeAgent, guest: Guest, back: Back
) -> None:
    agent.answers["attach"] = no("agent.volume.not-blank", "something on it")
    assert refused(driver, info()) == "agent.volume.not-blank"
    # nova would leave it connected
    assert back.calls == ["connect_volume", "disconnect_volume"]
    assert guest.devices == []
    assert agent.seen[-1]["ok"] is False


def test_the_agent_is_gone(
    driver: Any, agent: FakeAgent, guest: Guest, back: Back
) -> None:
    agent.answers["attach"] = None
    assert refused(driver, info()) == "hook.agent.unavailable"
    assert guest.devices == []
    assert back.calls == ["connect_volume", "disconnect_volume"]


def test_libvirt_says_no(
    driver: Any, agent: FakeAgent, guest: Guest, back: Back
) -> None:
    guest.error = ValueError("no room")
    with pytest.raises(ValueError, match="no room"):
        attach(driver, info())
    assert agent.seen[-1]["ok"] is False
    # by nova itself
    assert back.calls == ["connect_volume", "disconnect_volume"]


def test_a_host_that_is_not_sound(
    driver: Any, agent: FakeAgent, guest: Guest, back: Back
) -> None:
    agent.answers["status"] = {
        **TRUSTED,
        "trusted": False,
        "findings": [{"event": "agent.guard.swap", "message": "swap"}],
    }
    assert refused(driver, info()) == "agent.guard.swap"
    assert back.calls == []
    assert asked(agent) == []


def test_one_whose_metadata_was_taken_away(
    driver: Any, agent: FakeAgent, guest: Guest, back: Back
) -> None:
    agent.answers["ours"] = known(True, "record")
    one = make_instance(trusted=False)
    assert refused(driver, info(), one=one) == "hook.ours.disagree"
    assert back.calls == []
    assert guest.devices == []


# at a start


class Mapping(dict[str, Any]):
    """One volume of nova's list, which nova saves."""

    def save(self) -> None:
        pass


def storage(driver: Any, one: Any, connection: dict[str, Any]) -> list[Any]:
    """The devices of nova's own method for a guest with no other disk."""
    block = {
        "block_device_mapping": [
            Mapping(
                connection_info=connection,
                mount_device="/dev/vdb",
                boot_index=None,
            )
        ]
    }
    disk = {"bus": "virtio", "dev": "vdb", "type": "disk"}
    found = driver._get_guest_storage_config(
        CONTEXT,
        one,
        objects.ImageMeta.from_dict({}),
        {"mapping": {"/dev/vdb": disk, "root": {"dev": "vda"}}},
        None,
        block,
        one.flavor,
        "hvm",
    )
    return [device.to_xml() for device in found]


def test_a_start_has_it_encrypted(
    driver: Any, agent: FakeAgent, guest: Guest, back: Back
) -> None:
    (device,) = storage(driver, make_instance(), info())
    expected = domain_volume.of(etree.fromstring(device))
    assert expected is not None
    assert expected.id == VOLUME
    assert admit_volume(device, expected).allowed
    # the leave is that of the whole domain
    assert asked(agent) == []
    (device,) = storage(driver, make_instance(trusted=False), info())
    assert "encryption" not in device


@pytest.mark.parametrize(
    ("connection", "event"),
    [
        (info(encrypted=True), "hook.volume.encrypted"),
        (info(multiattach=True), "hook.volume.shared"),
        (info("fake"), "hook.volume.kind"),
    ],
)
def test_a_start_with_another_kind(
    driver: Any,
    guest: Guest,
    back: Back,
    connection: dict[str, Any],
    event: str,
) -> None:
    with pytest.raises(MHError) as caught:
        storage(driver, make_instance(), copy.deepcopy(connection))
    assert caught.value.event == event
    # what is described next in this thread is another guest's
    (device,) = storage(driver, make_instance(trusted=False), info())
    assert "encryption" not in device


def test_a_start_with_metadata_taken_away(
    driver: Any, agent: FakeAgent, guest: Guest, back: Back
) -> None:
    agent.answers["ours"] = known(True, "record")
    with pytest.raises(Denied) as caught:
        storage(driver, make_instance(trusted=False), info())
    assert caught.value.event == "hook.ours.disagree"


# what else there is about a volume


def test_a_move_of_a_volume_in_use(driver: Any, stock: Stock) -> None:
    stock.replace("swap_volume")
    with pytest.raises(exception.InvalidVolume) as caught:
        driver.swap_volume(CONTEXT, {}, {}, make_instance(), "/dev/vdb", 1)
    assert "[hook.refused.swap-volume]" in message(caught.value)
    assert stock.calls == []
    driver.swap_volume(
        CONTEXT, {}, {}, make_instance(trusted=False), "/dev/vdb", 1
    )
    assert stock.calls == ["swap_volume"]


@pytest.mark.parametrize("trusted", [True, False])
def test_a_volume_that_grows(
    driver: Any,
    guest: Guest,
    monkeypatch: pytest.MonkeyPatch,
    trusted: bool,
) -> None:
    """QEMU is told the size that it shows: less by the header."""
    sizes: list[int] = []

    class Block:
        _disk = "vdb"

        def resize(self, size: int) -> None:
            sizes.append(size)

    guest.get_block_device = lambda path: Block()  # type: ignore[attr-defined]
    monkeypatch.setattr(
        driver, "_extend_volume", lambda info, instance, size: size
    )
    one = make_instance(trusted)
    driver.extend_volume(CONTEXT, info(), one, 1 << 30)
    assert sizes == [(1 << 30) - (volume.HEADER_BYTES if trusted else 0)]


# a move of a guest that runs


@pytest.fixture
def tls(agent: FakeAgent) -> Iterator[None]:
    agent.answers["migration"] = {"ok": True, "expires_at": 1}
    CONF.set_override("live_migration_with_native_tls", True, "libvirt")
    yield
    CONF.clear_override("live_migration_with_native_tls", "libvirt")


def mapping(connection: dict[str, Any]) -> dict[str, Any]:
    return {"block_device_mapping": [{"connection_info": connection}]}


def coming(*connections: dict[str, Any]) -> Any:
    """nova's migrate_data, as the destination sends it back."""
    bdms = []
    for connection in connections:
        one = objects.LibvirtLiveMigrateBDMInfo(
            serial=connection["serial"], bus="virtio", dev="vdb", type="disk"
        )
        one.connection_info = connection
        bdms.append(one)
    return objects.LibvirtLiveMigrateData(
        block_migration=True,
        is_shared_block_storage=False,
        is_shared_instance_path=False,
        bdms=bdms,
    )


CLOUDS = [
    (info(encrypted=True), "hook.volume.encrypted"),
    (info(multiattach=True), "hook.volume.shared"),
]


@pytest.mark.usefixtures("tls")
@pytest.mark.parametrize(("connection", "event"), CLOUDS)
def test_no_move_with_a_volume_that_the_cloud_reads_or_shares(
    driver: Any, stock: Stock, connection: dict[str, Any], event: str
) -> None:
    """At either end, before anything is connected."""
    stock.replace("check_can_live_migrate_source", "pre_live_migration")
    block = mapping(connection)
    for check in (
        lambda one: driver.check_can_live_migrate_source(
            CONTEXT, one, None, block
        ),
        lambda one: driver.pre_live_migration(
            CONTEXT, one, block, None, None, coming()
        ),
    ):
        with pytest.raises(exception.MigrationPreCheckError) as caught:
            check(make_instance(host="node0"))
        assert message(caught.value).endswith(f"[{event}]")
    assert stock.calls == []


@pytest.mark.usefixtures("tls")
def test_a_move_with_a_volume(
    driver: Any, agent: FakeAgent, stock: Stock, guest: Guest, back: Back
) -> None:
    stock.replace("check_can_live_migrate_source", "pre_live_migration")
    sent = coming(info("local"))
    stock.during = lambda _driver: sent
    one = make_instance(host="node0")
    block = mapping(info("local"))
    driver.check_can_live_migrate_source(CONTEXT, one, None, block)
    found = driver.pre_live_migration(CONTEXT, one, block, None, None, sent)
    assert found is sent
    # the leave is that of the whole domain, when libvirt asks
    assert asked(agent) == []
    assert agent.asked("forget") == []


@pytest.mark.usefixtures("tls")
@pytest.mark.parametrize("sent", [coming(info("fake")), coming()])
def test_a_kind_that_could_not_come_in(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    guest: Guest,
    back: Back,
    sent: Any,
) -> None:
    """Or one without a name, which the source would leave as it is."""
    stock.replace("pre_live_migration")
    stock.during = lambda _driver: sent
    block = mapping(info("fake"))
    one = make_instance(host="node0")
    with pytest.raises(exception.MigrationPreCheckError) as caught:
        driver.pre_live_migration(CONTEXT, one, block, None, None, sent)
    assert message(caught.value).endswith("[hook.volume.kind]")
    assert agent.verbs()[-1] == "forget"
    # nova's own business
    plain = make_instance(trusted=False)
    driver.pre_live_migration(CONTEXT, plain, block, None, None, sent)


SOURCE = f"""<domain><devices><disk type="block" device="disk">
<driver name="qemu" type="raw" cache="none"/>
<source dev="/dev/of-the-source"><encryption format="luks" engine="qemu">
<secret type="passphrase" uuid="{volume.secret_uuid(VOLUME)}"/></encryption>
</source><target dev="vdb" bus="virtio"/><serial>{VOLUME}</serial>
<alias name="ua-{VOLUME}"/>
<address type="pci" domain="0x0000" bus="0x00" slot="0x07" function="0x0"/>
</disk></devices></domain>"""


class Sent:
    """nova's own XML of the destination, made in a thread as nova does."""

    def __init__(self, driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver = driver
        self.xml: Any = None
        self.error: BaseException | None = None
        monkeypatch.setattr(
            LibvirtDriver, "_live_migration_operation", self.operate
        )
        # what the source's gate is for is tested elsewhere
        monkeypatch.setattr(
            LiveMigration,
            "_live_migration_operation",
            lambda driver, *args: super(
                LiveMigration, driver
            )._live_migration_operation(*args),
        )

    def operate(self, *args: Any) -> None:
        self.xml = migration._update_volume_xml(
            etree.fromstring(SOURCE),
            *(args[4], args[1], self.driver._get_volume_config),
        )

    def __call__(self, one: Any, data: Any) -> Any:
        def run() -> None:
            try:
                self.driver._live_migration_operation(
                    CONTEXT, one, "node3", True, data, None, ["vda"]
                )
            except exception.NovaException as error:
                self.error = error

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(10)
        return self.xml


@pytest.fixture
def sent(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(driver, monkeypatch)


def test_the_destinations_device_with_our_secret(
    agent: FakeAgent, guest: Guest, back: Back, sent: Sent
) -> None:
    (device,) = sent(make_instance(), coming(info("local"))).iter("disk")
    expected = domain_volume.of(device)
    assert expected == domain_volume.ExpectedVolume(VOLUME, "block", PATH)
    # which is what the agent there lets in
    assert admit_volume(etree.tostring(device).decode(), expected).allowed
    # what the guest sees of it is as it was
    assert device.find("address").get("slot") == "0x07"
    assert asked(agent) == []
    # a plain guest's has no key of ours
    one = make_instance(trusted=False)
    (device,) = sent(one, coming(info("local"))).iter("disk")
    assert device.find("source/encryption") is None


def test_a_kind_that_cannot_be_sent(
    agent: FakeAgent, guest: Guest, back: Back, sent: Sent
) -> None:
    """An error of nova's, after which it rolls back."""
    assert sent(make_instance(), coming(info("fake"))) is None
    assert "[hook.volume.kind]" in str(sent.error)
