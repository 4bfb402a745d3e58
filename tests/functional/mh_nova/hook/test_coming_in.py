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
"""The destination of a live migration makes the disks that are to come."""

from pathlib import Path
from typing import Any

import nova.conf
import pytest
from nova import exception
from nova.virt.libvirt import utils as libvirt_utils
from nova.virt.libvirt.driver import LibvirtDriver
from oslo_concurrency import processutils
from oslo_serialization import jsonutils

from mh_core.errors import Denied
from tests.functional.mh_nova.hook.conftest import (
    Stock,
    make_instance,
    message,
    migrate_data,
    write_disk,
)
from tests.unit.mh_nova.hook.fake_agent import DESCRIBED, DISKS, FakeAgent, no

CONF = nova.conf.CONF
pytestmark = pytest.mark.usefixtures("saved", "tls")

LISTED = jsonutils.dumps(
    [
        {"path": "/i/disk.swap", "virt_disk_size": 64 << 20},
        {"path": "/i/disk", "virt_disk_size": 1 << 30, "backing_file": "b"},
    ]
)


def test_destination_makes_every_disk(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("pre_live_migration")
    one = make_instance(host="node0")
    driver.pre_live_migration(None, one, None, None, LISTED, migrate_data())
    (asked,) = agent.asked("prepare")
    assert [(d["name"], d["size"]) for d in asked["disks"]][1:] == [
        ("disk.swap", 64 << 20)
    ]
    for bad in ("{", "[1]", '[{"path": "/i/disk.swap"}]'):
        with pytest.raises(exception.MigrationPreCheckError) as caught:
            driver.pre_live_migration(
                None, one, None, None, bad, migrate_data()
            )
        assert message(caught.value).endswith("[hook.migration.disk-info]")


WITH_DRIVE = [
    *jsonutils.loads(LISTED),
    {"path": "/i/disk.config", "virt_disk_size": 2 << 20},
]


class Carried:
    """nova's part of a move with a config drive, and the copy itself."""

    def __init__(
        self,
        agent: FakeAgent,
        stock: Stock,
        where: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.agent = agent
        self.stock = stock
        self.copies: list[dict[str, Any]] = []
        self.error: Exception | None = None
        #: What nova goes on with once the drive is there.
        self.after: list[list[str]] = []
        self.folder = where / "of-the-instance"
        self.instance = make_instance(host="node0")
        stock.replace("pre_live_migration")
        stock.during = self.pre
        monkeypatch.setattr(libvirt_utils, "copy_image", self.copy)
        monkeypatch.setattr(
            LibvirtDriver, "_create_images_and_backing", self.make
        )

    def pre(self, driver: Any) -> str:
        self.folder.mkdir()
        driver._create_images_and_backing(
            None, self.instance, str(self.folder), WITH_DRIVE, "node0"
        )
        return "data"

    def copy(self, **words: Any) -> None:
        assert "prepare" not in self.agent.verbs()
        self.copies.append(words)
        if self.error is not None:
            raise self.error
        write_disk(words["dest"])

    def make(self, driver: Any, *rest: Any) -> None:
        self.after.append(self.agent.verbs())
        for name in ("disk", "disk.swap"):
            if not (self.folder / name).exists():
                write_disk(str(self.folder / name))

    def __call__(self, driver: Any) -> Any:
        return driver.pre_live_migration(
            *(None, self.instance, None, None),
            *(jsonutils.dumps(WITH_DRIVE), migrate_data()),
        )


@pytest.fixture
def carried(
    agent: FakeAgent,
    stock: Stock,
    where: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Carried:
    return Carried(agent, stock, where, monkeypatch)


def test_a_config_drive_is_copied_before_the_agent_is_told(
    driver: Any, agent: FakeAgent, carried: Carried
) -> None:
    """Its key hangs on what stands in its header."""
    assert carried(driver) == "data"
    path = str(carried.folder / "disk.config")
    assert carried.copies == [
        {"src": path, "dest": path, "host": "node0", "receive": True}
    ]
    assert "prepare" in carried.after[0]
    (asked,) = agent.asked("prepare")
    assert asked["purpose"] == "migrate-in"
    assert [(d["name"], d["size"]) for d in asked["disks"]][1:] == [
        ("disk.swap", 64 << 20),
        ("disk.config", 2 << 20),
    ]
    assert agent.asked("forget") == []
    # a hard reboot lists the same disks, and copies none
    driver._create_images_and_backing(
        None, carried.instance, str(carried.folder), []
    )
    assert len(carried.copies) == 1
    assert len(agent.asked("prepare")) == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        processutils.ProcessExecutionError("lost connection"),
    ],
)
def test_a_config_drive_that_does_not_come(
    driver: Any, agent: FakeAgent, carried: Carried, error: Exception
) -> None:
    carried.error = error
    with pytest.raises(exception.MigrationPreCheckError) as caught:
        carried(driver)
    assert message(caught.value).endswith("[hook.migration.config-drive]")
    assert carried.after == []
    assert agent.asked("prepare") == []
    assert agent.verbs()[-1] == "forget"


def test_a_config_drive_comes_from_another_host(
    driver: Any, agent: FakeAgent, carried: Carried
) -> None:
    for host in (CONF.host, None):
        carried.instance.host = host
        with pytest.raises(exception.MigrationPreCheckError):
            carried(driver)
        carried.folder.rmdir()
    assert carried.copies == []
    assert agent.asked("prepare") == []


FLAT = {**DESCRIBED, "disks": [{"name": "disk", "size": 9, "base": False}]}
ALONE = [{**jsonutils.loads(LISTED)[1], "backing_file": ""}]


def test_the_source_tells_whose_key_an_unshelved_disk_has(
    driver: Any, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = jsonutils.dumps(ALONE)
    monkeypatch.setattr(
        LibvirtDriver, "get_instance_disk_info", lambda *args: found
    )
    agent.answers["describe"] = {**FLAT, "ok": True}
    (root,) = jsonutils.loads(driver.get_instance_disk_info(make_instance()))
    assert root.pop("mh") == FLAT
    assert root == ALONE[0]
    # of one over its base the image service knows it
    agent.answers["describe"] = {**DESCRIBED, "ok": True}
    assert driver.get_instance_disk_info(make_instance()) == found
    agent.answers["describe"] = no("agent.record.unknown")
    with pytest.raises(exception.MigrationPreCheckError):
        driver.get_instance_disk_info(make_instance())
    assert driver.get_instance_disk_info(make_instance(False)) == found


@pytest.mark.parametrize("drive", [False, True])
def test_an_unshelved_one_comes_in(
    driver: Any, agent: FakeAgent, carried: Carried, drive: bool
) -> None:
    """Under the key that the source told, once its directory is there; no
    base is looked for."""
    more = WITH_DRIVE[2:] if drive else []
    agent.answers["make"] = DISKS

    def pre(driver: Any) -> str:
        carried.folder.mkdir()
        driver._create_images_and_backing(
            None, carried.instance, str(carried.folder), ALONE + more, "node0"
        )
        return "data"

    carried.stock.during = pre  # type: ignore[assignment]
    told = [{**ALONE[0], "mh": FLAT}, *more]
    assert (
        driver.pre_live_migration(
            *(None, carried.instance, None, None),
            *(jsonutils.dumps(told), migrate_data()),
        )
        == "data"
    )
    (asked,) = agent.asked("prepare")
    assert asked["purpose"] == "migrate-in"
    assert asked["disks"] == FLAT["disks"]
    assert (asked["key_id"], asked["ticket"]) == (FLAT["key_id"], "")
    assert agent.asked("make")[0]["downloaded"] is False
    assert carried.after[0][-2:] == ["prepare", "make"]
    assert len(carried.copies) == drive
    assert agent.asked("forget") == []


@pytest.mark.parametrize(
    "listed",
    [
        # a base, and nobody told whose; or one that was told not to be
        ALONE,
        [{**ALONE[0], "backing_file": "b", "mh": FLAT}],
    ],
)
def test_an_unshelved_one_of_which_nothing_is_told(
    driver: Any, agent: FakeAgent, stock: Stock, listed: Any
) -> None:
    """Over the image's base its guest would read what it had zeroed."""
    stock.replace("pre_live_migration")
    with pytest.raises(exception.MigrationPreCheckError) as caught:
        driver.pre_live_migration(
            *(None, make_instance(host="node0"), None, None),
            *(jsonutils.dumps(listed), migrate_data()),
        )
    assert message(caught.value).endswith("[hook.refused.migration-disks]")
    assert agent.asked("prepare") == []
    assert stock.calls == []


def test_nova_makes_no_disk_of_ours(
    driver: Any,
    where: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(
        LibvirtDriver,
        "_create_images_and_backing",
        lambda driver, context, one, folder, found, host=None: given.append(
            [disk["path"] for disk in found]
        ),
    )
    found = jsonutils.loads(LISTED)

    def make(trusted: bool) -> None:
        driver._create_images_and_backing(
            None, make_instance(trusted), str(where), found, "node0"
        )

    for name in ("disk", "disk.swap"):
        with pytest.raises(Denied, match=name):
            make(True)
        write_disk(str(where / name))
    make(True)
    assert given == [["/i/disk"]] * 3
    make(False)
    assert given[-1] == ["/i/disk.swap", "/i/disk"]
