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
"""Rebuild and evacuation, refused before anything is destroyed; nova's own
manager around the driver decides what state that leaves."""

from types import SimpleNamespace
from typing import Any

import pytest
from nova import context as nova_context
from nova import exception, objects
from nova.compute import manager, task_states
from nova.safe_utils import get_wrapped_function

from mh_nova.hook import faults
from tests.functional.mh_nova.hook.conftest import (
    IMAGE,
    OTHER,
    Glance,
    make_instance,
)
from tests.functional.mh_nova.hook.test_driver import UNTRUSTED
from tests.functional.mh_nova.hook.test_refusals import Manager
from tests.unit.mh_nova.hook.fake_agent import FakeAgent, known, no
from tests.unit.mh_nova.hook.test_properties import KEY, image

URL = f"https://kms.example/v1/keys/{KEY}"
#: Of the new image.
NEW_KEY = "66666666-6666-4666-8666-666666666666"
PLAIN = "1f6a4f6e-2b1e-4f0e-9d0a-3c5d6a7b8c92"
TRUE = {
    "image_mh_version": "1",
    "image_os_encrypt_key_id": KEY,
    "image_mh_key_url": URL,
}
NS = 'xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1"'


def domain(image_id: str = IMAGE) -> str:
    return (
        f"<domain><metadata><nova:instance {NS}>"
        f'<nova:image uuid="{image_id}">'
        "<nova:diskFormat>qcow2</nova:diskFormat><nova:properties>"
        '<nova:property name="hw_rng_model">virtio</nova:property>'
        "</nova:properties></nova:image>"
        f'<nova:root type="image" uuid="{image_id}"/>'
        "</nova:instance></metadata></domain>"
    )


class Nova(Manager):
    """``ComputeManager.rebuild_instance`` itself; its parts take notes."""

    def __init__(self, driver: Any) -> None:
        super().__init__()
        self.driver = driver
        self.host = "node1"
        self.given_up: list[Any] = []
        self.destroyed: list[Any] = []
        self.rt = SimpleNamespace(
            rebuild_claim=None,
            delete_allocation_for_evacuated_instance=(
                lambda *args, **kwargs: self.given_up.append(args)
            ),
            finish_evacuation=lambda *args: None,
        )
        self.reportclient = SimpleNamespace(
            get_allocations_for_consumer=lambda *args: {}
        )

    def _set_migration_status(self, *args: Any) -> None:
        pass

    def _notify_instance_rebuild_error(self, *args: Any) -> None:
        pass

    def _error_out_instance_on_exception(self, *args: Any, **kw: Any) -> Any:
        around = manager.ComputeManager._error_out_instance_on_exception
        return around(self, *args, **kw)  # type: ignore[arg-type]

    def _do_rebuild_instance_with_claim(
        self,
        context: Any,
        instance: Any,
        orig_image_ref: Any,
        image_meta: Any,
        files: Any,
        *args: Any,
    ) -> None:
        evacuate = args[3]
        try:
            self.driver.rebuild(
                context, instance, image_meta, files, "", {}, [], None, None,
                evacuate=evacuate, block_device_info=None,
            )  # fmt: skip
        except NotImplementedError:
            self.destroyed.append(instance)

    def rebuild(
        self, instance: Any, evacuate: bool = False, files: Any = None
    ) -> Exception | None:
        """The error that nova-compute logs, if any."""
        method = get_wrapped_function(manager.ComputeManager.rebuild_instance)
        context = nova_context.get_admin_context()
        instance.task_state = task_states.REBUILDING
        try:
            method(
                self, context, instance, IMAGE, None, files, "", {}, [],
                evacuate, False, False, None, "node1", None, None, [],
            )  # fmt: skip
        except Exception as exc:  # noqa: BLE001
            return exc
        return None


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the action log says."""
    out: list[str] = []
    monkeypatch.setattr(
        faults, "record", lambda c, i, name, exc: out.append(f"{name} {exc}")
    )
    return out


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the scheduler keeps of the instance."""
    found = SimpleNamespace(image=None, save=lambda: None)
    monkeypatch.setattr(
        objects.RequestSpec, "get_by_instance_uuid", lambda *args: found
    )
    return found


@pytest.fixture
def nova(
    driver: Any, agent: FakeAgent, saved: list[Any], told: Any, spec: Any
) -> Nova:
    agent.answers["ours"] = known(True, "record", IMAGE, KEY, URL)
    guest = SimpleNamespace(get_xml_desc=domain)
    driver._host = SimpleNamespace(get_guest=lambda instance: guest)
    return Nova(driver)


