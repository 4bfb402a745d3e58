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
"""Rescue through the driver as nova loads it: refused before the guest is
touched, or through the agent."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nova.conf
import pytest
from nova import exception, objects
from nova.compute import task_states
from nova.virt.libvirt import imagebackend

from mh_nova.hook import restore
from mh_nova.hook.image import MHImage
from tests.functional.mh_nova.hook.conftest import (
    IMAGE,
    OTHER,
    Glance,
    Stock,
    base_file,
    make_instance,
    message,
)
from tests.unit.mh_nova.hook.fake_agent import (
    INSTANCE,
    FakeAgent,
    known,
    no,
)
from tests.unit.mh_nova.hook.test_properties import image

CONF = nova.conf.CONF
pytestmark = pytest.mark.usefixtures("saved")
XML = "<domain><name>x</name></domain>"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """States that a server is put back to."""
    states: list[str] = []
    monkeypatch.setattr(
        restore, "vm_state", lambda instance, state: states.append(state)
    )
    return states


@pytest.fixture
def instance(where: Path) -> Any:
    (where / INSTANCE).mkdir()
    return make_instance(task_state=task_states.RESCUING)


def meta(image_id: str = IMAGE, **properties: str) -> Any:
    return objects.ImageMeta.from_dict(
        {"id": image_id, "properties": properties}
    )


def rescue(driver: Any, instance: Any, image_meta: Any = None) -> None:
    """As the manager does: off first, then the driver's rescue."""
    driver.power_off(instance, 60, 10)
    driver.rescue(
        None, instance, None, image_meta or meta(), "password", None, None
    )


def gate(driver: Any, stock: Stock, instance: Any) -> None:
    """Let nova's rescue start the guest, as it would."""
    steps = {
        "rescue": lambda driver: driver._create_guest(None, XML, instance)
    }
    stock.during = lambda driver: steps.get(
        stock.calls[-1], lambda driver: None
    )(driver)


def test_an_encrypted_rescue_image(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    where: Path,
    instance: Any,
    kept: list[str],
) -> None:
    def make(request: dict[str, Any]) -> dict[str, Any]:
        # while the guest still runs
        assert stock.calls == []
        Path(f"{base_file(where)}.part").rename(base_file(where))
        return {"ok": True, "disks": []}

    agent.answers["make-rescue"] = make
    stock.replace("power_off", "rescue", "_create_guest")
    gate(driver, stock, instance)
    instance.metadata["mh_rescue_ticket"] = "R" * 43
    instance.config_drive = "True"
    rescue(driver, instance)
    assert stock.calls == ["power_off", "rescue", "_create_guest"]
    (prepared,) = agent.asked("prepare-rescue")
    assert prepared["ticket"] == "R" * 43
    assert [disk["name"] for disk in prepared["disks"]] == [
        "disk.rescue",
        "disk.config.rescue",
    ]
    assert agent.asked("make-rescue")[0]["downloaded"] is True
    assert agent.asked("start")[0]["purpose"] == "rescue"
    assert kept == []
    # the next start is an ordinary one
    driver._create_guest(None, XML, instance)
    assert agent.asked("start")[1]["purpose"] == "start"


def test_a_plain_rescue_image_where_the_policy_allows_it(
    driver: Any,
    agent: FakeAgent,
    glance: Glance,
    stock: Stock,
    instance: Any,
) -> None:
    glance.images[OTHER] = {"id": OTHER, "properties": {}}
    stock.replace("power_off", "rescue", "_create_guest")
    made: list[Any] = []

    def during(driver: Any) -> None:
        if stock.calls[-1] == "rescue":
            backend = driver.image_backend
            made.append(backend.by_name(instance, "disk.rescue", "qcow2"))
            made.append(backend.by_name(instance, "disk", "qcow2"))
            driver._create_guest(None, XML, instance)

    stock.during = during
    rescue(driver, instance, meta(OTHER))
    assert "prepare-rescue" not in agent.verbs()
    assert agent.asked("start")[0]["purpose"] == "rescue-plain"
    assert isinstance(made[0], imagebackend.Qcow2)
    assert isinstance(made[1], MHImage)
    later = driver.image_backend.by_name(instance, "disk.rescue", "qcow2")
    assert isinstance(later, MHImage)


@contextlib.contextmanager
def nothing() -> Iterator[None]:
    yield


@contextlib.contextmanager
def kernel() -> Iterator[None]:
    CONF.set_override("rescue_kernel_id", IMAGE, "libvirt")
    try:
        yield
    finally:
        CONF.clear_override("rescue_kernel_id", "libvirt")


