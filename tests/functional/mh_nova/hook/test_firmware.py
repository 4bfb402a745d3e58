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
"""UEFI through the driver as nova loads it: nova's own making of a guest's
configuration, of which only what would need libvirt is replaced."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nova.conf
import pytest
from lxml import etree
from nova import exception, objects
from nova.virt.libvirt import config as vconfig

from tests.functional.mh_nova.hook.conftest import (
    Glance,
    Stock,
    make_instance,
    message,
)
from tests.unit.mh_nova.agent.test_domain_firmware import events
from tests.unit.mh_nova.hook.fake_agent import FakeAgent

CONF = nova.conf.CONF
pytestmark = pytest.mark.usefixtures("saved")
UEFI = {"image_hw_firmware_type": "uefi", "image_hw_architecture": "x86_64"}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "OVMF_CODE.fd"
    path.write_bytes(b"code")
    CONF.set_override("uefi_firmware", str(path), "mh")
    yield str(path)
    CONF.clear_override("uefi_firmware", "mh")


@pytest.fixture
def host(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What libvirt would say of an x86 host with UEFI."""
    caps = types.SimpleNamespace(
        host=types.SimpleNamespace(
            cpu=types.SimpleNamespace(arch="x86_64"), uuid="0" * 36
        )
    )
    monkeypatch.setattr(driver._host, "get_capabilities", lambda: caps)
    monkeypatch.setattr(driver._host, "_check_machine_type", lambda *a: None)
    monkeypatch.setattr(
        type(driver._host), "supports_uefi", property(lambda self: True)
    )


def instance(trusted: bool = True, **more: str) -> objects.Instance:
    metadata = {**UEFI, **more}
    if trusted:
        metadata["image_mh_version"] = "1"
    return make_instance(system_metadata=metadata)


def configured(driver: Any, one: Any, old: Any = None) -> str:
    """The ``<os>`` that nova's driver writes."""
    guest = vconfig.LibvirtConfigGuest()
    guest.virt_type = "qemu"
    guest.os_type = "hvm"
    driver._configure_guest_by_virt_type(
        guest, one, one.image_meta, one.flavor, old
    )
    root = etree.Element("domain")
    guest._format_os(root)
    return etree.tostring(root.find("os")).decode()


def firmware(xml: str) -> str:
    """What the agent's decision sees of it."""
    os = etree.fromstring(xml)
    return "".join(
        etree.tostring(node).decode()
        for node in os
        if node.tag not in ("type", "boot", "smbios")
    )


@pytest.mark.usefixtures("host")
def test_nova_writes_what_the_agent_allows(driver: Any, file: str) -> None:
    one = instance(image_hw_machine_type="pc")
    xml = configured(driver, one)
    assert events(firmware(xml), file) == {"agent.admit.passed"}
    assert " firmware=" not in xml
    # control: as nova would write it
    stock = configured(
        driver, instance(trusted=False, image_hw_machine_type="pc")
    )
    assert '<os firmware="efi">' in stock
    assert events(firmware(stock), file) != {"agent.admit.passed"}


@pytest.mark.usefixtures("host")
def test_whatever_the_domain_had_before(driver: Any, file: str) -> None:
    old = vconfig.LibvirtConfigGuest()
    old.os_loader, old.os_loader_type = file, "pflash"
    old.os_loader_readonly, old.os_loader_secure = True, False
    old.os_firmware_secure = False
    old.os_nvram, old.os_nvram_template = "/x_VARS.fd", file
    xml = configured(driver, instance(image_hw_machine_type="pc"), old)
    assert events(firmware(xml), file) == {"agent.admit.passed"}
    assert "nvram" not in xml
    stock = configured(
        driver, instance(False, image_hw_machine_type="pc"), old
    )
    assert "nvram" in stock


@pytest.mark.usefixtures("host")
def test_bios_stays_bios(driver: Any, file: str) -> None:
    one = instance(image_hw_machine_type="pc", image_hw_firmware_type="bios")
    assert firmware(configured(driver, one)) == ""


def spawned(driver: Any, stock: Stock, one: Any) -> str:
    stock.replace("spawn")
    try:
        driver.spawn(None, one, None, [], None, {}, [], {})
    except exception.BuildAbortException as exc:
        assert stock.calls == []
        return message(exc)
    assert stock.calls == ["spawn"]
    return ""


def test_a_host_with_firmware(
    driver: Any, stock: Stock, glance: Glance, file: str
) -> None:
    assert spawned(driver, stock, instance()) == ""


@pytest.mark.parametrize("value", ["", "/nowhere/OVMF_CODE.fd"])
def test_a_host_without(
    driver: Any, stock: Stock, agent: FakeAgent, file: str, value: str
) -> None:
    CONF.set_override("uefi_firmware", value, "mh")
    text = spawned(driver, stock, instance())
    assert text.endswith("[hook.refused.uefi]")
    assert agent.asked("prepare") == []


def test_secure_boot(
    driver: Any, stock: Stock, agent: FakeAgent, file: str
) -> None:
    text = spawned(driver, stock, instance(image_os_secure_boot="required"))
    assert text.endswith("[hook.refused.secure-boot]")
    assert agent.asked("prepare") == []
