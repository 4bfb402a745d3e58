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

import json
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mh_core.errors import Denied, Unavailable
from mh_nova.hook.agent_client import (
    AgentClient,
    AgentDisk,
    Finding,
    Known,
    PrepareRequest,
)
from tests.unit.mh_nova.hook.fake_agent import (
    BASE,
    INSTANCE,
    OVERLAY,
    TRUSTED,
    FakeAgent,
    known,
    no,
)

REQUEST = PrepareRequest(
    instance=INSTANCE,
    image="33333333-3333-4333-8333-333333333333",
    project="p",
    user="u",
    host="node1",
    key_url="https://kms.example/v1/keys/x",
    key_id="44444444-4444-4444-8444-444444444444",
    manifest="a.b.c",
    ticket="TICKETTICKET",
    compat=False,
    purpose="launch",
    virtual_size=1024,
    disks=(("disk", 2048),),
    user_data_digest="",
)


def frame(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def test_each_verb_sends_what_the_protocol_says(agent: FakeAgent) -> None:
    client = agent.client()
    client.status()
    client.prepare(REQUEST)
    client.make(INSTANCE, True)
    client.disks(INSTANCE)
    assert client.start(INSTANCE, "<domain/>", "launch") == "agent.admit.ok"
    client.started(INSTANCE, True)
    assert client.known(INSTANCE) == Known(False, "", "", "")
    client.suspend(INSTANCE)
    client.cache(INSTANCE, "a.b.c", "begin")
    client.forget(INSTANCE)
    one = {"instance": INSTANCE}
    assert agent.seen == [
        {"verb": "status"},
        {
            "verb": "prepare",
            "instance": INSTANCE,
            "image": "33333333-3333-4333-8333-333333333333",
            "project": "p",
            "user": "u",
            "host": "node1",
            "key_url": "https://kms.example/v1/keys/x",
            "key_id": "44444444-4444-4444-8444-444444444444",
            "manifest": "a.b.c",
            "ticket": "TICKETTICKET",
            "compat": False,
            "purpose": "launch",
            "virtual_size": 1024,
            "disks": [{"name": "disk", "size": 2048}],
            "user_data_digest": "",
            "vtpm": False,
        },
        {"verb": "make", "downloaded": True, **one},
        {"verb": "disks", **one},
        {"verb": "start", "xml": "<domain/>", "purpose": "launch", **one},
        {"verb": "started", "ok": True, **one},
        {"verb": "ours", **one},
        {"verb": "suspend", **one},
        {
            "verb": "cache",
            "image": INSTANCE,
            "manifest": "a.b.c",
            "stage": "begin",
        },
        {"verb": "forget", **one},
    ]


def test_disks_are_read(agent: FakeAgent) -> None:
    assert agent.client().disks(INSTANCE) == (
        AgentDisk("disk", OVERLAY, BASE, True),
    )


def test_status_is_read(agent: FakeAgent) -> None:
    agent.answers["status"] = {
        **TRUSTED,
        "trusted": False,
        "findings": [{"event": "agent.guard.tmpfs", "message": "no tmpfs"}],
    }
    status = agent.client().status()
    assert not status.trusted
    assert status.findings == (Finding("agent.guard.tmpfs", "no tmpfs"),)


def test_a_refusal_keeps_the_agents_event(agent: FakeAgent) -> None:
    agent.answers["start"] = no("agent.kms.refused", "the key server says no")
    with pytest.raises(Denied) as caught:
        agent.client().start(INSTANCE, "<domain/>", "launch")
    assert caught.value.event == "agent.kms.refused"
    assert caught.value.message == "the key server says no"


def test_no_agent(tmp_path: Path) -> None:
    client = AgentClient(str(tmp_path / "none"), 1, 1)
    with pytest.raises(Unavailable) as caught:
        client.status()
    assert caught.value.event == "hook.agent.unavailable"


def test_socket_without_listener(tmp_path: Path) -> None:
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(Unavailable) as caught:
        AgentClient(path, 1, 1).status()
    assert caught.value.event == "hook.agent.unavailable"


def test_agent_that_is_silent_is_given_up(agent: FakeAgent) -> None:
    def sleep(request: dict[str, Any]) -> None:
        time.sleep(1)

    agent.answers["status"] = sleep
    begun = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        agent.client(timeout=0.2).status()
    assert caught.value.event == "hook.agent.unavailable"
    assert time.monotonic() - begun < 0.9


def test_agent_that_drips_is_given_up(agent: FakeAgent) -> None:
    """The limit is for the whole answer, not for each piece of it."""
    ticks = iter([0.0, 0.0, 0.05, 0.1, 0.15, 0.2, 9.0, 9.0])
    client = AgentClient(agent.path, 1, 1, clock=lambda: next(ticks))
    agent.answers["status"] = b"\0\0"
    with pytest.raises(Unavailable):
        client.status()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\0",
        frame(b"")[:3],
        frame(b'{"ok": true')[:-1],
        None,
    ],
)
def test_hang_up(agent: FakeAgent, answer: bytes | None) -> None:
    agent.answers["status"] = answer
    with pytest.raises(Unavailable) as caught:
        agent.client().status()
    assert caught.value.event == "hook.agent.unavailable"


