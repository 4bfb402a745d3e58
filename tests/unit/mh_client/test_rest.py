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
"""The REST client against a real HTTPS server."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mh_client.config import Endpoint
from mh_client.rest import Rest
from mh_core import errors
from mh_core.encoding import MAX_JSON
from tests.fixture.tls import Authority
from tests.unit.mh_client.https import World, error


@pytest.fixture
def rest(world: World) -> Rest:
    return Rest(world.endpoint, "key server")


def test_token_and_body_arrive(world: World, rest: Rest) -> None:
    world.kms.routes["POST", "/x"] = (200, {"a": 1})
    assert rest.call("POST", "/x", {"b": 2}) == {"a": 1}
    seen = world.kms.requests[-1]
    assert seen.headers["Authorization"] == "Bearer the-token-itself"
    assert seen.body == {"b": 2}


def test_no_token_where_none_is_wanted(world: World, rest: Rest) -> None:
    rest.call("GET", "/v1", auth=False)
    assert "Authorization" not in world.kms.requests[-1].headers


def test_netrc_does_not_replace_the_token(
    world: World, rest: Rest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.touch(0o600)
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    world.kms.routes["GET", "/x"] = (200, {})
    rest.call("GET", "/x")
    seen = world.kms.requests[-1]
    assert seen.headers["Authorization"] == "Bearer the-token-itself"


def test_no_content(world: World, rest: Rest) -> None:
    world.kms.routes["DELETE", "/x"] = (204, None)
    assert rest.call("DELETE", "/x") is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InputError),
        (401, errors.Denied),
        (403, errors.Denied),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (413, errors.InputError),
        (500, errors.MHError),
        (503, errors.Unavailable),
    ],
)
def test_errors_keep_their_event(
    world: World, rest: Rest, status: int, kind: type[errors.MHError]
) -> None:
    body = error("kms.release.project", "not yours", audit="c#7")
    world.kms.routes["GET", "/x"] = (status, body)
    with pytest.raises(kind) as caught:
        rest.call("GET", "/x")
    assert caught.value.event == "kms.release.project"
    assert caught.value.message == "not yours (audit c#7)"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        [],
        {"error": "no"},
        {"error": {"event": "A B", "message": "x"}},
        {"error": {"event": "x" * 200}},
        {"error": {"event": 7}},
        {"error": {"event": "kms.x\n", "message": "y"}},
    ],
)
def test_errors_without_an_event(
    world: World, rest: Rest, body: object
) -> None:
    world.kms.routes["GET", "/x"] = (403, body)
    with pytest.raises(errors.Denied) as caught:
        rest.call("GET", "/x")
    assert caught.value.event == "client.rest.status"
    assert "403" in caught.value.message


def test_messages_are_cleaned(world: World, rest: Rest) -> None:
    token = "eyJhbGciOiJFUzI1NiJ9.eyJhIjoxfQ.c2ln"
    body = error("kms.x.y", f"a\n\t\x1b[31mred {token}\x85")
    world.kms.routes["GET", "/x"] = (400, body)
    with pytest.raises(errors.InputError) as caught:
        rest.call("GET", "/x")
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert token not in str(caught.value)


def test_redirects_are_not_followed(world: World, rest: Rest) -> None:
    world.kms.routes["GET", "/x"] = (
        302,
        None,
        {"Location": world.attest.url + "/v1"},
    )
    with pytest.raises(errors.InputError) as caught:
        rest.call("GET", "/x")
    assert caught.value.event == "client.rest.redirect"
    assert not world.attest.requests


def test_answers_are_bounded(world: World, rest: Rest) -> None:
    world.kms.routes["GET", "/x"] = (200, b" " * (MAX_JSON + 1))
    with pytest.raises(errors.InputError) as caught:
        rest.call("GET", "/x")
    assert caught.value.event == "client.rest.size"


def test_another_ca_is_refused(world: World, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    endpoint = Endpoint(world.kms.url, str(other.ca_file), None)
    with pytest.raises(errors.Unavailable) as caught:
        Rest(endpoint, "key server").call("GET", "/v1", auth=False)
    assert caught.value.event == "client.rest.tls"
    assert not world.kms.requests


def test_nobody_there(world: World) -> None:
    endpoint = Endpoint("https://127.0.0.1:9", world.endpoint.ca_file, None)
    with pytest.raises(errors.Unavailable) as caught:
        Rest(endpoint, "key server").call("GET", "/v1", auth=False)
    assert caught.value.event == "client.rest.connection"


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    status=st.sampled_from([200, 201, 400, 403, 418, 500]),
    body=st.binary(max_size=64),
)
def test_any_answer_ends_in_json_or_our_error(
    world: World, rest: Rest, status: int, body: bytes
) -> None:
    world.kms.routes["GET", "/x"] = (status, body)
    try:
        rest.call("GET", "/x")
    except errors.MHError:
        return
    assert status < 300
