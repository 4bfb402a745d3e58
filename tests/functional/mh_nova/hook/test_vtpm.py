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
"""Virtual TPMs through the driver as nova loads it: those of protected
instances without the cloud's key manager, all others with it."""

import dataclasses
import grp
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nova.conf
import nova.crypto
import pytest
from nova import context as nova_context
from nova import exception, objects, vtpm
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import utils as libvirt_utils

from mh_core import vtpm as own
from mh_core.errors import Denied
from mh_nova.hook import firmware
from tests.functional.mh_nova.hook.conftest import (
    Glance,
    Stock,
    make_instance,
    message,
)
from tests.minicloud import key_manager
from tests.unit.mh_nova.hook.fake_agent import INSTANCE, FakeAgent, known, no

CONF = nova.conf.CONF
pytestmark = pytest.mark.usefixtures("saved")
CONTEXT = nova_context.get_admin_context()


@dataclasses.dataclass
class Manager:
    """The cloud's key manager, and what nova made of it."""

    folder: Path
    #: (usage, name, uuid) of secrets that nova defined in libvirt.
    defined: list[tuple[str, str, str]]

    def kept(self) -> list[str]:
        if not self.folder.exists():
            return []
        return [path.name for path in self.folder.iterdir()]


@pytest.fixture
def manager(
    tmp_path: Path, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    """A real one behind castellan's own loading of it."""
    CONF.set_override("state_path", str(tmp_path))
    CONF.set_override("backend", key_manager.BACKEND, "key_manager")
    CONF.set_override("swtpm_enabled", True, "libvirt")
    monkeypatch.setattr(nova.crypto, "_KEYMGR", None)
    manager = Manager(tmp_path / key_manager.FOLDER, [])

    def create(
        usage: str, name: str, password: bytes, uuid: str, **_more: Any
    ) -> Any:
        manager.defined.append((usage, name, uuid))
        return uuid

    monkeypatch.setattr(driver._host, "create_secret", create)
    yield manager
    CONF.clear_override("state_path")
    CONF.clear_override("backend", "key_manager")
    for name in ("swtpm_enabled", "swtpm_user", "swtpm_group"):
        CONF.clear_override(name, "libvirt")


def with_tpm(trusted: bool = True, **specs: str) -> objects.Instance:
    one = make_instance(trusted)
    one.flavor.extra_specs = {"hw:tpm_version": "2.0", **specs}
    return one


def device(driver: Any, instance: Any) -> str:
    """XML of a guest as nova builds it, with only its TPM."""
    guest = vconfig.LibvirtConfigGuest()
    driver._add_vtpm_device(
        guest, instance.flavor, instance, instance.image_meta
    )
    return "".join(one.to_xml() for one in guest.devices)


def ensure_none(manager: Manager, instance: Any) -> None:
    assert manager.kept() == []
    assert manager.defined == []
    assert "vtpm_secret_uuid" not in instance.system_metadata


# ours


def test_the_clouds_key_manager_never_hears_of_it(
    driver: Any, manager: Manager, agent: FakeAgent
) -> None:
    one = with_tpm()
    assert driver._get_or_create_secret_for_vtpm(CONTEXT, one) == (None, None)
    xml = device(driver, one)
    assert f'secret="{own.secret_uuid(INSTANCE)}"' in xml
    assert 'type="emulator" version="2.0"' in xml
    ensure_none(manager, one)
    # nova's deletion, unhindered, with nothing to delete
    vtpm.delete_secret(CONTEXT, one)
    ensure_none(manager, one)


@pytest.mark.parametrize("security", ["user", "host", "deployment"])
def test_whatever_the_flavor_says_of_the_secret(
    driver: Any, manager: Manager, security: str
) -> None:
    one = with_tpm(**{"hw:tpm_secret_security": security})
    assert driver._get_or_create_secret_for_vtpm(CONTEXT, one) == (None, None)
    ensure_none(manager, one)
    data = objects.LibvirtLiveMigrateData()
    driver._add_vtpm_secret_to_live_migrate_data(one, data)
    assert data.has_vtpm
    assert not data.has_vtpm_secret_data


def test_one_whose_metadata_was_taken_away(
    driver: Any, manager: Manager, agent: FakeAgent
) -> None:
    agent.answers["ours"] = known(True, "record")
    one = with_tpm(trusted=False)
    with pytest.raises(Denied) as caught:
        driver._get_or_create_secret_for_vtpm(CONTEXT, one)
    assert caught.value.event == "hook.ours.disagree"
    ensure_none(manager, one)


def test_a_state_that_was_left_where_it_arrived(
    driver: Any,
    manager: Manager,
    where: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A move whose key was refused, and that was confirmed all the same."""
    place = tmp_path / "libvirt"
    monkeypatch.setattr(libvirt_utils, "VTPM_DIR", f"{place}/")
    me = pwd.getpwuid(os.geteuid()).pw_name
    group = grp.getgrgid(os.getegid()).gr_name
    CONF.set_override("swtpm_user", me, "libvirt")
    CONF.set_override("swtpm_group", group, "libvirt")
    state = "tpm2/tpm2-00.permall"
    arrived = where / INSTANCE / "swtpm" / INSTANCE
    (arrived / "tpm2").mkdir(parents=True)
    (arrived / state).write_bytes(b"arrived")
    one = with_tpm()
    driver._get_or_create_secret_for_vtpm(CONTEXT, one)
    assert (place / INSTANCE / state).read_bytes() == b"arrived"
    assert not arrived.exists()
    # what is in its place is never replaced
    (arrived / "tpm2").mkdir(parents=True)
    (arrived / state).write_bytes(b"older")
    driver._get_or_create_secret_for_vtpm(CONTEXT, one)
    assert (place / INSTANCE / state).read_bytes() == b"arrived"


@pytest.mark.usefixtures("manager")
def test_the_agent_is_told(
    driver: Any, agent: FakeAgent, stock: Stock, glance: Glance
) -> None:
    stock.replace("spawn")
    driver.spawn(None, with_tpm(), None, [], None, {}, [], {})
    assert stock.calls == ["spawn"]
    assert agent.asked("prepare")[0]["vtpm"] is True
    driver.spawn(None, make_instance(), None, [], None, {}, [], {})
    assert agent.asked("prepare")[1]["vtpm"] is False


@pytest.mark.usefixtures("manager")
def test_another_version_is_refused_early(
    driver: Any, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("spawn")
    one = with_tpm(**{"hw:tpm_version": "1.2"})
    with pytest.raises(exception.BuildAbortException) as caught:
        driver.spawn(None, one, None, [], None, {}, [], {})
    assert message(caught.value).endswith("[hook.refused.vtpm]")
    assert stock.calls == []
    assert agent.asked("prepare") == []


@pytest.mark.parametrize(
    "specs",
    [{}, {"hw:tpm_version": "2.0", "hw:tpm_model": "tpm-crb"}],
)
def test_a_resize_keeps_it_as_it_is(specs: dict[str, str]) -> None:
    one = with_tpm()
    flavor = objects.Flavor(extra_specs=specs)
    with pytest.raises(Denied) as caught:
        firmware.check_resize(one, flavor)
    assert caught.value.event == "hook.migrate.vtpm"
    same = objects.Flavor(
        extra_specs={"hw:tpm_version": "2.0", "hw:cpu_policy": "shared"}
    )
    firmware.check_resize(one, same)
    without = make_instance()
    firmware.check_resize(without, objects.Flavor(extra_specs={}))
    with pytest.raises(Denied):
        firmware.check_resize(without, same)


# not ours


def test_a_plain_instance_has_its_secret_from_the_key_manager(
    driver: Any, manager: Manager
) -> None:
    one = with_tpm(trusted=False)
    secret, security = driver._get_or_create_secret_for_vtpm(CONTEXT, one)
    (kept,) = manager.kept()
    assert one.system_metadata["vtpm_secret_uuid"] == kept
    assert manager.defined == [("vtpm", INSTANCE, kept)]
    assert (secret, security) == (kept, "user")
    assert f'secret="{kept}"' in device(driver, one)
    # the same one at the next start
    driver._get_or_create_secret_for_vtpm(CONTEXT, one)
    assert manager.kept() == [kept]
    vtpm.delete_secret(CONTEXT, one)
    assert manager.kept() == []


def test_a_plain_instance_without_the_agent(
    driver: Any, manager: Manager, agent: FakeAgent
) -> None:
    agent.answers["ours"] = no("agent.gone")
    one = with_tpm(trusted=False)
    driver._get_or_create_secret_for_vtpm(CONTEXT, one)
    assert len(manager.kept()) == 1


def test_a_plain_instance_without_a_secret_is_novas_to_refuse(
    driver: Any, manager: Manager, agent: FakeAgent
) -> None:
    with pytest.raises(exception.Invalid, match="no secret"):
        device(driver, with_tpm(trusted=False))
    asked = len(agent.seen)
    # one without a TPM costs no question
    assert device(driver, make_instance(trusted=False)) == ""
    assert len(agent.seen) == asked