@pytest.mark.parametrize(
    "answer",
    [
        frame(b""),
        frame(b"[]"),
        frame(b"null"),
        frame(b"\xff"),
        frame(b'{"ok": 1}'),
        frame(b'{"ok": "true"}'),
        frame(b'{"ok": false}'),
        frame(b'{"ok": false, "error": {}}'),
        frame(b'{"ok": false, "error": {"event": "A B", "message": ""}}'),
        frame(b'{"ok": true, "ok": true}'),
        frame(b'{"ok": true, "trusted": true}'),
        struct.pack(">I", 0xFFFFFFFF),
        {**TRUSTED, "trusted": 1},
        {**TRUSTED, "key": "00"},
        {**TRUSTED, "findings": [{"event": "x"}]},
        {**TRUSTED, "findings": {}},
    ],
)
def test_no_answer_of_the_protocol(
    agent: FakeAgent, answer: dict[str, Any] | bytes
) -> None:
    agent.answers["status"] = answer
    with pytest.raises(Unavailable) as caught:
        agent.client().status()
    assert caught.value.event == "hook.agent.answer"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../disk"},
        {"name": "disk/../../x"},
        {"overlay_secret": ""},
        {"overlay_secret": "x' type='y"},
        {"base_secret": ""},
        {"base": False},
        {"base": None},
        {"path": "/etc/passwd"},
        {"base_format": "raw"},
        {"base_format": ""},
        {"base_format": None},
    ],
)
def test_disks_that_are_none(agent: FakeAgent, change: dict[str, Any]) -> None:
    disk = {
        "name": "disk",
        "overlay_secret": OVERLAY,
        "base_secret": BASE,
        "base": True,
    }
    agent.answers["disks"] = {"ok": True, "disks": [{**disk, **change}]}
    with pytest.raises(Unavailable) as caught:
        agent.client().disks(INSTANCE)
    assert caught.value.event == "hook.agent.answer"


def test_the_format_of_a_base(agent: FakeAgent) -> None:
    disk = {
        "name": "disk",
        "overlay_secret": OVERLAY,
        "base_secret": BASE,
        "base": True,
        "base_format": "luks",
    }
    agent.answers["disks"] = {"ok": True, "disks": [disk]}
    (found,) = agent.client().disks(INSTANCE)
    assert found.base_format == "luks"


def test_a_disk_twice(agent: FakeAgent) -> None:
    disk = {
        "name": "disk",
        "overlay_secret": OVERLAY,
        "base_secret": "",
        "base": False,
    }
    agent.answers["disks"] = {"ok": True, "disks": [disk, disk]}
    with pytest.raises(Unavailable):
        agent.client().disks(INSTANCE)


@given(st.binary(max_size=200))
@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
def test_any_bytes(agent: FakeAgent, data: bytes) -> None:
    agent.answers["ours"] = frame(data)
    with pytest.raises((Unavailable, Denied)):
        agent.client().ours(INSTANCE)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
def test_any_document_is_no_yes(agent: FakeAgent, value: Any) -> None:
    document = {**known(False), "ours": value}
    if isinstance(value, bool):
        document["extra"] = 1
    agent.answers["ours"] = frame(json.dumps(document).encode())
    with pytest.raises(Unavailable):
        agent.client().ours(INSTANCE)


def test_the_ticket_is_not_printed() -> None:
    assert "TICKET" not in repr(REQUEST)
    assert "TICKET" not in str(REQUEST)
