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
"""Cold moves, through the driver as nova loads it."""

import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nova.conf
import pytest
from nova import context as nova_context
from nova import exception, objects
from nova.compute import power_state
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils

from mh_nova.hook import disks, faults
from mh_nova.hook.guard import TRAIT
from tests.functional.mh_nova.hook.conftest import (
    IMAGE,
    OTHER,
    Glance,
    Stock,
    base_file,
    make_instance,
    message,
    write_disk,
)
from tests.functional.mh_nova.hook.test_refusals import Manager
from tests.unit.mh_nova.hook.fake_agent import (
    DESCRIBED,
    INSTANCE,
    FakeAgent,
    known,
    no,
)
from tests.unit.mh_nova.hook.fake_agent import (
    DISKS as DISKS_MADE,
)

CONF = nova.conf.CONF
pytestmark = pytest.mark.usefixtures("saved")
CONTEXT = nova_context.get_admin_context()
DISKS = [{"path": f"/i/{INSTANCE}/disk", "type": "qcow2"}]
PUBLIC = {name: DESCRIBED[name] for name in DESCRIBED if name != "ok"}


@pytest.fixture
def traits(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """What placement says of the destination."""
    monkeypatch.setattr(
        objects.Migration,
        "get_by_id",
        lambda *a: types.SimpleNamespace(dest_compute="n3", dest_node="n3"),
    )
    monkeypatch.setattr(
        objects.ComputeNode,
        "get_by_host_and_nodename",
        lambda *a: types.SimpleNamespace(uuid="rp"),
    )

    def say(*names: str) -> None:
        def get_provider_traits(context: Any, uuid: str) -> Any:
            return types.SimpleNamespace(traits=set(names))

        driver.virtapi = types.SimpleNamespace(
            reportclient=types.SimpleNamespace(
                get_provider_traits=get_provider_traits
            )
        )

    say(TRAIT)
    return say


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    notes: list[str] = []
    monkeypatch.setattr(
        faults, "record", lambda c, i, n, error: notes.append(str(error))
    )
    return notes


def leaving(**changes: Any) -> Any:
    one = make_instance(**changes)
    one.migration_context = objects.MigrationContext(migration_id=7)
    return one


def flavor(**changes: Any) -> Any:
    values: dict[str, Any] = {"root_gb": 0, "ephemeral_gb": 0, "swap": 0}
    return objects.Flavor(**(values | changes))


def leave(driver: Any, one: Any) -> Any:
    return driver.migrate_disk_and_power_off(
        CONTEXT, one, "127.0.0.13", flavor(), None
    )


# where it is


def test_what_the_destination_needs_goes_along(
    driver: Any, stock: Stock, traits: Any
) -> None:
    stock.replace("migrate_disk_and_power_off")
    stock.during = lambda driver: json.dumps(DISKS)
    assert json.loads(leave(driver, leaving())) == [{**DISKS[0], "mh": PUBLIC}]


def test_without_the_agents_description(
    driver: Any, agent: FakeAgent, stock: Stock, traits: Any
) -> None:
    stock.replace("migrate_disk_and_power_off")
    stock.during = lambda driver: json.dumps(DISKS)
    agent.answers["describe"] = no("agent.record.unknown")
    assert json.loads(leave(driver, leaving())) == DISKS


def test_a_plain_one_goes_as_ever(driver: Any, stock: Stock) -> None:
    stock.replace("migrate_disk_and_power_off")
    stock.during = lambda driver: json.dumps(DISKS)
    assert json.loads(leave(driver, make_instance(trusted=False))) == DISKS


@pytest.mark.parametrize("state", ["active", "stopped"])
@pytest.mark.parametrize("why", ["no trait", "unknown", "disagree"])
def test_refused_before_it_is_stopped(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    traits: Any,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    why: str,
) -> None:
    stock.replace("migrate_disk_and_power_off")
    one, event = leaving(vm_state=state), "hook.migrate."
    if why == "no trait":
        traits("CUSTOM_OTHER")
        event += "destination"
    elif why == "unknown":

        def gone(*args: Any) -> None:
            raise exception.ComputeHostNotFound(host="n3")

        monkeypatch.setattr(
            objects.ComputeNode, "get_by_host_and_nodename", gone
        )
        event += "destination"
    else:
        one.system_metadata = {}
        agent.answers["ours"] = known(True, "record")
        event = "hook.ours.disagree"
    nova = Manager()
    error = nova.run(one, lambda: leave(driver, one))
    assert nova.state == state
    assert message(error).endswith(f"[{event}]")
    assert stock.calls == []


FULL = processutils.ProcessExecutionError(
    stderr="cp: error writing '/i/disk': No space left on device\n"
)


@pytest.mark.parametrize(
    ("state", "power", "error", "calls"),
    [
        ("active", power_state.SHUTDOWN, FULL, ["power_on"]),
        ("active", power_state.RUNNING, FULL, []),
        ("stopped", power_state.SHUTDOWN, FULL, []),
        (
            "active",
            power_state.SHUTDOWN,
            OSError(28, "No space left on device"),
            ["power_on"],
        ),
    ],
)
def test_its_disk_cannot_be_copied(
    driver: Any,
    stock: Stock,
    traits: Any,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    power: int,
    error: Exception,
    calls: list[str],
) -> None:
    """As it was before, and it says why; nova leaves it off, in ERROR."""
    stock.replace("migrate_disk_and_power_off", "power_on")

    def fails(_driver: Any) -> None:
        if stock.calls == ["migrate_disk_and_power_off"]:
            raise error

    stock.during = fails
    monkeypatch.setattr(
        driver,
        "get_info",
        lambda instance: types.SimpleNamespace(state=power),
    )
    nova = Manager()
    one = leaving(vm_state=state)
    caught = nova.run(one, lambda: leave(driver, one))
    assert nova.state == state
    assert message(caught).endswith("[hook.migrate.copy]")
    assert "No space left on device" in message(caught)
    assert stock.calls[1:] == calls


def test_a_plain_ones_disk_cannot_be_copied(driver: Any, stock: Stock) -> None:
    stock.replace("migrate_disk_and_power_off")

    def fails(_driver: Any) -> None:
        raise FULL

    stock.during = fails
    with pytest.raises(processutils.ProcessExecutionError):
        leave(driver, make_instance(trusted=False))


@pytest.mark.parametrize(
    ("host", "verbs"), [("node3", ["forget"]), ("node1", [])]
)
def test_confirmed(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    host: str,
    verbs: list[str],
) -> None:
    """Forgotten where it was, not where it is."""
    stock.replace("confirm_migration")
    driver.confirm_migration(CONTEXT, None, make_instance(host=host), None)
    assert stock.calls == ["confirm_migration"]
    assert [v for v in agent.verbs() if v == "forget"] == verbs


# where it goes to


def arrive(
    driver: Any,
    one: Any,
    listed: Any = None,
    source: str = "node2",
    resized: bool = False,
    **more: Any,
) -> None:
    if listed is None:
        listed = [{**DISKS[0], "mh": PUBLIC}]
    driver.finish_migration(
        CONTEXT,
        objects.Migration(source_compute=source, dest_compute="node1"),
        one,
        json.dumps(listed),
        None,
        None,
        resized,
        {},
        **more,
    )


@pytest.fixture
def disk(where: Path, agent: FakeAgent) -> Path:
    """It was copied here by nova."""
    path = where / INSTANCE / "disk"
    path.parent.mkdir()
    write_disk(str(path), str(base_file(where)))
    return path


def as_nova(driver: Any, one: Any, size: int = 0) -> None:
    """The parts of finish_migration that meet our image class and gate."""
    image = driver.image_backend.by_name(one, "disk")
    driver._try_fetch_image_cache(
        image, None, CONTEXT, "name", IMAGE, one, size, "node2"
    )
    driver._create_guest(CONTEXT, "<domain/>", one)


@pytest.mark.parametrize(
    ("source", "purpose"), [("node2", "migrate-in"), ("node1", "resize")]
)
def test_arrives_and_starts(
    driver: Any,
    agent: FakeAgent,
    glance: Glance,
    stock: Stock,
    disk: Path,
    source: str,
    purpose: str,
) -> None:
    stock.replace("finish_migration", "_create_guest")
    one = make_instance()
    stock.during = lambda driver: (
        as_nova(driver, one, 2 << 30)
        if stock.calls == ["finish_migration"]
        else None
    )
    arrive(driver, one, source=source)
    asked = [v for v in agent.verbs() if v not in ("status", "ours")]
    assert asked == [
        "prepare",
        "disks",
        "make",
        "resize",
        "start",
        "started",
        "arrived",
    ]
    (prepared,) = agent.asked("prepare")
    assert prepared["purpose"] == purpose
    assert prepared["ticket"] == ""
    assert prepared["disks"] == [{"name": "disk", "size": 1048576}]
    assert prepared["manifest"] == PUBLIC["manifest"]
    assert agent.asked("start")[0]["purpose"] == purpose
    assert agent.asked("resize")[0]["size"] == 2 << 30
    assert glance.downloads == 1


@pytest.mark.parametrize(
    ("there", "wanted", "found"),
    [
        ({"disk": 9}, {}, {"disk": 9}),
        # made anew in another size, added, gone
        (
            {"disk": 9, "disk.swap": 1},
            {"disk.swap": 2},
            {"disk": 9, "disk.swap": 2},
        ),
        ({"disk": 9}, {"disk.swap": 2}, {"disk": 9, "disk.swap": 2}),
        ({"disk": 9, "disk.swap": 1}, {}, {"disk": 9}),
        # what was copied has the size that it has, also where it is wanted
        # no more
        (
            {"disk": 9, "disk.eph0": 1, "disk.eph1": 3, "disk.config": 4},
            {"disk.eph0": 2, "disk.local": 5, "disk.config": 0},
            {
                **{"disk": 9, "disk.eph0": 1, "disk.eph1": 3},
                **{"disk.config": 4, "disk.local": 5},
            },
        ),
    ],
)
def test_the_disks_of_a_resize(
    there: dict[str, int], wanted: dict[str, int], found: dict[str, int]
) -> None:
    got = disks.resized(tuple(there.items()), tuple(wanted.items()))
    assert got == tuple(found.items())


def test_with_the_disks_of_another_flavor(
    driver: Any, agent: FakeAgent, stock: Stock, disk: Path
) -> None:
    """Only where it is resized: else nova's list is not looked at."""
    stock.replace("finish_migration")
    one = make_instance()
    one.flavor.swap, one.flavor.ephemeral_gb = 64, 1
    told = [{**DISKS[0], "mh": PUBLIC}]
    for resized in (False, True):
        arrive(driver, one, told, resized=resized)
    before, after = agent.asked("prepare")
    assert [disk["name"] for disk in before["disks"]] == ["disk"]
    assert after["disks"][1:] == [
        {"name": "disk.swap", "size": 64 << 20},
        {"name": "disk.local", "size": 1 << 30},
    ]


def test_an_ephemeral_disk_grows_when_it_has_arrived(
    driver: Any, agent: FakeAgent, stock: Stock, disk: Path
) -> None:
    stock.replace("finish_migration")
    one = make_instance()
    write_disk(str(disk.parent / "disk.local"))

    def ask(driver: Any) -> None:
        image = driver.image_backend.by_name(one, "disk.local")
        for size in (None, 1 << 20, 2 << 30):
            image.create_image(None, "base", size)

    stock.during = ask
    arrive(driver, one)
    asked = agent.asked("resize")
    assert [(o["disk"], o["size"]) for o in asked] == [("disk.local", 2 << 30)]
    ask(driver)
    assert len(agent.asked("resize")) == 1


def test_one_that_was_unshelved_arrives(
    driver: Any, agent: FakeAgent, glance: Glance, stock: Stock, disk: Path
) -> None:
    """Its image may be gone, and is not looked for."""
    glance.images.clear()
    flat = {**PUBLIC["disks"][0], "base": False}
    carried = {**PUBLIC, "image": OTHER, "disks": [flat]}
    made = {**DISKS_MADE["disks"][0], "base": False, "base_secret": ""}
    made["base_format"] = ""
    agent.answers["disks"] = {"ok": True, "disks": [made]}
    stock.replace("finish_migration", "_create_guest")
    one = make_instance()
    stock.during = lambda driver: (
        as_nova(driver, one, 2 << 30)
        if stock.calls == ["finish_migration"]
        else None
    )
    arrive(driver, one, [{**DISKS[0], "mh": carried}])
    (prepared,) = agent.asked("prepare")
    assert prepared["disks"] == [
        {"name": "disk", "size": 1048576, "base": False}
    ]
    assert agent.asked("make")[0]["downloaded"] is False
    assert agent.asked("start")[0]["purpose"] == "migrate-in"
    assert glance.downloads == 0


def test_stock_nova_sees_its_own_list(
    driver: Any, monkeypatch: pytest.MonkeyPatch, stock: Stock, disk: Path
) -> None:
    seen: list[Any] = []
    stock.replace("finish_migration")
    stock.during = lambda driver: None
    original = type(driver).__mro__
    parent = next(k for k in original if k.__name__ == "LibvirtDriver")
    monkeypatch.setattr(
        parent, "finish_migration", lambda *a, **k: seen.append(a[4])
    )
    arrive(driver, make_instance())
    arrive(driver, make_instance(), DISKS)
    assert [json.loads(one) for one in seen] == [DISKS, DISKS]


def test_arrives_without_a_description(
    driver: Any, agent: FakeAgent, stock: Stock, disk: Path
) -> None:
    """The image service is asked; the size is the file's."""
    stock.replace("finish_migration")
    one = make_instance()
    one.flavor.root_gb = 5
    arrive(driver, one, DISKS)
    (prepared,) = agent.asked("prepare")
    assert prepared["disks"] == [{"name": "disk", "size": 1048576}]
    assert prepared["purpose"] == "migrate-in"


def copying(
    monkeypatch: pytest.MonkeyPatch, data: bytes | None
) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def copy_image(**words: Any) -> None:
        calls.append(words)
        if data is None:
            raise processutils.ProcessExecutionError("no route")
        Path(words["dest"]).write_bytes(data)

    monkeypatch.setattr(libvirt_utils, "copy_image", copy_image)
    return calls


def test_the_base_comes_from_the_host_before(
    driver: Any,
    agent: FakeAgent,
    glance: Glance,
    stock: Stock,
    where: Path,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To a name that is not the base's, for the agent to look at."""
    glance.images.clear()
    calls = copying(monkeypatch, glance.source.read_bytes())
    stock.replace("finish_migration", "_create_guest")
    one = make_instance()
    stock.during = lambda driver: (
        as_nova(driver, one) if stock.calls == ["finish_migration"] else None
    )
    arrive(driver, one)
    base = str(base_file(where))
    assert calls == [
        {"src": base, "dest": base + ".part", "host": "node2", "receive": True}
    ]
    assert agent.asked("make")[0]["downloaded"] is True
    assert agent.verbs()[-2:] == ["started", "arrived"]


@pytest.mark.parametrize(
    "why", ["key", "start", "agent", "image", "description", "shape"]
)
def test_refused_where_it_arrives(
    driver: Any,
    agent: FakeAgent,
    glance: Glance,
    stock: Stock,
    saved: list[dict[str, str]],
    told: list[str],
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    """nova finishes, guest off, so that it can be reverted."""
    stock.replace("finish_migration", "_create_guest")
    one, disks = make_instance(), None
    if why == "key":
        agent.answers["make"] = no("agent.kms.refused")
        event = "agent.kms.refused"
    elif why == "start":
        agent.answers["start"] = no("agent.admit.disk")
        event = "agent.admit.disk"
    elif why == "agent":
        agent.answers["prepare"] = None
        event = "hook.agent.unavailable"
    elif why == "image":
        glance.images.clear()
        copying(monkeypatch, None)
        event = "hook.image.missing"
    elif why == "description":
        disks = [{**DISKS[0], "mh": {**PUBLIC, "path": "/etc"}}]
        event = "hook.migrate.description"
    else:
        one.kernel_id = one.image_ref
        event = "hook.launch.kernel"
    stock.during = lambda driver: (
        as_nova(driver, one) if stock.calls == ["finish_migration"] else None
    )
    arrive(driver, one, disks)
    assert "_create_guest" not in stock.calls
    assert saved[-1][faults.REFUSED].endswith(f"[{event}]")
    assert told == [saved[-1][faults.REFUSED]]
    if agent.asked("prepare"):
        assert agent.verbs()[-1] == "arrived" or why == "agent"


def test_novas_own_failures_stay_novas(
    driver: Any, stock: Stock, disk: Path, told: list[str]
) -> None:
    def fail(driver: Any) -> None:
        raise exception.InternalError("qemu")

    stock.replace("finish_migration")
    stock.during = fail
    with pytest.raises(exception.InternalError):
        arrive(driver, make_instance())
    assert told == []


def test_marks_taken_away_on_the_way(
    driver: Any, stock: Stock, told: list[str], disk: Path
) -> None:
    """The disk itself says whose it is."""
    stock.replace("finish_migration")
    arrive(driver, make_instance(trusted=False))
    assert stock.calls == []
    assert "[hook.ours.disagree]" in told[0]


# back again


def come_back(driver: Any, one: Any) -> None:
    driver.finish_revert_migration(CONTEXT, one, None, None)


def test_reverted(
    driver: Any, agent: FakeAgent, stock: Stock, disk: Path
) -> None:
    """The disk of before may be of another size than the record says."""
    stock.replace("finish_revert_migration", "_create_guest")
    one = make_instance()

    def back(driver: Any) -> None:
        if stock.calls == ["finish_revert_migration"]:
            image = driver.image_backend.by_name(one, "disk")
            image.rollback_to_snap("nova-resize")
            driver._create_guest(CONTEXT, "<domain/>", one)

    stock.during = back
    come_back(driver, one)
    asked = [v for v in agent.verbs() if v not in ("status", "ours")]
    assert asked == [
        "describe",
        "prepare",
        "make",
        "start",
        "started",
        "arrived",
    ]
    assert agent.asked("prepare")[0]["purpose"] == "start"
    assert agent.asked("start")[0]["purpose"] == "start"


def test_reverted_to_other_disks(
    driver: Any, agent: FakeAgent, stock: Stock, disk: Path
) -> None:
    """On one host the record has those of the resize; what is there counts."""
    stock.replace("finish_revert_migration")
    flat = {**PUBLIC["disks"][0], "base": False, "name": "disk.local"}
    told = {**PUBLIC, "disks": [*PUBLIC["disks"], flat]}
    agent.answers["describe"] = {**told, "ok": True}
    write_disk(str(disk.parent / "disk.swap"))
    one = make_instance()
    stock.during = lambda driver: driver.image_backend.by_name(
        one, "disk"
    ).rollback_to_snap("nova-resize")
    come_back(driver, one)
    (asked,) = agent.asked("prepare")
    assert [disk["name"] for disk in asked["disks"]] == ["disk", "disk.swap"]


def test_reverted_and_refused(
    driver: Any, agent: FakeAgent, stock: Stock, disk: Path, told: list[str]
) -> None:
    """It is at home, and off."""
    stock.replace("finish_revert_migration", "_create_guest")
    agent.answers["start"] = no("agent.kms.refused")
    one = make_instance()
    stock.during = lambda driver: driver._create_guest(
        CONTEXT, "<domain/>", one
    )
    come_back(driver, one)
    assert "[agent.kms.refused]" in told[0]


def test_a_plain_one_comes_and_goes_as_ever(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    names = ("finish_migration", "finish_revert_migration")
    stock.replace(*names, "confirm_migration")
    one = make_instance(trusted=False, host="node3")
    arrive(driver, one, DISKS)
    come_back(driver, one)
    driver.confirm_migration(CONTEXT, None, one, None)
    assert stock.calls == [*names, "confirm_migration"]
    assert set(agent.verbs()) == {"ours"}