@pytest.fixture
def new(glance: Glance) -> Any:
    """As nova's API leaves an instance that is rebuilt to another image."""
    other = image() | {"id": OTHER}
    other["properties"]["os_encrypt_key_id"] = NEW_KEY
    other["properties"]["mh_key_url"] = (
        f"https://kms.example/v1/keys/{NEW_KEY}"
    )
    glance.images[OTHER] = other
    return make_instance(
        image_ref=OTHER,
        system_metadata={
            "image_mh_version": "1",
            "image_os_encrypt_key_id": NEW_KEY,
            "image_hw_machine_type": "q35",
            "boot_roles": "member",
        },
    )


def was_left(nova: Nova, instance: Any, error: Exception | None) -> None:
    """In every respect that a later operation looks at."""
    assert error is None
    assert (nova.destroyed, nova.given_up, nova.state) == ([], [], None)
    assert instance.task_state is None
    assert instance.image_ref == IMAGE
    said = instance.system_metadata
    assert said["image_os_encrypt_key_id"] == KEY
    assert said["image_mh_key_url"] == URL
    assert said["image_mh_version"] == "1"
    assert said["image_base_image_ref"] == IMAGE
    assert "image_hw_machine_type" not in said
    # and so the host believes it again
    nova.driver._mh_decide(instance)


REFUSALS = {
    "host": ("status", UNTRUSTED, "agent.guard.tmpfs"),
    "key-server": (
        "ask-launch",
        no("agent.kms.refused", "kms.release.ticket"),
        "agent.kms.refused",
    ),
    "key-server-down": (
        "ask-launch",
        no("agent.kms.unavailable"),
        "agent.kms.unavailable",
    ),
}


@pytest.mark.parametrize("state", ["active", "stopped"])
@pytest.mark.parametrize("cause", sorted(REFUSALS))
def test_refused_while_the_disk_is_there(
    nova: Nova, agent: FakeAgent, new: Any, told: Any, cause: str, state: str
) -> None:
    verb, answer, event = REFUSALS[cause]
    agent.answers[verb] = answer
    new.vm_state = state
    error = nova.rebuild(new)
    was_left(nova, new, error)
    assert new.vm_state == state
    assert told[0].startswith("mh_rebuild ")
    assert event in told[0]
    assert event in new.metadata["mh_refused"]
    assert new.system_metadata["boot_roles"] == "member"


def test_refused_for_the_same_image(
    nova: Nova, agent: FakeAgent, told: Any
) -> None:
    agent.answers["ask-launch"] = no("agent.kms.refused")
    one = make_instance(system_metadata=dict(TRUE))
    was_left(nova, one, nova.rebuild(one))
    assert "agent.kms.refused" in told[0]


@pytest.mark.parametrize("turned", [{}, {**TRUE, "image_mh_key_url": "x"}])
def test_turned_and_rebuilt(
    nova: Nova, agent: FakeAgent, told: Any, turned: dict[str, str]
) -> None:
    """nova's API has read the edited image's properties by now."""
    one = make_instance(system_metadata=turned)
    was_left(nova, one, nova.rebuild(one))
    assert told[0].endswith("[hook.ours.turned]")
    assert agent.asked("ask-launch") == []


def test_an_agent_that_does_not_answer(
    nova: Nova, agent: FakeAgent, told: Any
) -> None:
    """The disk would be gone before the launch is refused."""
    agent.close()
    one = make_instance()
    error = nova.rebuild(one)
    assert (error, nova.destroyed, nova.given_up) == (None, [], [])
    assert one.task_state is None
    assert "hook.agent.unavailable" in told[0]


def test_the_shape_of_the_new_launch(
    nova: Nova, agent: FakeAgent, new: Any, told: Any
) -> None:
    error = nova.rebuild(new, files=[("/etc/motd", b"hello")])
    was_left(nova, new, error)
    assert "hook.launch" in told[0]
    assert agent.asked("ask-launch") == []


def test_the_image_before_is_gone(
    nova: Nova, agent: FakeAgent, glance: Glance, new: Any
) -> None:
    """Its own domain says what it was, and the agent whose."""
    del glance.images[IMAGE]
    agent.answers["ask-launch"] = no("agent.kms.refused")
    was_left(nova, new, nova.rebuild(new))
    assert new.system_metadata["image_hw_rng_model"] == "virtio"
    assert new.system_metadata["image_disk_format"] == "qcow2"


