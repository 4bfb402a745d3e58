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
"""Suspend, resume and console, through the driver as nova loads it;
of nova, only what would need libvirt is replaced."""

import contextlib
import types
from typing import Any

import nova.conf
import pytest
from nova import exception
from nova.compute import power_state, task_states
from nova.virt.libvirt.driver import LibvirtDriver

from mh_nova.hook import faults, restore
from tests.functional.mh_nova.hook.conftest import (
    IMAGE,
    Stock,
    make_instance,
    message,
)
from tests.functional.mh_nova.hook.test_refusals import Manager
from tests.unit.mh_nova.hook.fake_agent import (
    INSTANCE,
    FakeAgent,
    known,
    no,
)

CONF = nova.conf.CONF
pytestmark = pytest.mark.usefixtures("saved")
XML = "<domain><name>instance-1</name></domain>"
KEY = "44444444-4444-4444-8444-444444444444"
URL = f"https://kms.example/v1/keys/{KEY}"
TRUE = {
    "image_mh_version": "1",
    "image_os_encrypt_key_id": KEY,
    "image_mh_key_url": URL,
}
TURNED = {**TRUE, "image_mh_key_url": "https://evil.example/v1/keys/x"}


def suspended(**changes: Any) -> Any:
    return make_instance(vm_state="suspended", **changes)


# suspend


