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

"""What holds for every request."""

import importlib.metadata
import logging
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mh_core.encoding import MAX_JSON
from mh_kms import handler
from mh_kms.api import root
from mh_kms.api.call import Answer, Call
from mh_kms.handler import Route
from tests.unit.mh_kms.world import ORIGIN, World

REQUEST_ID = re.compile(r"req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def test_version(world: World) -> None:
    answer = world.client.simulate_get("/v1")
    assert answer.json == {
        "origin": ORIGIN,
        "transport_jwk": world.parts.transport.public,
        "version": importlib.metadata.version("mystery-hill"),
    }
    assert "d" not in answer.json["transport_jwk"]
    assert REQUEST_ID.fullmatch(answer.headers["x-request-id"])


def test_healthcheck(world: World) -> None:
    assert world.client.simulate_get("/healthcheck").status_code == 200
    world.parts.database.close()
    (world.base / "kms.sqlite").rename(world.base / "away")
    answer = world.client.simulate_get("/healthcheck")
    assert answer.status_code == 503
    assert answer.json["error"]["event"] == "kms.db.version"


@pytest.mark.parametrize(
    ("method", "path", "status", "event"),
    [
        ("GET", "/", 404, "kms.api.path"),
        ("GET", "/v2", 404, "kms.api.path"),
        ("GET", "/v1/keys/", 401, "kms.auth.token"),
        ("PATCH", "/v1/keys", 405, "kms.api.method"),
        ("POST", "/v1", 405, "kms.api.method"),
        ("GET", "/v1/keys/x/challenge", 405, "kms.api.method"),
        ("POST", "/v1/keys/" + "A" * 36 + "/release", 400, "core.json.syntax"),
    ],
)
def test_errors_look_the_same(
    world: World, method: str, path: str, status: int, event: str
) -> None:
    answer = world.client.simulate_request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    error = answer.json["error"]
    assert set(error) == {"event", "message", "request_id", "audit"}
    assert error["event"] == event
    assert error["request_id"] == answer.headers["x-request-id"]


def test_body_limit(world: World) -> None:
    key_id = world.create_key()["id"]
    answer = world.client.simulate_post(
        f"/v1/keys/{key_id}/release",
        body=b" " * 10,
        headers={"Content-Length": str(MAX_JSON + 1)},
    )
    assert answer.status_code == 413
    assert answer.json["error"]["event"] == "kms.api.size"


@pytest.mark.parametrize(
    "headers",
    [
        {"Transfer-Encoding": "chunked"},
        {"Content-Length": "50"},
    ],
)
def test_body_length(world: World, headers: dict[str, str]) -> None:
    key_id = world.create_key()["id"]
    answer = world.client.simulate_post(
        f"/v1/keys/{key_id}/challenge", body=b"{}", headers=headers
    )
    assert answer.status_code == 400


def test_one_line_a_request(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answer = world.call("GET", "/v1/keys?secret=hunter2")
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1
    assert answer.headers["x-request-id"] in lines[0]
    assert "GET /v1/keys 200" in lines[0]
    assert "caller=owner" in lines[0]
    assert world.token not in lines[0]
    assert "hunter2" not in lines[0]


def test_log_lines_are_not_forged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.client.simulate_get("/v1/%0aINFO%20forged")
    assert "\n" not in caplog.records[-1].getMessage()


def test_the_unforeseen_is_500_without_detail(
    world: World,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks(call: Call) -> Answer:
        raise ZeroDivisionError("key=" + "ab" * 32)

    monkeypatch.setitem(handler.ROUTES, "/v1", {"GET": Route(breaks)})
    world.start_client()
    answer = world.client.simulate_get("/v1")
    assert answer.status_code == 500
    error = answer.json["error"]
    assert error["event"] == "kms.internal"
    assert "ZeroDivision" not in answer.text
    assert "Traceback" not in answer.text
    assert "ZeroDivisionError" in caplog.text
    assert "ab" * 32 not in caplog.text
    assert root.show is not breaks


PATHS = [
    (method, path)
    for path, methods in handler.ROUTES.items()
    for method in methods
    if method in ("POST", "PUT")
]
KEYS = st.one_of(
    st.sampled_from(
        "name jwe policy jwk manifest manifest_digests count ttl nonce"
        " request evidence version authorities enrollers projects".split()
    ),
    st.text(max_size=8),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.just("A" * 43),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(("method", "template"), PATHS)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(body=VALUES)
def test_any_json(world: World, method: str, template: str, body: Any) -> None:
    _harmless(world, method, template, body=None, json=body)


@pytest.mark.parametrize(("method", "template"), PATHS)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(body=st.binary(min_size=3, max_size=64))
def test_any_bytes(
    world: World, method: str, template: str, body: bytes
) -> None:
    _harmless(world, method, template, body=body)


def _harmless(
    world: World, method: str, template: str, **content: Any
) -> None:
    """4xx with an event id, and nothing has changed."""
    if not hasattr(world, "any_key"):
        world.any_key = world.create_key()  # type: ignore[attr-defined]
    key = world.any_key  # type: ignore[attr-defined]
    before = world.audit(key["id"])
    if content.get("json") == {} and template.endswith("/challenge"):
        return
    answer = world.client.simulate_request(
        method,
        template.format(
            key_id=key["id"], digest="00" * 32, instance=key["id"]
        ),
        headers={"Authorization": f"Bearer {world.token}"},
        **content,
    )
    assert 400 <= answer.status_code < 500, answer.text
    assert re.fullmatch(
        r"(kms|core)(\.[a-z0-9-]+)+", answer.json["error"]["event"]
    )
    assert "Traceback" not in answer.text
    assert world.audit(key["id"]) == before
    assert world.call("GET", "/v1/keys").json == {"keys": [key]}
