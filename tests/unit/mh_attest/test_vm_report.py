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
"""VM reports."""

import json
from dataclasses import replace
from typing import Any

import pytest

from mh_core import jose
from mh_core.encoding import b64u, unb64u
from mh_core.vm_report import TYP, VmClaims
from tests.unit.mh_attest.host import SoftHost, log_of
from tests.unit.mh_attest.world import ISSUER, World

CLAIMS = VmClaims(
    instance="4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10",
    project="p",
    image="d5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51",
    key_id="0b7e2d39-3a63-4d53-9d9b-2a5cf4d5c6a7",
    kms_origin="https://kms.test",
    host="node1",
    purpose="launch",
    manifest_digest="11" * 32,
    domain_digest="22" * 32,
    request_digest="33" * 32,
    started_at=1_800_000_000,
    measured={"ciphertext": "ok"},
)


def nonce(world: World) -> bytes:
    answer = world.call("POST", "/v1/nonces", {"purpose": "vm-report"})
    assert answer["expires_in"] == 60
    return unb64u(answer["nonce"])


def body(
    host: SoftHost, given: bytes, claims: VmClaims = CLAIMS
) -> dict[str, Any]:
    return {
        "nonce": b64u(given),
        "claims": claims.to_dict(),
        "evidence": host.vm(given, claims),
    }


def refused(world: World, document: dict[str, Any], event: str) -> None:
    answer = world.call("POST", "/v1/vm-reports", document, None, 403)
    assert answer["error"]["event"] == event
    listed = world.call(
        "GET", f"/v1/vm-reports/{CLAIMS.instance}", None, "reader", 200
    )
    assert listed == {"reports": []}


def test_report_is_signed_and_listed(world: World) -> None:
    host = world.enrolled()
    given = nonce(world)
    document = body(host, given)
    answer = world.call("POST", "/v1/vm-reports", document, None, 200)
    payload, _kid = jose.verify(
        answer["report"], [world.service.authority.jwk()], TYP
    )
    claims = json.loads(payload)
    assert claims.pop("iat") > 0
    assert claims == {
        "iss": ISSUER,
        "claims": CLAIMS.to_dict(),
        "host": "node1",
        "level": "trusted",
        "nonce": b64u(given),
    }
    path = f"/v1/vm-reports/{CLAIMS.instance}"
    listed = world.call("GET", path, None, "reader", 200)["reports"]
    assert listed == [{"report": answer["report"], **document}]
    record = world.audit()[-1]
    assert record["audit"] == answer["audit"]
    assert record["record"]["event"] == "attest.vm-report.accepted"
    second = body(host, nonce(world), replace(CLAIMS, purpose="start"))
    world.call("POST", "/v1/vm-reports", second, None, 200)
    listed = world.call("GET", path, None, "reader", 200)["reports"]
    assert [one["claims"]["purpose"] for one in listed] == [
        "launch",
        "start",
    ]


def test_the_newest_of_a_host_stay(world: World) -> None:
    host = world.enrolled()
    world.service.conf.set_override("vm_reports_kept", 3, group="database")
    for number in range(5):
        claims = replace(CLAIMS, started_at=CLAIMS.started_at + number)
        document = body(host, nonce(world), claims)
        world.call("POST", "/v1/vm-reports", document, None, 200)
    other = replace(CLAIMS, instance=CLAIMS.image)
    document = body(host, nonce(world), other)
    world.call("POST", "/v1/vm-reports", document, None, 200)
    listed = world.call(
        "GET", f"/v1/vm-reports/{CLAIMS.instance}", None, "reader", 200
    )
    assert [
        one["claims"]["started_at"] - CLAIMS.started_at
        for one in listed["reports"]
    ] == [2, 3, 4]
    listed = world.call(
        "GET", f"/v1/vm-reports/{other.instance}", None, "reader", 200
    )
    assert len(listed["reports"]) == 1


def test_nonce_is_used_once(world: World) -> None:
    host = world.enrolled()
    document = body(host, nonce(world))
    world.call("POST", "/v1/vm-reports", document, None, 200)
    for again in (document, body(host, unb64u(document["nonce"]))):
        answer = world.call("POST", "/v1/vm-reports", again, None, 403)
        assert answer["error"]["event"] == "attest.vm-report.nonce"
        assert answer["error"]["audit"]


def test_nonce_that_is_not_ours_or_old(world: World) -> None:
    world.stop_clock()
    host = world.enrolled()
    event = "attest.vm-report.nonce"
    refused(world, body(host, bytes(32)), event)
    given = nonce(world)
    bent = given[:-1] + bytes([given[-1] ^ 1])
    refused(world, body(host, bent), event)
    world.now += 61
    refused(world, body(host, given), event)


def test_other_claims_than_quoted(world: World) -> None:
    host = world.enrolled()
    document = body(host, nonce(world))
    document["claims"]["domain_digest"] = "44" * 32
    refused(world, document, "attest.appraise.evidence")


def test_claims_of_another_host(world: World) -> None:
    host = world.enrolled()
    claims = replace(CLAIMS, host="node2")
    refused(world, body(host, nonce(world), claims), "attest.vm-report.host")


def test_host_quote_is_no_vm_quote(world: World) -> None:
    host = world.enrolled()
    given = nonce(world)
    document = {
        **body(host, given),
        "evidence": host.evidence("mh/quote/host/v1", given, CLAIMS.digest()),
    }
    refused(world, document, "attest.appraise.evidence")


def test_host_that_changed(world: World) -> None:
    host = world.enrolled()
    host.boot(log_of(kernel=b"evil"))
    refused(world, body(host, nonce(world)), "attest.appraise.host-policy")
    # its own nonce, its own AK: that is how the host is now
    shown = world.call("GET", "/v1/hosts/node1", None, "reader")
    assert shown["level"] == "untrusted"


def test_unknown_host_leaves_no_record(world: World) -> None:
    host = world.enrolled()
    world.call("DELETE", "/v1/hosts/node1", None, "operator", 204)
    before = len(world.audit())
    refused(world, body(host, nonce(world)), "attest.appraise.host")
    assert len(world.audit()) == before


@pytest.mark.parametrize("purpose", ["release", "", 1, None])
def test_nonce_for_another_purpose(world: World, purpose: object) -> None:
    found = world.call("POST", "/v1/nonces", {"purpose": purpose}, None, 400)
    assert found["error"]["event"] == "attest.nonce.body"