def test_suspend_is_asked_for_and_done(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("suspend")
    stock.during = lambda _driver: agent.verbs().index("suspend")
    driver.suspend(None, make_instance())
    assert stock.calls == ["suspend"]
    assert agent.asked("suspend") == [
        {"verb": "suspend", "instance": INSTANCE}
    ]


@pytest.mark.parametrize("gone", [False, True])
def test_suspend_without_a_yes(
    driver: Any, agent: FakeAgent, stock: Stock, gone: bool
) -> None:
    stock.replace("suspend")
    agent.answers["suspend"] = no("agent.suspend.clear", "in the clear")
    if gone:
        agent.close()
    one = make_instance()
    nova = Manager()
    error = nova.run(one, lambda: driver.suspend(None, one))
    assert nova.state == "active"
    assert "hook.agent.unavailable" in message(error) or message(
        error
    ).endswith("in the clear [agent.suspend.clear]")
    assert stock.calls == []


def test_a_plain_instance_is_suspended_without_a_question(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("suspend")
    driver.suspend(None, make_instance(trusted=False))
    assert stock.calls == ["suspend"]
    assert agent.asked("suspend") == []


# resume


class Resume:
    """nova's own resume and clean-up; libvirt's part is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cleaned = 0
        self.created = 0
        self.state = power_state.SHUTDOWN
        for name, method in {
            "get_info": self._info,
            "_get_existing_domain_xml": lambda *a, **k: XML,
            "plug_vifs": lambda *a, **k: None,
            "_cleanup": self._cleanup,
            "_create_guest": self._create,
        }.items():
            monkeypatch.setattr(LibvirtDriver, name, method)

    def _info(self, *_args: Any, **_kwargs: Any) -> Any:
        return types.SimpleNamespace(state=self.state)

    def _cleanup(self, *_args: Any, **_kwargs: Any) -> None:
        self.cleaned += 1

    def _create(self, *_args: Any, **_kwargs: Any) -> Any:
        self.created += 1
        raise RuntimeError("libvirt")


@pytest.fixture
def resume(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Resume:
    monkeypatch.setattr(driver._host, "delete_secret", lambda *a: None)
    # of nova's manager: nothing to wait for
    driver.virtapi = types.SimpleNamespace(
        wait_for_instance_event=lambda *a, **k: contextlib.nullcontext()
    )
    return Resume(monkeypatch)


def test_a_refused_resume_leaves_the_saved_memory(
    driver: Any, agent: FakeAgent, resume: Resume
) -> None:
    agent.answers["start"] = no("kms.release.attestation", "not now")
    one = suspended()
    nova = Manager()
    error = nova.run(one, lambda: driver.resume(None, one, [], {}, []))
    assert nova.state == "suspended"
    assert message(error).endswith("[kms.release.attestation]")
    assert agent.asked("started")[0]["ok"] is False
    assert (resume.created, resume.cleaned) == (0, 0)


def test_a_resume_that_libvirt_fails_leaves_it_as_well(
    driver: Any, agent: FakeAgent, resume: Resume
) -> None:
    one = suspended()
    with pytest.raises(RuntimeError):
        driver.resume(None, one, [], {}, [])
    assert agent.asked("start")[0]["xml"] == XML
    assert (resume.created, resume.cleaned) == (1, 0)
    # and what is cleaned up later is
    driver._cleanup(None, one, [])
    assert resume.cleaned == 1


def test_what_runs_is_resumed(
    driver: Any, agent: FakeAgent, resume: Resume
) -> None:
    """A nova-compute before this one had it started.  Else nova would say
    that it sleeps, and no start of it could succeed."""
    resume.state = power_state.RUNNING
    driver.resume(None, suspended(), [], {}, [])
    assert (resume.created, resume.cleaned) == (0, 0)
    assert agent.asked("start") == []
    # nova's own says what it says
    with pytest.raises(RuntimeError):
        driver.resume(None, suspended(trusted=False), [], {}, [])


def test_what_runs_and_was_turned_is_not(
    driver: Any, agent: FakeAgent, resume: Resume, turned: Any
) -> None:
    resume.state = power_state.RUNNING
    turned.vm_state = "suspended"
    nova = Manager()
    error = nova.run(turned, lambda: driver.resume(None, turned, [], {}, []))
    assert nova.state == "suspended"
    assert "[hook.ours." in message(error)
    assert resume.created == 0


def test_a_plain_resume_that_fails_is_novas(
    driver: Any, agent: FakeAgent, resume: Resume
) -> None:
    with pytest.raises(RuntimeError):
        driver.resume(None, suspended(trusted=False), [], {}, [])
    assert (resume.created, resume.cleaned) == (1, 1)


# metadata that was turned


@pytest.fixture
def turned(agent: FakeAgent) -> Any:
    agent.answers["ours"] = known(True, "record", IMAGE, KEY, URL)
    return make_instance(system_metadata=TURNED)


def test_turned_and_suspended(
    driver: Any, agent: FakeAgent, stock: Stock, turned: Any
) -> None:
    stock.replace("suspend")
    nova = Manager()
    error = nova.run(turned, lambda: driver.suspend(None, turned))
    assert nova.state == "active"
    assert message(error).endswith("[hook.ours.turned]")
    assert (stock.calls, agent.asked("suspend")) == ([], [])


def test_turned_and_resumed(
    driver: Any, agent: FakeAgent, resume: Resume, turned: Any
) -> None:
    turned.vm_state = "suspended"
    nova = Manager()
    error = nova.run(turned, lambda: driver.resume(None, turned, [], {}, []))
    assert nova.state == "suspended"
    assert message(error).endswith("[hook.ours.turned]")
    assert (resume.created, resume.cleaned) == (0, 0)


def test_turned_and_started(
    driver: Any, agent: FakeAgent, stock: Stock, turned: Any
) -> None:
    stock.replace("_hard_reboot")
    with pytest.raises(exception.NovaException, match="hook.ours.turned"):
        driver._hard_reboot(None, turned, [], [])
    assert stock.calls == []


def test_turned_and_looked_at(
    driver: Any, agent: FakeAgent, stock: Stock, turned: Any
) -> None:
    stock.replace("get_console_output")
    with pytest.raises(exception.ConsoleNotAvailable):
        driver.get_console_output(None, turned)
    assert stock.calls == []


def test_turned_and_attached_to(
    driver: Any, agent: FakeAgent, stock: Stock, turned: Any
) -> None:
    stock.replace("attach_interface", "attach_volume")
    port = {"vnic_type": "normal", "type": "ovs"}
    with pytest.raises(exception.NovaException, match="hook.ours.turned"):
        driver.attach_interface(None, turned, None, port)
    with pytest.raises(exception.NovaException, match="hook.ours.turned"):
        driver.attach_volume(None, {}, turned, "/dev/vdb")
    assert stock.calls == []


def test_turned_and_moved(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    turned: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock.replace(
        "check_can_live_migrate_source",
        "check_can_live_migrate_destination",
        "live_migration",
        "migrate_disk_and_power_off",
    )
    for check in (
        lambda: driver.check_can_live_migrate_source(None, turned, None),
        lambda: driver.check_can_live_migrate_destination(
            None, turned, None, None
        ),
    ):
        with pytest.raises(
            exception.MigrationPreCheckError, match="hook.ours.turned"
        ):
            check()
    # a destination that left the checks out
    told: list[str] = []
    monkeypatch.setattr(
        faults, "record", lambda c, i, n, error: told.append(str(error))
    )
    back: list[Any] = []
    driver.live_migration(
        None, turned, "node3", None, lambda *args: back.append(args)
    )
    assert len(back) == 1
    assert told[0].endswith("[hook.ours.turned]")
    nova = Manager()
    error = nova.run(
        turned,
        lambda: driver.migrate_disk_and_power_off(
            None, turned, "node3", turned.flavor, []
        ),
    )
    assert nova.state == "active"
    assert message(error).endswith("[hook.ours.turned]")
    assert stock.calls == []


def test_turned_and_copied(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    turned: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock.replace("snapshot", "power_off")
    monkeypatch.setattr(faults, "record", lambda *args: None)
    monkeypatch.setattr(restore, "queued_image", lambda *args: None)
    with pytest.raises(exception.NovaException, match="hook.ours.turned"):
        driver.snapshot(None, turned, IMAGE, None)
    turned.task_state = task_states.SHELVING
    with pytest.raises(exception.NovaException, match="hook.ours.turned"):
        driver.power_off(turned)
    assert stock.calls == []
    assert set(agent.verbs()) == {"ours"}


def test_turned_and_stopped_or_deleted(
    driver: Any, agent: FakeAgent, stock: Stock, turned: Any
) -> None:
    stock.replace("power_off", "_cleanup")
    turned.task_state = task_states.POWERING_OFF
    driver.power_off(turned)
    driver._cleanup(None, turned, None, cleanup_instance_disks=True)
    assert stock.calls == ["power_off", "_cleanup"]
    assert len(agent.asked("forget")) == 1


# consoles


@pytest.mark.parametrize("kind", ["vnc", "spice", "serial"])
def test_consoles_that_one_could_type_at(
    driver: Any, agent: FakeAgent, stock: Stock, kind: str
) -> None:
    stock.replace(f"get_{kind}_console", "get_console_output")
    with pytest.raises(exception.ConsoleTypeUnavailable):
        getattr(driver, f"get_{kind}_console")(None, make_instance())
    assert stock.calls == []
    driver.get_console_output(None, make_instance())
    plain = make_instance(trusted=False)
    getattr(driver, f"get_{kind}_console")(None, plain)
    driver.get_console_output(None, plain)
    assert stock.calls == [
        "get_console_output",
        f"get_{kind}_console",
        "get_console_output",
    ]


# firmware


@pytest.mark.parametrize(
    ("specs", "said", "event"),
    [
        ({"hw:tpm_version": "2.0"}, {}, "hook.refused.vtpm"),
        ({}, {"image_hw_tpm_version": "2.0"}, "hook.refused.vtpm"),
        (
            {"hw:tpm_version": "2.0"},
            {"image_hw_tpm_version": "1.2"},
            "hook.refused.vtpm",
        ),
    ],
)
def test_virtual_tpm_is_refused_early_where_the_host_has_none(
    driver: Any,
    agent: FakeAgent,
    stock: Stock,
    specs: dict[str, str],
    said: dict[str, str],
    event: str,
) -> None:
    stock.replace("spawn")
    one = make_instance(system_metadata={"image_mh_version": "1", **said})
    one.flavor.extra_specs = specs
    with pytest.raises(exception.BuildAbortException) as caught:
        driver.spawn(None, one, None, [], None, {}, [], {})
    assert message(caught.value).endswith(f"[{event}]")
    assert stock.calls == []
    # nothing is asked for; an early key, if any, is let go
    assert set(agent.verbs()) <= {"ours", "forget"}


def test_a_plain_instance_may_have_both(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("spawn")
    one = make_instance(
        trusted=False, system_metadata={"image_hw_firmware_type": "uefi"}
    )
    one.flavor.extra_specs = {"hw:tpm_version": "2.0"}
    driver.spawn(None, one, None, [], None, {}, [], {})
    assert stock.calls == ["spawn"]