@pytest.mark.parametrize(
    ("case", "event"),
    [
        ("plain", "agent.kms.refused"),
        ("stranger", "agent.rescue.stranger"),
        ("prepare", "agent.kms.origin"),
        ("gone", "hook.image.missing"),
        ("kernel", "hook.launch.kernel"),
        ("image-kernel", "hook.launch.kernel"),
        ("stable-device", "hook.rescue.device"),
        ("stripped", "hook.ours.disagree"),
        ("turned", "hook.ours.turned"),
        ("no-agent", "hook.agent.unavailable"),
    ],
)
def test_refused_before_the_guest_is_touched(
    driver: Any,
    agent: FakeAgent,
    glance: Glance,
    stock: Stock,
    where: Path,
    instance: Any,
    kept: list[str],
    case: str,
    event: str,
) -> None:
    stock.replace("power_off", "rescue")
    wanted = meta()
    if case == "plain":
        glance.images[IMAGE] = {"id": IMAGE, "properties": {}}
        agent.answers["allow-plain-rescue"] = no(event)
    elif case == "stranger":
        agent.answers["make-rescue"] = no(event)
    elif case == "prepare":
        agent.answers["prepare-rescue"] = no(event)
    elif case == "gone":
        glance.images.clear()
    elif case == "image-kernel":
        glance.images[IMAGE] = image(kernel_id=IMAGE)
    elif case == "stable-device":
        wanted = meta(hw_rescue_device="disk")
    elif case == "stripped":
        instance.system_metadata = {}
        agent.answers["ours"] = known(True, "record")
    elif case == "turned":
        agent.answers["ours"] = known(True, "record", OTHER)
    elif case == "no-agent":
        agent.close()
    left = where / INSTANCE / "disk.rescue"
    left.touch()
    with (
        kernel() if case == "kernel" else nothing(),
        pytest.raises(exception.NovaException) as caught,
    ):
        rescue(driver, instance, wanted)
    assert message(caught.value).endswith(f"[{event}]")
    # the whole of what nova shows keeps the event id
    shown = exception.InstanceNotRescuable(
        instance_id=INSTANCE, reason=f"Driver Error: {caught.value}"
    )
    assert message(shown).endswith(f"[{event}]")
    assert stock.calls == []
    assert kept == ["active"]


def test_what_fails_after_it_was_stopped_leaves_it_stopped(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    where: Path,
    instance: Any,
    kept: list[str],
) -> None:
    stock.replace("power_off", "rescue", "_create_guest")
    gate(driver, stock, instance)
    agent.answers["start"] = no("agent.admit.disk")
    with pytest.raises(exception.NovaException, match=r"admit\.disk"):
        rescue(driver, instance)
    assert stock.calls == ["power_off", "rescue"]
    assert kept == ["stopped"]
    assert list((where / INSTANCE).iterdir()) == []


def test_what_fails_before_the_start_is_told_to_the_agent(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    where: Path,
    instance: Any,
    kept: list[str],
) -> None:
    """Which would hold it to be busy; should it not listen, so be it."""
    stock.replace("power_off", "rescue")

    def fails(driver: Any) -> None:
        if stock.calls[-1] == "rescue":
            raise exception.InstanceNotFound(instance_id=INSTANCE)

    stock.during = fails
    for answer in ({"ok": True}, no("agent.verb.gone")):
        agent.answers["end-rescue"] = answer
        with pytest.raises(exception.InstanceNotFound):
            rescue(driver, instance)
        assert agent.verbs()[-1] == "end-rescue"
        assert agent.asked("end-rescue")[-1]["instance"] == INSTANCE
    stock.during = lambda driver: None
    before = len(agent.asked("end-rescue"))
    rescue(driver, instance)
    assert len(agent.asked("end-rescue")) == before


@pytest.mark.parametrize("untrusted", [False, True])
def test_unrescue_passes_the_gate(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    instance: Any,
    kept: list[str],
    untrusted: bool,
) -> None:
    stock.replace("unrescue", "_create_guest")
    steps = {
        "unrescue": lambda driver: driver._create_guest(None, XML, instance)
    }
    stock.during = lambda driver: steps.get(
        stock.calls[-1], lambda driver: None
    )(driver)
    if untrusted:
        agent.answers["start"] = no("agent.kms.refused")
        with pytest.raises(exception.NovaException, match=r"kms\.refused"):
            driver.unrescue(None, instance)
        assert kept == ["rescued"]
    else:
        driver.unrescue(None, instance)
        assert kept == []
    assert agent.asked("start")[0]["purpose"] == "start"


def test_a_plain_instances_rescue_is_nova_s(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("power_off", "rescue", "unrescue")
    one = make_instance(trusted=False, task_state=task_states.RESCUING)
    rescue(driver, one)
    driver.unrescue(None, one)
    assert stock.calls == ["power_off", "rescue", "unrescue"]
