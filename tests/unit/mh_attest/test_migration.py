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
"""Migration certificates, and the word about a destination."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from mh_core import jose
from mh_core.encoding import b64u, unb64u
from mh_core.errors import MHError, Unavailable
from mh_core.migration import MigrationRequest, MigrationResult, pinned_name
from tests.unit.mh_attest.host import SoftHost, log_of
from tests.unit.mh_attest.world import ISSUER, World

CERTIFICATES = "/v1/migration-certificates"
MIGRATIONS = "/v1/migrations"
INSTANCE = "4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10"
Change = Callable[[dict[str, Any]], None]


def nonce(world: World, purpose: str) -> bytes:
    answer = world.call("POST", "/v1/nonces", {"purpose": purpose}, None, 200)
    return unb64u(answer["nonce"])


def key_body(world: World, host: SoftHost) -> dict[str, Any]:
    given = nonce(world, "migration-key")
    return {
        "nonce": b64u(given),
        "host": host.tpm.host,
        "jwk": jose.public(host.tls_key),
        "evidence": host.migration_key(given),
    }


def ask_body(
    world: World, asker: SoftHost, /, **changes: Any
) -> dict[str, Any]:
    given = nonce(world, "migration")
    request = replace(
        MigrationRequest(INSTANCE, asker.tpm.host, "node2", bytes(32)),
        **changes,
    )
    return {
        "nonce": b64u(given),
        "request": request.to_dict(),
        "evidence": asker.migration(given, request),
    }


def refused(
    world: World,
    path: str,
    body: dict[str, Any],
    event: str,
    status: int = 403,
) -> None:
    answer = world.call("POST", path, body, None, status)
    assert answer["error"]["event"] == event


def test_certificate_names_the_key_the_host_and_its_listener(
    world: World,
) -> None:
    host = world.enrolled()
    answer = world.call("POST", CERTIFICATES, key_body(world, host), None, 200)
    certificate = x509.load_pem_x509_certificate(
        answer["certificate"].encode()
    )
    ca = x509.load_pem_x509_certificate(answer["ca"].encode())
    certificate.verify_directly_issued_by(ca)
    enroller = world.service.authority.enroller
    assert ca.public_key() != enroller.public_key()
    names = certificate.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ).value
    assert names.get_values_for_type(x509.DNSName) == [
        pinned_name(jose.public(host.tls_key)),
        "node1",
    ]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == [
        "127.0.0.1"
    ]
    life = certificate.not_valid_after_utc.timestamp() - world.service.now()
    assert 0 < life <= 3600
    assert answer["expires_at"] == int(
        certificate.not_valid_after_utc.timestamp()
    )
    record = world.audit()[-1]["record"]
    assert record["event"] == "attest.migration-certificate.issued"
    assert record["serial"] == f"{certificate.serial_number:x}"


def test_certificate_only_for_a_host_that_passes_now(world: World) -> None:
    host = world.enrolled()
    world.call("POST", CERTIFICATES, key_body(world, host), None, 200)
    host.boot(log_of(kernel=b"kernel 2"))
    refused(
        world,
        CERTIFICATES,
        key_body(world, host),
        "attest.appraise.host-policy",
    )


def test_certificate_only_for_an_enrolled_host(world: World) -> None:
    host = world.enrolled()
    world.call("DELETE", "/v1/hosts/node1", None, "operator", 204)
    refused(world, CERTIFICATES, key_body(world, host), "attest.appraise.host")


def test_certificate_only_for_a_level_that_is_enough(world: World) -> None:
    host = world.enrolled(log=log_of("root=/dev/sda1"))
    refused(
        world,
        CERTIFICATES,
        key_body(world, host),
        "attest.migration-certificate.level",
    )
    conf = world.service.conf
    conf.set_override("levels", ["boot-only"], "migration")
    try:
        world.call("POST", CERTIFICATES, key_body(world, host), None, 200)
    finally:
        conf.clear_override("levels", "migration")


def test_certificate_for_a_key_that_was_not_quoted(world: World) -> None:
    host = world.enrolled()
    body = key_body(world, host)
    body["jwk"] = jose.public(jose.generate_key())
    refused(world, CERTIFICATES, body, "attest.appraise.evidence")


def test_certificate_for_another_hosts_name(world: World) -> None:
    host = world.enrolled()
    world.enrolled("node2")
    body = key_body(world, host)
    body["host"] = "node2"
    # the name is part of what is quoted
    refused(world, CERTIFICATES, body, "attest.appraise.evidence")
    host.tpm.host, host.tls_key = "node2", jose.generate_key()
    refused(
        world,
        CERTIFICATES,
        key_body(world, host),
        "attest.migration-certificate.host",
    )


@pytest.mark.parametrize("path", [CERTIFICATES, MIGRATIONS])
def test_nonce_is_ours_of_this_kind_and_used_once(
    world: World, path: str
) -> None:
    host = world.enrolled()
    world.enrolled("node2")
    body = (
        key_body(world, host)
        if path == CERTIFICATES
        else ask_body(world, host)
    )
    event = {
        CERTIFICATES: "attest.migration-certificate.nonce",
        MIGRATIONS: "attest.migration.nonce",
    }[path]
    world.call("POST", path, body, None, 200)
    refused(world, path, body, event)
    other = dict(body, nonce=b64u(nonce(world, "vm-report")))
    refused(world, path, other, event)
    world.stop_clock()
    old = (
        key_body(world, host)
        if path == CERTIFICATES
        else ask_body(world, host)
    )
    world.now += 61
    refused(world, path, old, event)


@pytest.mark.parametrize("path", [CERTIFICATES, MIGRATIONS])
@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.clear(),
        lambda body: body.update(more=1),
        lambda body: body.update(nonce="AA"),
        lambda body: body.update(evidence=[]),
        lambda body: body.update(evidence={}),
        lambda body: body.update(jwk={"kty": "oct", "k": "AA"}, request=1),
    ],
)
def test_a_body_that_is_none(world: World, path: str, change: Change) -> None:
    host = world.enrolled()
    body = (
        key_body(world, host)
        if path == CERTIFICATES
        else ask_body(world, host)
    )
    change(body)
    code, document = world.raw("POST", path, _json(body))
    assert code == 400, document


def _json(body: dict[str, Any]) -> bytes:
    import json

    return json.dumps(body).encode()


def granted(world: World, source: SoftHost) -> MigrationResult:
    body = ask_body(world, source)
    answer = world.call("POST", MIGRATIONS, body, None, 200)
    return MigrationResult.verify(
        answer["result"],
        world.service.authority.jwk(),
        issuer=ISSUER,
        request=MigrationRequest.parse(body["request"]),
        levels=("trusted",),
        now=world.service.now(),
    )


def test_result_says_which_key_the_destination_holds_now(
    world: World,
) -> None:
    source, destination = world.enrolled(), world.enrolled("node2")
    result = granted(world, source)
    assert (result.host, result.level) == ("node2", "trusted")
    assert result.tls_jwk == jose.public(destination.tls_key)
    ca = world.service.authority.migration_ca
    assert result.ca_sha256 == ca.fingerprint(hashes.SHA256())
    assert result.expires_at - result.issued_at == 60
    record = world.audit()[-1]["record"]
    assert record["event"] == "attest.migration.granted"
    assert (record["source"], record["destination"]) == ("node1", "node2")
    assert record["instance"] == INSTANCE
    # asked each time: a new key, made since, is what the next one says
    destination.tls_key = jose.generate_key()
    assert granted(world, source).tls_jwk == jose.public(destination.tls_key)


def test_no_word_about_a_destination_that_does_not_pass_now(
    world: World,
) -> None:
    source, destination = world.enrolled(), world.enrolled("node2")
    granted(world, source)
    # what is remembered of it is still good
    assert world.trust("node2")["node2"]["level"] == "trusted"
    destination.boot(log_of(kernel=b"kernel 2"))
    refused(
        world,
        MIGRATIONS,
        ask_body(world, source),
        "attest.appraise.host-policy",
    )


def test_no_word_for_a_source_that_does_not_pass(world: World) -> None:
    source, destination = world.enrolled(), world.enrolled("node2")
    source.boot(log_of(kernel=b"kernel 2"))
    refused(
        world,
        MIGRATIONS,
        ask_body(world, source),
        "attest.appraise.host-policy",
    )
    assert "migration_quote" not in destination.calls


@pytest.mark.parametrize(
    ("changes", "event"),
    [
        ({"destination": "node3"}, "attest.migration.destination"),
        ({"destination": "node1"}, "attest.migration.destination"),
        ({"source": "node2"}, "attest.migration.source"),
    ],
)
def test_no_word_about_others(
    world: World, changes: dict[str, str], event: str
) -> None:
    source = world.enrolled()
    world.enrolled("node2")
    refused(world, MIGRATIONS, ask_body(world, source, **changes), event)


def test_quote_must_cover_the_request(world: World) -> None:
    source = world.enrolled()
    world.enrolled("node2")
    body = ask_body(world, source)
    body["request"]["challenge"] = b64u(bytes(31) + b"\1")
    refused(world, MIGRATIONS, body, "attest.appraise.evidence")


@pytest.mark.parametrize(
    ("lie", "event", "status"),
    [
        (
            Unavailable("attest.listener.silent", "no answer"),
            "attest.listener.silent",
            503,
        ),
        (lambda: ({}, {}), "attest.migration.key", 403),
        (lambda: ({"kty": "RSA"}, {}), "attest.migration.key", 403),
    ],
)
def test_destination_that_gives_no_answer(
    world: World, lie: Any, event: str, status: int
) -> None:
    source, destination = world.enrolled(), world.enrolled("node2")
    destination.lies["migration_quote"] = lie
    refused(world, MIGRATIONS, ask_body(world, source), event, status)
    assert world.audit()[-1]["record"]["event"] == event


def test_destination_that_shows_anothers_evidence(world: World) -> None:
    source, destination = world.enrolled(), world.enrolled("node2")
    good = world.enrolled("node3")
    seen: list[bytes] = []

    def relayed() -> Any:
        # an honest third host's quote over the same nonce, for its own key
        return jose.public(good.tls_key), good.migration_key(seen[-1])

    random = world.service.random

    def noted(count: int) -> bytes:
        seen.append(random(count))
        return seen[-1]

    world.service.random = noted
    destination.lies["migration_quote"] = relayed
    refused(world, MIGRATIONS, ask_body(world, source), "attest.migration.key")


def test_destination_whose_level_is_not_enough(world: World) -> None:
    source = world.enrolled()
    other = world.host("node2", log=log_of("root=/dev/sda1"))
    world.enrol(other, group="other")
    refused(
        world,
        MIGRATIONS,
        ask_body(world, source),
        "attest.migration-certificate.level",
    )


def test_result_is_for_one_question_only(world: World) -> None:
    source = world.enrolled()
    world.enrolled("node2")
    body = ask_body(world, source)
    token = world.call("POST", MIGRATIONS, body, None, 200)["result"]
    asked = MigrationRequest.parse(body["request"])
    now = world.service.now()

    def verify(**changes: Any) -> str:
        arguments: dict[str, Any] = {
            "issuer": ISSUER,
            "request": asked,
            "levels": ("trusted",),
            "now": now,
            **changes,
        }
        key = arguments.pop("key", world.service.authority.jwk())
        try:
            MigrationResult.verify(token, key, **arguments)
        except MHError as error:
            return error.event
        return ""

    assert verify() == ""
    assert verify(key=jose.public(jose.generate_key())) == (
        "core.jose.signature"
    )
    assert verify(issuer="https://other.test") == "core.migration.issuer"
    for change, event in (
        ({"source": "node3"}, "core.migration.audience"),
        ({"challenge": bytes(31) + b"\1"}, "core.migration.challenge"),
        (
            {"instance": "d5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51"},
            "core.migration.instance",
        ),
        ({"destination": "node3"}, "core.migration.host"),
    ):
        assert verify(request=replace(asked, **change)) == event
    assert verify(levels=("boot-only",)) == "core.migration.level"
    assert verify(now=now + 60) == "core.migration.time"
    assert verify(now=now - 31) == "core.migration.time"
