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
"""The server and its commands, as processes."""

import json
import pathlib
import stat
from collections.abc import Iterator

import pytest
import requests

from mh_core.encoding import b64u
from tests.functional.mh_attest.server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("serve"))
    one.manage("db", "sync")
    one.start()
    yield one
    one.stop()


def test_it_serves_tls_only_and_stops_cleanly(server: Server) -> None:
    with pytest.raises(requests.ConnectionError):
        requests.get(server.url.replace("https", "http"), timeout=5)
    root = server.call("GET", "/v1", status=200)
    shown = json.loads(server.manage("identity", "show"))
    assert shown["jwk"] == root["jwk"]
    assert shown["issuer"] == root["issuer"] == server.url
    assert shown["enroller_certificate"] == root["enroller_certificate"]
    assert shown["thumbprint"] == root["jwk"]["kid"]
    assert len(shown["enroller_sha256"]) == 64
    assert server.stop() == 0
    with pytest.raises(requests.ConnectionError):
        server.call("GET", "/v1")
    server.start()


def test_tokens(server: Server) -> None:
    token = server.token("operator")
    assert server.call("GET", "/v1/hosts", None, "operator", 200) == {
        "hosts": []
    }
    assert token not in server.log()
    listed = server.manage("token", "list")
    assert token not in listed
    assert "operator" in listed
    for path in server.folder.glob("attest.sqlite*"):
        assert token.encode() not in path.read_bytes()
    argv = ("token", "create", "--name")
    error = server.manage(*argv, "operator", "--roles", "reader", status=1)
    assert "attest.token.name" in error
    error = server.manage(*argv, "x", "--roles", "root", status=1)
    assert "attest.token.roles" in error
    shown = server.manage(*argv, "shown", "--roles", "reader").strip()
    headers = {"Authorization": f"Bearer {shown}"}
    where = {"url": server.url + "/v1/hosts", "headers": headers}
    ca = str(server.tls.ca_file)
    assert requests.get(**where, verify=ca, timeout=5).status_code == 200
    server.manage("token", "revoke", "--name", "shown")
    assert requests.get(**where, verify=ca, timeout=5).status_code == 401
    error = server.manage("token", "revoke", "--name", "shown", status=1)
    assert "attest.token.unknown" in error


def test_a_file_that_is_there_is_not_overwritten(
    server: Server, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "token"
    out.write_text("mine")
    argv = ("token", "create", "--name", "y", "--roles", "reader")
    error = server.manage(*argv, "--out", str(out), status=1)
    assert "attest.token.out" in error
    assert out.read_text() == "mine"
    server.manage(*argv, "--out", str(tmp_path / "other"))


def test_state_is_private(server: Server) -> None:
    state = server.folder / "state"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for path in [*state.iterdir(), server.folder / "attest.sqlite"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_hostile_bodies_over_http(server: Server) -> None:
    headers = {"Authorization": f"Bearer {server.token('relying')}"}
    for data, event in (
        (b"{", "core.json.syntax"),
        (b"[" * 100000, "core.json.syntax"),
        (b'{"nonce":1.5}', "core.json.number"),
        (b'{"a":1,"a":2}', "core.json.duplicate"),
        (b"{}", "attest.appraise.body"),
        (b" " * (2 * 1024 * 1024 + 1), "attest.api.too-large"),
    ):
        answer = requests.post(
            server.url + "/v1/appraisals",
            data=data,
            headers=headers,
            verify=str(server.tls.ca_file),
            timeout=10,
        )
        assert 400 <= answer.status_code < 500
        assert answer.json()["error"]["event"] == event
        assert (
            answer.headers["X-Request-Id"]
            == (answer.json()["error"]["request_id"])
        )
    assert "Traceback" not in server.log()


def test_one_line_per_request_without_secrets(server: Server) -> None:
    before = server.log().count("POST /v1/nonces")
    server.call("POST", "/v1/nonces", {"purpose": "vm-report"}, status=200)
    secret = b64u(b"\x42" * 32)
    requests.get(
        server.url + "/v1/hosts",
        headers={"Authorization": f"Bearer {secret}"},
        verify=str(server.tls.ca_file),
        timeout=5,
    )
    log = server.log()
    assert log.count("POST /v1/nonces") == before + 1
    assert secret not in log


def test_audit_of_an_operator(server: Server) -> None:
    found = json.loads(server.manage("audit", "verify"))
    assert found["records"] >= 1
    records = server.call("GET", "/v1/audit", None, "operator", 200)
    events = [one["record"]["event"] for one in records["records"]]
    assert "attest.token.created" in events
