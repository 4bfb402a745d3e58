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
"""The REST interface, as a caller sees it."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mh_attest.routes import ROUTES
from mh_core import jose
from mh_core.encoding import b64u
from mh_core.result import AttestationResult
from tests.unit.mh_attest.host import SoftHost, log_of
from tests.unit.mh_attest.world import ISSUER, World

NONCE = bytes(range(32))
DIGEST = b"\x07" * 32


def error(world: World, *call: Any, status: int) -> str:
    document = world.call(*call, status=status)
    assert set(document) == {"error"}
    assert set(document["error"]) == {
        "event",
        "message",
        "request_id",
        "audit",
    }
    return str(document["error"]["event"])


def appraisal(host: SoftHost, **changes: Any) -> dict[str, Any]:
    return {
        "nonce": b64u(NONCE),
        "audience": "https://kms.test",
        "request_digest": DIGEST.hex(),
        "evidence": host.release(NONCE, DIGEST),
        **changes,
    }


def test_root_and_healthcheck_ask_nobody(world: World) -> None:
    root = world.call("GET", "/v1", status=200)
    assert set(root) == {"issuer", "jwk", "enroller_certificate", "version"}
    assert "d" not in root["jwk"]
    assert world.call("GET", "/healthcheck", status=200) == {"status": "ok"}


@pytest.mark.parametrize(
    ("path", "method", "rule"),
    [
        (path, method, rule)
        for path, methods in ROUTES.items()
        for method, (_handler, rule) in methods.items()
        if rule
    ],
)
def test_every_guarded_route_needs_its_role(
    world: World, path: str, method: str, rule: str
) -> None:
    where = path.replace("{host}", "n").replace("{group}", "g")
    where = where.replace("{instance}", "i")
    event = error(world, method, where, {}, None, status=401)
    assert event == "attest.auth.token"
    event = error(world, method, where, {}, b64u(bytes(32)), status=401)
    assert event == "attest.auth.token"
    wrong = "reader" if rule.startswith("appraisals") else "relying"
    assert error(world, method, where, {}, wrong, status=403) == (
        "attest.auth.role"
    )
    if rule.endswith((":enrol", ":delete", ":set", ":learn", "audit:list")):
        event = error(world, method, where, {}, "reader", status=403)
        assert event == "attest.auth.role"


def test_unknown_route_method_query_and_size(world: World) -> None:
    assert error(world, "GET", "/v2", status=404) == "attest.api.route"
    assert error(world, "PUT", "/v1", status=405) == "attest.api.method"
    event = error(world, "GET", "/v1?x=1", status=400)
    assert event == "attest.api.query"
    status, answer = world.raw("POST", "/v1/nonces", b" " * (2**21 + 1))
    assert (status, answer["error"]["event"]) == (
        413,
        "attest.api.too-large",
    )


def test_enrolment_learns_and_trusts(world: World) -> None:
    host = world.host()
    document = world.enrol(host, tags={"geo": "eu-1"})
    assert document["level"] == "trusted"
    assert document["event"] == "attest.appraise.passed"
    assert document["ak_name"] == host.tpm.ak.name.hex()
    assert document["ak_certificate"] == host.ak_certificate
    assert document["reset_count"] == host.tpm.reset
    audit = document.pop("audit")
    assert audit in {record["audit"] for record in world.audit()}
    shown = world.call("GET", "/v1/hosts/node1", None, "reader", 200)
    assert shown == document
    listed = world.call("GET", "/v1/hosts", None, "reader", 200)
    assert listed == {"hosts": [document]}
    policy = world.call(
        "GET", "/v1/host-policies/default", None, "reader", 200
    )
    assert policy["levels"] == ["trusted"]
    assert set(policy["pcrs"]) == {"0", "2", "4", "7", "8", "9"}
    assert policy["pcrs"]["4"] == [host.tpm.pcrs[4].hex()]


def test_result_of_a_trusted_host_verifies(world: World) -> None:
    host = world.host()
    world.enrol(host, tags={"geo": "eu-1"})
    answer = world.call(
        "POST", "/v1/appraisals", appraisal(host), "relying", 200
    )
    audit = world.headers["x-audit-id"]
    root = world.call("GET", "/v1", status=200)
    result = AttestationResult.verify(
        answer["result"],
        root["jwk"],
        issuer=ISSUER,
        audience="https://kms.test",
        nonce=NONCE,
        request_digest=DIGEST,
        bind_jwk=host.tpm.bind.jwk(),
        now=world.service.now(),
    )
    assert (result.host, result.host_id) == ("node1", host.tpm.host_id)
    assert (result.level, result.tags) == ("trusted", {"geo": "eu-1"})
    assert world.audit()[-1]["audit"] == audit
    record = world.audit()[-1]["record"]
    assert record["event"] == "attest.appraise.passed"
    assert record["request_digest"] == DIGEST.hex()
    assert record["caller"] == "relying"


def refused(world: World, host: SoftHost, **changes: Any) -> dict[str, Any]:
    document = world.call(
        "POST", "/v1/appraisals", appraisal(host, **changes), "relying", 403
    )["error"]
    records = {record["audit"]: record["record"] for record in world.audit()}
    assert records[document["audit"]]["event"] == document["event"]
    return document


def test_unknown_ak_is_refused(world: World) -> None:
    world.enrolled()
    other = world.host("node2")
    other.ak_certificate = other.tpm.certificate()
    assert refused(world, other)["event"] == "attest.appraise.host"


def test_deleted_host_is_refused_and_may_come_back(world: World) -> None:
    host = world.enrolled()
    world.call("DELETE", "/v1/hosts/node1", None, "operator", 204)
    event = error(
        world, "DELETE", "/v1/hosts/node1", None, "operator", status=404
    )
    assert event == "attest.host.unknown"
    assert refused(world, host)["event"] == "attest.appraise.host"
    assert world.trust("node1")["node1"]["event"] == (
        "attest.trust.not-enrolled"
    )
    world.enrol(host)
    world.call("POST", "/v1/appraisals", appraisal(host), "relying", 200)


def test_changed_pcr_is_named(world: World) -> None:
    host = world.enrolled()
    host.boot(log_of(kernel=b"another kernel"))
    found = refused(world, host)
    assert found["event"] == "attest.appraise.host-policy"
    assert "PCR 9:" in found["message"]
    assert "PCR 8:" not in found["message"]


def test_replayed_quote_is_refused(world: World) -> None:
    host = world.enrolled()
    found = refused(world, host, nonce=b64u(bytes(32)))
    assert found["event"] == "attest.appraise.evidence"
    assert "core.tpm.quote.extra-data" in found["message"]
    found = refused(world, host, request_digest="00" * 32)
    assert found["event"] == "attest.appraise.evidence"


def test_a_relying_party_cannot_change_the_trust_state(world: World) -> None:
    host = world.enrolled()
    host.boot(log_of(kernel=b"another kernel"))
    refused(world, host)
    shown = world.call("GET", "/v1/hosts/node1", None, "reader", 200)
    assert shown["level"] == "trusted"


def test_boot_only_is_said(world: World) -> None:
    host = world.host(log=log_of("/boot/vmlinuz root=/dev/sda1 ro"))
    assert world.enrol(host)["level"] == "boot-only"
    answer = world.call(
        "POST", "/v1/appraisals", appraisal(host), "relying", 200
    )
    payload, _kid = jose.verify(
        answer["result"], [world.service.authority.jwk()], "eat+jwt"
    )
    assert json.loads(payload)["mh_level"] == "boot-only"
    assert world.trust("node1")["node1"]["level"] == "boot-only"


def test_zero_is_not_learnt(world: World) -> None:
    host = world.host()
    host.log = log_of()[:0]
    host.tpm.pcrs = dict.fromkeys(range(10), bytes(32))
    found = world.enrol(host, 403)["error"]
    # An empty log is no log at all.
    assert found["event"] == "attest.appraise.event-log"
    # A log that measures into everything but PCR 9:
    from mh_core.tpm import eventlog

    host.boot(
        eventlog.build(
            [(i, eventlog.EV_SEPARATOR, bytes(4)) for i in range(9)]
        )
    )
    found = world.enrol(host, 403)["error"]
    assert found["event"] == "attest.host-policy.zero"
    assert "PCR 9" in found["message"]
    assert world.call("GET", "/v1/hosts", None, "reader") == {"hosts": []}


def test_put_policy_decides_and_expires_states(world: World) -> None:
    host = world.enrolled()
    path = "/v1/host-policies/default"
    policy = world.call("GET", path, None, "reader", 200)
    assert world.trust("node1")["node1"]["level"] == "trusted"
    pcrs = {**policy["pcrs"], "4": ["ab" * 32]}
    body = {"pcrs": pcrs, "tags": {"rack": "7"}}
    answer = world.call("PUT", path, body, "operator", 200)
    assert answer["pcrs"]["4"] == ["ab" * 32]
    found = world.trust("node1")["node1"]
    assert found["level"] == "untrusted"
    assert found["event"] == "attest.appraise.host-policy"
    learnt = world.call(
        "POST", path + "/learn", {"host": "node1"}, "operator", 200
    )
    assert learnt["pcrs"]["4"] == ["ab" * 32, host.tpm.pcrs[4].hex()]
    found = world.trust("node1")["node1"]
    assert (found["level"], found["tags"]) == ("trusted", {"rack": "7"})


def test_policy_of_zeros_is_refused(world: World) -> None:
    pcrs = {str(i): ["ab" * 32] for i in (0, 2, 4, 7, 8, 9)}
    body = {"pcrs": {**pcrs, "7": ["00" * 32]}, "tags": {}}
    call = ("PUT", "/v1/host-policies/g", body, "operator")
    assert error(world, *call, status=403) == "attest.host-policy.zero"
    body["pcrs"].pop("7")
    assert error(world, *call, status=400) == "attest.host-policy.pcrs"
    assert (
        error(world, "GET", "/v1/host-policies/g", None, "reader", status=404)
        == "attest.host-policy.unknown"
    )


def test_second_identity_is_a_conflict(world: World) -> None:
    host = world.enrolled()
    again = world.enrol(host, 201)  # the same TPM under the same name
    assert again["host_id"] == host.tpm.host_id
    other = world.host("node1")
    found = world.enrol(other, 409)["error"]
    assert found["event"] == "attest.enrol.conflict"
    assert other.ak_certificate == ""
    host.tpm.host = "node2"
    found = world.enrol(host, 409)["error"]
    assert found["event"] == "attest.enrol.conflict"
    assert found["audit"]


def test_counters_are_kept_over_a_new_enrolment(world: World) -> None:
    host = world.enrolled()
    host.tpm.reset -= 1
    found = world.enrol(host, 403)["error"]
    assert found["event"] == "attest.appraise.counter"


def test_audit_after(world: World) -> None:
    world.enrolled()
    first = world.audit()
    assert [r["seq"] for r in first] == list(range(1, len(first) + 1))
    later = world.call(
        "GET", f"/v1/audit?after={len(first) - 1}", None, "operator", 200
    )
    assert later["records"] == first[-1:]
    event = error(
        world, "GET", "/v1/audit?after=-1", None, "operator", status=400
    )
    assert event == "attest.audit.after"


# -- free input ----------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.sampled_from(["node1", "default", "00" * 32, b64u(bytes(32))]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "host hosts group tags pcrs 0 nonce evidence claims learn "
                "audience request_digest key_url ak_pem purpose x".split()
            ),
            inner,
            max_size=8,
        )
    ),
    max_leaves=12,
)
WRITES = [
    (method, path.replace("{host}", "node1").replace("{group}", "default"))
    for path, methods in ROUTES.items()
    for method in methods
    if method in ("POST", "PUT")
]


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(route=st.sampled_from(WRITES), body=st.binary(max_size=64) | JSON)
def test_any_body_is_refused_by_an_event(
    world: World, route: tuple[str, str], body: Any
) -> None:
    method, path = route
    if path == "/v1/nonces" and body == {"purpose": "vm-report"}:
        return
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    role = "relying" if "appraisals" in path else "operator"
    status, answer = world.raw(method, path, data, role)
    if path == "/v1/hosts/trust" and status == 200:
        return  # names of hosts that are not enrolled are a fair question
    assert 400 <= status < 500, (status, answer)
    assert answer["error"]["event"].startswith(("attest.", "core."))
    assert world.call("GET", "/v1/hosts", None, "reader") == {"hosts": []}


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_change_to_good_evidence_is_refused(
    world: World, data: st.DataObject
) -> None:
    hosts = world.__dict__.setdefault("spare", [])
    if not hosts:
        hosts.append(world.enrolled())
    body = appraisal(hosts[0])
    evidence = body["evidence"]
    name = data.draw(st.sampled_from(sorted(evidence)))
    value = evidence[name]
    if name == "pcrs":
        index = data.draw(st.sampled_from(sorted(value)))
        evidence[name] = {**value, index: "11" * 32}
    elif name == "ak_certificate":
        # A changed signature that still decodes may not be reached: any
        # change must do, so cut it.
        evidence[name] = value[: data.draw(st.integers(0, len(value) - 60))]
    else:
        raw = bytearray(_decode(value))
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
        evidence[name] = b64u(bytes(raw))
    if evidence == appraisal(hosts[0])["evidence"]:
        return
    status, answer = world.raw(
        "POST", "/v1/appraisals", json.dumps(body).encode(), "relying"
    )
    if name == "event_log" and status == 200:
        # A label that no digest covers (the log's header, or a type).
        return
    assert status in (400, 403), answer
    assert answer["error"]["event"].startswith(("attest.appr", "core."))


def _decode(text: str) -> bytes:
    from mh_core.encoding import unb64u

    return unb64u(text)


def test_a_path_makes_one_line_of_the_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mh_attest.deploy")
    world.raw("GET", "/v1/hosts/x\nreq-1 GET /v1/hosts 200", b"", "reader")
    assert caplog.messages
    assert not any("\n" in line for line in caplog.messages)
