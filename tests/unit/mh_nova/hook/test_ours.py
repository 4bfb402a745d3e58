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

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nova.virt.libvirt import utils as libvirt_utils

from mh_core.errors import Denied, MHError
from mh_nova.hook import ours
from mh_nova.hook.ours import Header, Ours
from tests.unit.mh_nova.hook.fake_agent import INSTANCE, FakeAgent, known, no

LUKS = b"QFI\xfb" + struct.pack(">I", 3) + bytes(24) + struct.pack(">I", 2)
PLAIN = b"QFI\xfb" + struct.pack(">I", 3) + bytes(24) + struct.pack(">I", 0)
CLAIM = {"image_mh_version": "1"}
YES = known(True, "record")
IMAGE = "33333333-3333-4333-8333-333333333333"
KEY = "44444444-4444-4444-8444-444444444444"
URL = f"https://kms.example/v1/keys/{KEY}"
RECORD = known(True, "record", IMAGE, KEY, URL)
TRUE = {
    **CLAIM,
    "image_os_encrypt_key_id": KEY,
    "image_mh_key_url": URL,
}


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        libvirt_utils, "get_instance_path", lambda instance: str(tmp_path)
    )
    return tmp_path


def instance(metadata: dict[str, str] | None = None) -> Any:
    return SimpleNamespace(
        uuid=INSTANCE,
        system_metadata=metadata or {},
        task_state=None,
        image_ref=IMAGE,
    )


@pytest.mark.parametrize(
    ("data", "result"),
    [
        (LUKS, Header.ENCRYPTED),
        (LUKS + bytes(1000), Header.ENCRYPTED),
        (PLAIN, Header.PLAIN),
        (b"", Header.PLAIN),
        (LUKS[:-1], Header.PLAIN),
        (b"\0" * 512, Header.PLAIN),
    ],
)
def test_header(tmp_path: Path, data: bytes, result: Header) -> None:
    path = tmp_path / "disk"
    path.write_bytes(data)
    assert ours.header(str(path)) is result


def test_header_of_nothing(tmp_path: Path) -> None:
    assert ours.header(str(tmp_path / "none")) is Header.ABSENT
    assert ours.header(str(tmp_path)) is Header.UNREADABLE


def test_metadata_alone_makes_it_ours(agent: FakeAgent, where: Path) -> None:
    one = Ours(agent.client())
    assert one.decide(instance(CLAIM))
    (where / "disk").write_bytes(PLAIN)
    assert one.decide(instance(CLAIM))


def test_neither(agent: FakeAgent, where: Path) -> None:
    one = Ours(agent.client())
    assert not one.decide(instance())
    (where / "disk").write_bytes(PLAIN)
    assert not one.decide(instance())
    assert not one.protected(instance())


def test_stripped_metadata_and_an_encrypted_disk(
    agent: FakeAgent, where: Path
) -> None:
    (where / "disk").write_bytes(LUKS)
    one = Ours(agent.client())
    with pytest.raises(Denied) as caught:
        one.decide(instance())
    assert caught.value.event == "hook.ours.disagree"
    assert one.protected(instance())


def test_stripped_metadata_and_the_agents_record(
    agent: FakeAgent, where: Path
) -> None:
    """Also where somebody put a plain disk in the encrypted one's place."""
    (where / "disk").write_bytes(PLAIN)
    agent.answers["ours"] = YES
    one = Ours(agent.client())
    with pytest.raises(Denied) as caught:
        one.decide(instance())
    assert caught.value.event == "hook.ours.disagree"
    assert one.protected(instance())


@pytest.mark.parametrize("content", [None, PLAIN, b"raw"])
def test_plain_goes_on_without_an_agent(
    agent: FakeAgent, where: Path, content: bytes | None
) -> None:
    if content is not None:
        (where / "disk").write_bytes(content)
    one = Ours(agent.client())
    agent.close()
    assert not one.decide(instance())
    assert not one.protected(instance())


def test_encrypted_disk_without_an_agent(
    agent: FakeAgent, where: Path
) -> None:
    (where / "disk").write_bytes(LUKS)
    one = Ours(agent.client())
    agent.close()
    with pytest.raises(Denied):
        one.decide(instance())
    assert one.protected(instance())


def test_what_cannot_be_told_apart_is_denied(
    agent: FakeAgent, where: Path
) -> None:
    (where / "disk").mkdir()
    one = Ours(agent.client())
    agent.answers["ours"] = no("agent.socket.peer")
    with pytest.raises(MHError):
        one.decide(instance())
    assert one.protected(instance())


# metadata that was turned against an instance


def test_metadata_that_agrees_with_the_record(
    agent: FakeAgent, where: Path
) -> None:
    agent.answers["ours"] = RECORD
    assert Ours(agent.client()).decide(instance(TRUE))


def test_a_url_that_nova_cut(agent: FakeAgent, where: Path) -> None:
    url = URL + "x" * 255
    agent.answers["ours"] = known(True, "record", IMAGE, KEY, url)
    said = {**TRUE, "image_mh_key_url": url[:255]}
    assert Ours(agent.client()).decide(instance(said))


@pytest.mark.parametrize(
    "change",
    [
        {"image_os_encrypt_key_id": INSTANCE},
        {"image_os_encrypt_key_id": ""},
        {"image_mh_key_url": "https://evil.example/v1/keys/x"},
        {"image_mh_key_url": URL[:-1]},
    ],
)
def test_turned_system_metadata(
    agent: FakeAgent, where: Path, change: dict[str, str]
) -> None:
    agent.answers["ours"] = RECORD
    one = Ours(agent.client())
    with pytest.raises(Denied) as caught:
        one.decide(instance({**TRUE, **change}))
    assert caught.value.event == "hook.ours.turned"
    # stop and delete ask this, which says what the instance still is
    assert one.protected(instance({**TRUE, **change}))


def test_turned_image_reference(agent: FakeAgent, where: Path) -> None:
    agent.answers["ours"] = RECORD
    turned = instance(TRUE)
    turned.image_ref = INSTANCE
    with pytest.raises(Denied) as caught:
        Ours(agent.client()).decide(turned)
    assert caught.value.event == "hook.ours.turned"
    # while it is launched anew, what is on record is of its life before
    turned.task_state = "rebuild_spawning"
    assert Ours(agent.client()).decide(turned)


def test_no_agent_to_compare_with(agent: FakeAgent, where: Path) -> None:
    one = Ours(agent.client())
    agent.close()
    with pytest.raises(MHError):
        one.decide(instance(TRUE))


def test_rebuild(agent: FakeAgent, where: Path) -> None:
    one = Ours(agent.client())
    # neither metadata nor host know anything
    one.rebuild(instance())
    agent.answers["ours"] = RECORD
    one.rebuild(instance(TRUE))
    # the image's properties were edited, and nova took them over
    for said in ({}, {**TRUE, "image_os_encrypt_key_id": INSTANCE}):
        with pytest.raises(Denied) as caught:
            one.rebuild(instance(said))
        assert caught.value.event == "hook.ours.turned"
    other = instance()
    other.image_ref = INSTANCE
    one.rebuild(other)
