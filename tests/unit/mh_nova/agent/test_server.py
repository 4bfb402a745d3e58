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
"""The socket: framing, credentials, and whatever is sent."""

import json
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mh_core.encoding import MAX_JSON
from mh_core.errors import Denied
from mh_nova.agent.server import Server
from mh_nova.agent.verbs import VERBS, Context, dispatch

I = "4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10"  # noqa: E741


class Nothing:
    """Fails the test if a verb gets as far as doing something."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"reached {name}")


CONTEXT = Context(Nothing(), Nothing(), Nothing())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = str(tmp_path_factory.mktemp("socket") / "agent.sock")

    def handle(request: Any) -> dict[str, Any]:
        if request == {"verb": "fine"}:
            return {"value": 1}
        if request == {"verb": "broken"}:
            raise ValueError("secret detail")
        if request == {"verb": "denied"}:
            raise Denied("agent.test.denied", "no")
        return dispatch(CONTEXT, request)

    server = Server(path, "", [os.getuid()], handle)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield path
    server.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert not os.path.exists(path)


def send(path: str, data: bytes) -> Any:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(path)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while part := client.recv(65536):
            answer += part
    (length,) = struct.unpack(">I", answer[:4])
    assert length == len(answer) - 4
    return json.loads(answer[4:])


def ask(path: str, value: Any) -> Any:
    body = json.dumps(value).encode()
    return send(path, struct.pack(">I", len(body)) + body)


def test_no_descriptors_left(tmp_path: Path) -> None:
    """The agent waits for better times: it has secrets to take away."""
    path = str(tmp_path / "agent.sock")
    server = Server(path, "", [os.getuid()], lambda request: {"value": 2})
    thread = threading.Thread(target=server.serve)
    thread.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        # the lowest limit: no new descriptor for anybody
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            client.connect(path)
            client.sendall(struct.pack(">I", 2) + b"{}")
            time.sleep(0.3)
            alive = thread.is_alive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert alive
        assert client.recv(4)
    server.stop()
    thread.join(5)


def test_a_traceback_names_no_values(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", "mh_nova.agent.server"):
        answer = ask(path, {"verb": "broken"})
    assert answer["error"]["event"] == "agent.internal"
    assert "in handle" in caplog.text
    assert "secret detail\n" not in caplog.text
    assert "ValueError: secret" not in caplog.text


def test_answer(path: str) -> None:
    assert ask(path, {"verb": "fine"}) == {"ok": True, "value": 1}


def test_refusal(path: str) -> None:
    assert ask(path, {"verb": "denied"}) == {
        "ok": False,
        "error": {"event": "agent.test.denied", "message": "no"},
    }


def test_unforeseen(path: str) -> None:
    assert ask(path, {"verb": "broken"}) == {
        "ok": False,
        "error": {
            "event": "agent.internal",
            "message": "an error inside the agent",
        },
    }


def test_mode(path: str) -> None:
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_other_user(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    server = Server(path, "", [os.getuid() + 1], lambda request: {})
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        assert ask(path, {"verb": "status"})["error"]["event"] == (
            "agent.socket.peer"
        )
    finally:
        server.stop()
        thread.join(5)


@pytest.mark.parametrize(
    ("data", "event"),
    [
        (b"", "agent.socket.short"),
        (b"\0\0", "agent.socket.short"),
        (struct.pack(">I", 10) + b"{}", "agent.socket.short"),
        (struct.pack(">I", MAX_JSON + 1), "agent.socket.size"),
        (struct.pack(">I", 0), "core.json.syntax"),
        (struct.pack(">I", 2) + b"{]", "core.json.syntax"),
        (struct.pack(">I", 2) + b"[]", "agent.verb"),
        (struct.pack(">I", 2) + b"{}", "agent.verb"),
        (struct.pack(">I", 12) + b'{"verb": 12}', "agent.verb"),
        (struct.pack(">I", 12) + b'{"verb":"x"}', "agent.verb.unknown"),
    ],
)
def test_malformed(path: str, data: bytes, event: str) -> None:
    answer = send(path, data)
    assert answer["ok"] is False
    assert answer["error"]["event"] == event


GOOD: dict[str, dict[str, Any]] = {
    "status": {},
    "prepare": {
        "instance": I,
        "image": I,
        "project": "p",
        "user": "u",
        "host": "node1",
        "key_url": f"https://kms.test/v1/keys/{I}",
        "key_id": I,
        "manifest": "a.b.c",
        "ticket": "",
        "compat": False,
        "purpose": "launch",
        "virtual_size": 1,
        "disks": [{"name": "disk", "size": 1}],
        "user_data_digest": "",
    },
    "make": {"instance": I, "downloaded": True},
    "disks": {"instance": I},
    "ask-start": {"instance": I},
    "start": {"instance": I, "xml": "<domain/>", "purpose": "start"},
    "drive": {
        "instance": I,
        "name": "disk.config",
        "files": [{"paths": ["openstack/latest/user_data"], "data": "eA"}],
    },
    "started": {"instance": I, "ok": True},
    "make-rescue": {"instance": I, "downloaded": True},
    "allow-plain-rescue": {"instance": I},
    "end-rescue": {"instance": I},
    "ours": {"instance": I},
    "suspend": {"instance": I},
    "cache": {"image": I, "manifest": "a.b.c", "stage": "begin"},
    "migration": {},
    "migrate-offer": {"instance": I, "destination": ""},
    "migrate-left": {"instance": I},
    "migrate-out": {"instance": I, "destination": "node3"},
    "migrate-in": {"instance": I, "xml": "<domain/>"},
    "unfinished": {},
    "lease": {"instance": I},
    "forget": {"instance": I},
    "snapshot-check": {"instance": I},
    "snapshot": {"instance": I, "image": I},
    "flatten": {"instance": I},
    "copy": {"instance": I},
    "storing": {"instance": I},
    "register": {"instance": I},
    "end": {"instance": I},
    "sweep": {},
    "abandoned": {},
    "describe": {"instance": I},
    "resize": {"instance": I, "disk": "disk", "size": 1},
    "arrived": {"instance": I},
    "attach": {"instance": I, "xml": "<disk/>"},
    "attached": {"instance": I, "ok": True},
}


GOOD["ask-launch"] = GOOD["prepare"]
GOOD["prepare-rescue"] = GOOD["prepare"] | {
    "purpose": "rescue",
    "disks": [{"name": "disk.rescue", "size": 1}],
}


def test_every_verb_has_an_example() -> None:
    assert set(GOOD) == set(VERBS)


@pytest.mark.parametrize("verb", sorted(GOOD))
def test_the_example_is_read(verb: str) -> None:
    with pytest.raises(AssertionError, match="reached"):
        dispatch(CONTEXT, {"verb": verb, **GOOD[verb]})


@pytest.mark.parametrize("verb", sorted(GOOD))
def test_one_more_member(path: str, verb: str) -> None:
    answer = ask(path, {"verb": verb, **GOOD[verb], "path": "/etc/shadow"})
    assert answer["error"]["event"] == f"agent.verb.{verb}"


@pytest.mark.parametrize(
    ("verb", "name"),
    [(verb, name) for verb in sorted(GOOD) for name in GOOD[verb]],
)
def test_one_member_less_or_odd(path: str, verb: str, name: str) -> None:
    for odd in ([], {}, None, 1.5, "\0", -1, "../../x", "x" * 3000):
        request = {"verb": verb, **GOOD[verb]}
        if odd is None:
            del request[name]
        else:
            request[name] = odd
        # a few of them are fine for free text
        if odd == "../../x" and name in ("user", "project", "key_url", "xml"):
            continue
        if odd == "x" * 3000 and name in ("xml", "manifest"):
            continue
        answer = ask(path, request)
        assert answer["ok"] is False
        assert answer["error"]["event"] != "agent.internal", (name, odd)


@pytest.mark.parametrize(
    "disks",
    [
        [],
        [{"name": "disk", "size": 1}] * 2,
        [{"name": "disk.swap", "size": 1}],
        [{"name": "../disk", "size": 1}],
        [{"name": "disk.info", "size": 1}, {"name": "disk", "size": 1}],
        [{"name": "disk.rescue", "size": 1}, {"name": "disk", "size": 1}],
        [{"name": "disk", "size": -1}],
        [{"name": "disk", "size": 1, "path": "x"}],
        [{"name": f"disk.eph{i}", "size": 1} for i in range(17)],
    ],
)
def test_odd_disks(path: str, disks: Any) -> None:
    request = {"verb": "prepare", **GOOD["prepare"], "disks": disks}
    event = ask(path, request)["error"]["event"]
    assert event == "agent.verb.prepare"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(verb=st.sampled_from(sorted(GOOD)), value=JSON, data=st.data())
def test_any_member(
    path: str, verb: str, value: Any, data: st.DataObject
) -> None:
    request = {"verb": verb, **GOOD[verb]}
    name = data.draw(st.sampled_from([*request, "another"]))
    if type(value) is type(request.get(name)) and name != "another":
        return
    request[name] = value
    answer = ask(path, request)
    assert answer["ok"] is False
    assert answer["error"]["event"] != "agent.internal"


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(max_size=64))
def test_any_bytes(path: str, data: bytes) -> None:
    answer = send(path, struct.pack(">I", len(data)) + data)
    assert answer["ok"] is False
    assert answer["error"]["event"] != "agent.internal"