def test_a_plain_server_stays_what_it_was(
    nova: Nova, agent: FakeAgent, glance: Glance, new: Any, spec: Any
) -> None:
    """The agent does not know it; its own domain does."""
    agent.answers["ours"] = known(False)
    agent.answers["ask-launch"] = no("agent.kms.refused")
    plain = {"id": PLAIN, "properties": {"hw_disk_bus": "virtio"}}
    glance.images[PLAIN] = plain
    guest = SimpleNamespace(get_xml_desc=lambda: domain(PLAIN))
    nova.driver._host = SimpleNamespace(get_guest=lambda instance: guest)
    assert nova.rebuild(new) is None
    assert (nova.destroyed, nova.given_up) == ([], [])
    assert new.image_ref == PLAIN
    assert nova.driver._mh_decide(new) is False
    assert new.system_metadata["image_hw_disk_bus"] == "virtio"
    assert spec.image.id == PLAIN


def test_a_plain_server_that_boots_from_a_volume(
    nova: Nova, agent: FakeAgent, new: Any
) -> None:
    """No image, in its rows or its domain."""
    agent.answers["ours"] = known(False)
    agent.answers["ask-launch"] = no("agent.kms.refused")
    text = domain("").replace('type="image"', 'type="volume"')
    guest = SimpleNamespace(get_xml_desc=lambda: text)
    nova.driver._host = SimpleNamespace(get_guest=lambda instance: guest)
    new.image_ref = ""
    assert nova.rebuild(new) is None
    assert (nova.destroyed, nova.given_up) == ([], [])
    assert new.image_ref == ""
    assert nova.driver._mh_decide(new) is False
    assert new.system_metadata["image_hw_rng_model"] == "virtio"


@pytest.mark.parametrize("text", ["", "<domain/>"])
def test_nobody_knows_what_it_was(
    nova: Nova, agent: FakeAgent, new: Any, text: str
) -> None:
    """It is refused all the same."""
    agent.answers["ours"] = known(True, "record")
    agent.answers["ask-launch"] = no("agent.kms.refused")
    guest = SimpleNamespace(get_xml_desc=lambda: text)
    nova.driver._host = SimpleNamespace(get_guest=lambda instance: guest)
    assert nova.rebuild(new) is None
    assert (nova.destroyed, new.task_state) == ([], None)
    assert new.image_ref == OTHER


def test_asked_with_everything_that_the_launch_will_say(
    nova: Nova, agent: FakeAgent, new: Any
) -> None:
    new.flavor.swap = 64
    assert nova.rebuild(new) is None
    assert nova.destroyed == [new]
    assert new.image_ref == OTHER
    (asked,) = agent.asked("ask-launch")
    with nova.driver._mh_launcher.launch(
        None, new, (("disk.swap", 64 << 20),)
    ):
        (prepared,) = agent.asked("prepare")
    assert {**prepared, "verb": ""} == {**asked, "verb": ""}
    assert asked["ticket"] == "T" * 43
    assert asked["key_id"] == NEW_KEY


def test_to_a_plain_image_nothing_is_asked(
    nova: Nova, agent: FakeAgent
) -> None:
    agent.answers["status"] = UNTRUSTED
    one = make_instance(trusted=False, image_ref=PLAIN)
    assert nova.rebuild(one) is None
    assert nova.destroyed == [one]
    assert agent.asked("ask-launch") == []


def test_plain_to_plain_is_novas(nova: Nova, agent: FakeAgent) -> None:
    agent.answers["ours"] = known(False)
    one = make_instance(trusted=False)
    assert nova.rebuild(one) is None
    assert nova.destroyed == [one]
    assert set(agent.verbs()) == {"ours"}


@pytest.mark.parametrize("cause", sorted(REFUSALS))
def test_an_evacuation_to_a_host_that_is_refused(
    nova: Nova, agent: FakeAgent, cause: str
) -> None:
    """The server stays where it was, and in its state; what was held for
    it here is given up."""
    verb, answer, event = REFUSALS[cause]
    agent.answers[verb] = answer
    agent.answers["ours"] = known(False)
    one = make_instance(host="node2", system_metadata=dict(TRUE))
    error = nova.rebuild(one, evacuate=True)
    assert isinstance(error, exception.NovaException)
    assert event in str(error)
    assert (nova.state, nova.destroyed) == ("active", [])
    assert len(nova.given_up) == 1
