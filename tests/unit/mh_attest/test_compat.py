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
"""The bare-AK request: the server fetches the evidence itself."""

from dataclasses import replace
from typing import Any

from mh_core.encoding import b64u
from mh_core.errors import Unavailable
from mh_core.result import AttestationResult
from tests.fixture.softtpm import key_request
from tests.unit.mh_attest.host import SoftHost, log_of
from tests.unit.mh_attest.world import ISSUER, World

NONCE = bytes(range(32))
URL = "https://kms.test/data-encryption-key/request/1"
REQUEST = key_request(
    "5a4f7f0e-6a55-4f0e-8c3c-d2c6f1c9a001", "https://kms.test"
)

#: A well-formed key on a curve that nobody here knows.
ODD_CURVE = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQkDQgAEJt1ALM+wlbZ73hdFs8/2OiZUNqobzuDf3U1cmxRU
+pG4ZE7X9/wOdY+C+rPZTYWuDrOyPllPPqLeV5JJLje2IQ==
-----END PUBLIC KEY-----
"""


def ask(world: World, host: SoftHost, status: int, **changes: Any) -> Any:
    body = {
        "nonce": b64u(NONCE),
        "audience": "https://kms.test",
        "key_url": URL,
        "ak_pem": host.tpm.ak.pem(),
        **changes,
    }
    return world.call("POST", "/v1/compat/appraisals", body, "relying", status)


def refused(world: World, host: SoftHost, event: str, status: int) -> None:
    error = ask(world, host, status)["error"]
    assert error["event"] == event
    record = world.audit()[-1]
    assert record["audit"] == error["audit"]
    assert record["record"]["event"] == event


def test_pending_request_is_quoted_and_answered(world: World) -> None:
    host = world.enrolled()
    host.pending[URL] = REQUEST
    answer = ask(world, host, 200)
    assert set(answer) == {"result", "request", "evidence"}
    assert answer["request"] == REQUEST.to_dict()
    AttestationResult.verify(
        answer["result"],
        world.service.authority.jwk(),
        issuer=ISSUER,
        audience="https://kms.test",
        nonce=NONCE,
        request_digest=REQUEST.digest(),
        bind_jwk=host.tpm.bind.jwk(),
        now=world.service.now(),
    )


def test_nothing_pending(world: World) -> None:
    host = world.enrolled()
    refused(world, host, "agent.compat.nothing-pending", 404)
    host.pending[URL + "0"] = REQUEST
    refused(world, host, "agent.compat.nothing-pending", 404)


def test_unknown_ak_and_no_ak(world: World) -> None:
    host = world.host()
    refused(world, host, "attest.appraise.host", 403)
    error = ask(world, host, 400, ak_pem="no key")["error"]
    assert error["event"] == "attest.compat.ak"
    error = ask(world, host, 400, ak_pem=ODD_CURVE)["error"]
    assert error["event"] == "attest.compat.ak"
    assert host.calls == []


def test_silent_host(world: World) -> None:
    host = world.enrolled()
    host.lies["pending_release"] = Unavailable("attest.listener.silent", "")
    refused(world, host, "attest.listener.silent", 503)


def test_request_swapped_on_the_way(world: World) -> None:
    host = world.enrolled()
    evidence = host.release(NONCE, REQUEST.digest())
    other = replace(REQUEST, project="another").to_dict()
    host.lies["pending_release"] = (other, evidence)
    refused(world, host, "attest.appraise.evidence", 403)
    host.lies["pending_release"] = ({"x": 1}, evidence)
    refused(world, host, "attest.compat.reply", 403)
    host.lies["pending_release"] = (REQUEST.to_dict(), {"x": 1})
    refused(world, host, "attest.compat.reply", 403)


def test_evidence_of_another_host(world: World) -> None:
    host, other = world.enrolled(), world.enrolled("node2")
    evidence = other.release(NONCE, REQUEST.digest())
    host.lies["pending_release"] = (REQUEST.to_dict(), evidence)
    error = ask(world, host, 403)["error"]
    assert error["event"] == "attest.appraise.host"


def test_changed_host(world: World) -> None:
    host = world.enrolled()
    host.pending[URL] = REQUEST
    host.boot(log_of(kernel=b"evil"))
    refused(world, host, "attest.appraise.host-policy", 403)
