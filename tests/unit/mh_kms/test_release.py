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

"""The one way to a host: what passes, and every named refusal."""

import sqlite3
import threading
import uuid
from dataclasses import replace
from typing import Any

import pytest

from mh_core.errors import Unavailable, VerificationError
from mh_core.image.overlay import overlay_key
from mh_core.launch_policy import LaunchPolicy
from mh_core.request import Disk
from mh_core.tpm import constants as c
from mh_core.tpm.quote import LABEL_HOST
from tests.fixture import softtpm
from tests.unit.mh_kms.world import DEK, ORIGIN, PROJECT, World


class Launch:
    """A key with a manifest, and a request that should pass."""

    def __init__(self, world: World, **policy: Any) -> None:
        self.world = world
        self.key = world.create_key(**policy)["id"]
        self.manifest = world.register(self.key)
        self.request = world.request(self.key, manifest_digest=self.manifest)

    def refused(
        self, answer: Any, event: str, detail: str = "", status: int = 403
    ) -> dict[str, Any]:
        """An error with that id, recorded as such; returns the record."""
        assert answer.status_code == status, answer.text
        error = answer.json["error"]
        assert error["event"] == event
        assert error["request_id"] == answer.headers["x-request-id"]
        record = self.world.audit(self.key)[-1]
        assert record["event"] == event
        assert record["audit"] == error["audit"]
        assert record["detail"] == detail
        assert record["request_id"] == error["request_id"]
        return record

    def passes(self, **changes: Any) -> None:
        request = replace(self.request, **changes)
        answer = self.world.release(self.key, request)
        assert answer.status_code == 200, answer.text
        payload = self.world.open(answer.json["jwe"], request)
        assert payload.dek.reveal() == DEK


@pytest.fixture
def launch(world: World) -> Launch:
    return Launch(world)


def test_granted(world: World) -> None:
    launch = Launch(world, lease=3600)
    policy = LaunchPolicy(user_data=("ab" * 32,))
    digest = world.register(launch.key, launch_policy=policy)
    disks = (
        Disk("disk", str(uuid.uuid4())),
        Disk("disk.eph0", str(uuid.uuid4())),
    )
    request = replace(launch.request, manifest_digest=digest, disks=disks)
    answer = world.release(launch.key, request)
    assert answer.status_code == 200, answer.text
    payload = world.open(answer.json["jwe"], request)
    assert payload.dek.reveal() == DEK
    assert payload.purpose == "launch"
    assert payload.key_id == launch.key
    assert payload.kms_origin == ORIGIN
    assert payload.lease == 3600
    assert payload.launch_policy == policy
    assert set(payload.manifest_digests) == {launch.manifest, digest}
    assert payload.transport_jwk == world.parts.transport.public
    assert payload.request_digest == request.digest()
    # overlay keys: of these disks only, from a root that is the key's own
    key = sqlite3.connect(world.base / "kms.sqlite").execute(
        "select overlay_root from keys where id = ?", (launch.key,)
    )
    root = world.parts.key_store.open(
        launch.key, "overlay-root", key.fetchone()[0]
    )
    assert {name: k.reveal() for name, k in payload.overlay_keys.items()} == {
        disk.name: overlay_key(
            root.reveal(),
            uuid.UUID(request.instance),
            disk.name,
            uuid.UUID(disk.luks_uuid),
        )
        for disk in disks
    }
    record = world.audit(launch.key)[-1]
    assert record["audit"] == payload.audit
    assert record["event"] == "kms.release.granted"
    assert record["detail"] == ""
    assert record["level"] == "trusted"
    assert record["host"] == "node1"
    assert record["host_id"] == world.tpm.host_id
    assert record["ak_name"] == world.tpm.ak.name.hex()
    assert record["request_digest"] == request.digest().hex()
    assert record["ticket"] == "not-required"
    # what the cloud says is marked as such
    assert record["claims"] == {
        "project": request.project,
        "user": request.user,
        "instance": request.instance,
        "host": request.host,
        "image": request.image,
    }


def test_the_record_is_there_before_the_key(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    from mh_kms import release

    def wrap(*args: Any) -> str:
        seen.append(launch.world.audit(launch.key)[-1]["event"])
        return "jwe"

    monkeypatch.setattr(release.jose, "wrap", wrap)
    launch.world.release(launch.key, launch.request)
    assert seen == ["kms.release.granted"]


# -- 1: key --------------------------------------------------------------


def test_unknown_key(world: World, launch: Launch) -> None:
    other = str(uuid.uuid4())
    nonce = world.nonce(launch.key)
    request = replace(launch.request, key_id=other)
    evidence = world.tpm.release_evidence(nonce, request)
    answer = world.send(other, nonce, request, evidence)
    assert answer.status_code == 404
    assert answer.json["error"]["event"] == "kms.release.key"
    assert answer.json["error"]["audit"]


def test_deleted_key(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    assert world.call("DELETE", f"/v1/keys/{launch.key}").status_code == 204
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.key", "kms.key.unknown", 404)


@pytest.mark.parametrize("change", ["delete", "policy", "manifest"])
def test_changed_while_the_authority_thinks(
    world: World, launch: Launch, change: str
) -> None:
    def happens() -> None:
        path = f"/v1/keys/{launch.key}"
        if change == "delete":
            world.call("DELETE", path)
        elif change == "policy":
            world.call("PUT", path + "/policy", world.policy(projects=[]))
        else:
            world.call("DELETE", f"{path}/manifests/{launch.manifest}")

    world.attestor.during = happens
    launch.refused(
        world.release(launch.key, launch.request), "kms.release.key"
    )


# -- 2: nonce ------------------------------------------------------------


def test_nonce_replayed(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    first = world.send(launch.key, nonce, launch.request, evidence)
    assert first.status_code == 200
    again = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(again, "kms.release.nonce")


def test_nonce_is_spent_by_a_refusal(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    request = replace(launch.request, purpose="rescue")
    evidence = world.tpm.release_evidence(nonce, request)
    answer = world.send(launch.key, nonce, request, evidence)
    launch.refused(answer, "kms.release.purpose")
    evidence = world.tpm.release_evidence(nonce, launch.request)
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.nonce")


def test_nonce_never_given(world: World, launch: Launch) -> None:
    nonce = bytes(32)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.nonce")


def test_nonce_expired(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    world.offset = 61
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.nonce")


def test_nonce_expires_while_the_authority_thinks(
    world: World, launch: Launch
) -> None:
    world.attestor.during = lambda: setattr(world, "offset", 61.0)
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.nonce")


def test_nonce_of_another_key(world: World, launch: Launch) -> None:
    nonce = world.nonce(world.create_key()["id"])
    evidence = world.tpm.release_evidence(nonce, launch.request)
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.nonce")


def test_nonce_once_among_many_at_once(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    gate = threading.Barrier(4)
    # All have passed step 2 before any is at step 7.
    world.attestor.during = lambda: gate.wait(20)
    codes: list[int] = []

    def one() -> None:
        answer = world.send(launch.key, nonce, launch.request, evidence)
        codes.append(answer.status_code)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(codes) == [200, 403, 403, 403]
    events = [r["event"] for r in world.audit(launch.key)[-4:]]
    assert (
        sorted(events) == ["kms.release.granted"] + ["kms.release.nonce"] * 3
    )


# -- 3: origin -----------------------------------------------------------


def test_request_for_another_server(world: World, launch: Launch) -> None:
    request = replace(launch.request, kms_origin="https://relay.test")
    launch.refused(world.release(launch.key, request), "kms.release.origin")
    launch.passes(kms_origin="https://proxy.test")


def test_request_for_another_key(world: World, launch: Launch) -> None:
    other = world.create_key()["id"]
    request = replace(launch.request, key_id=other)
    launch.refused(world.release(launch.key, request), "kms.release.origin")


# -- 4: evidence ---------------------------------------------------------


def test_evidence_of_another_label(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(
        nonce, launch.request, label=LABEL_HOST
    )
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.tpm.quote.extra-data")


def test_evidence_for_another_nonce(world: World, launch: Launch) -> None:
    nonce, other = world.nonce(launch.key), world.nonce(launch.key)
    evidence = world.tpm.release_evidence(other, launch.request)
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.tpm.quote.extra-data")


@pytest.mark.parametrize(
    "change",
    [
        {"purpose": "start"},
        {"instance": str(uuid.UUID(int=7))},
        {"disks": (Disk("disk", str(uuid.UUID(int=8))),)},
        {"ticket": "AAAA"},
        {"project": "another"},
    ],
)
def test_request_changed_after_the_quote(
    world: World, launch: Launch, change: dict[str, Any]
) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    request = replace(launch.request, **change)
    answer = world.send(launch.key, nonce, request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.tpm.quote.extra-data")


def test_lying_authority_software_bind_key(
    world: World, launch: Launch
) -> None:
    """A bind key that its maker can export, called trusted."""
    world.tpm.bind_attributes = c.DECRYPT | c.USER_WITH_AUTH
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.evidence", "core.tpm.bind.attributes")
    assert not world.attestor.asked


def test_lying_authority_bind_key_of_another_tpm(
    world: World, launch: Launch
) -> None:
    """A fine bind key that the AK never certified, called trusted."""
    nonce = world.nonce(launch.key)
    foreign = softtpm.SoftTpm(world.tpm.enroller)
    mixed = softtpm.SoftTpm(
        world.tpm.enroller,
        host_id=world.tpm.host_id,
        ak_key=world.tpm.ak_key,
        bind_key=foreign.bind_key,
    )
    own, own_signature = world.tpm.certify()
    evidence = replace(
        mixed.release_evidence(nonce, launch.request),
        bind_attest=own,
        bind_signature=own_signature,
    )
    world.attestor.tpm = mixed
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.tpm.certify.name")
    # nor does the other TPM's own word help
    theirs, theirs_signature = foreign.certify()
    nonce = world.nonce(launch.key)
    evidence = replace(
        mixed.release_evidence(nonce, launch.request),
        bind_attest=theirs,
        bind_signature=theirs_signature,
    )
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(
        answer, "kms.release.evidence", "core.tpm.certify.signature"
    )


def test_bind_key_of_an_earlier_boot(world: World, launch: Launch) -> None:
    certify, signature = world.tpm.certify()
    world.tpm.reset += 1
    nonce = world.nonce(launch.key)
    evidence = replace(
        world.tpm.release_evidence(nonce, launch.request),
        bind_attest=certify,
        bind_signature=signature,
    )
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.evidence.boot")


def test_bind_key_held_to_other_pcrs(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    before, certified = world.tpm.bind, world.tpm.certify()
    world.tpm.extend(4)
    from mh_core.evidence import release_claims
    from mh_core.tpm.quote import LABEL_RELEASE

    evidence = replace(
        world.tpm.evidence(
            LABEL_RELEASE,
            nonce,
            release_claims(launch.request.digest(), before),
        ),
        bind_public=before.raw,
        bind_attest=certified[0],
        bind_signature=certified[1],
    )
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.tpm.bind.policy")


def test_pcr_values_not_those_quoted(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    evidence.pcrs[4] = bytes(32)
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.tpm.quote.pcr-digest")


def test_unrestricted_ak(world: World, launch: Launch) -> None:
    world.tpm.ak_attributes = c.AK_ATTRIBUTES & ~c.RESTRICTED
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.evidence", "core.tpm.ak.attributes")


def test_enroller_not_pinned(world: World, launch: Launch) -> None:
    world.tpm.enroller = softtpm.Enroller()
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.evidence", "core.akcert.issuer")


def test_malformed_structures_are_a_refusal(
    world: World, launch: Launch
) -> None:
    nonce = world.nonce(launch.key)
    evidence = replace(
        world.tpm.release_evidence(nonce, launch.request), bind_public=b"\0"
    )
    answer = world.send(launch.key, nonce, launch.request, evidence)
    record = launch.refused(
        answer, "kms.release.evidence", "core.tpm.reader.short"
    )
    assert "host" not in record


def test_another_hosts_name(world: World, launch: Launch) -> None:
    request = replace(launch.request, host="node2")
    launch.refused(world.release(launch.key, request), "kms.release.host")


# -- 5: the authority ----------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"audience": "https://other.test"}, "core.result.audience"),
        ({"nonce": bytes(32)}, "core.result.nonce"),
        ({"request_digest": bytes(32)}, "core.result.request"),
        ({"issuer": "https://evil.test"}, "core.result.issuer"),
        (
            {"bind_jwk": softtpm.Authority().to_dict()["jwk"]},
            "core.result.bind-key",
        ),
        ({"now": 1}, "core.result.time"),
        ({"host": "node2"}, "kms.release.result-host"),
        ({"host_id": str(uuid.UUID(int=9))}, "kms.release.result-host"),
    ],
)
def test_result_for_something_else(
    world: World, launch: Launch, changes: dict[str, Any], detail: str
) -> None:
    world.attestor.changes = changes
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.attestation", detail)
    world.attestor.changes = {}
    launch.passes()


def test_result_of_another_authority(world: World, launch: Launch) -> None:
    world.attestor.authority = softtpm.Authority()
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.attestation", "core.jose.signature")


def test_no_authority_pinned(world: World) -> None:
    launch = Launch(world, authorities=[])
    launch.refused(
        world.release(launch.key, launch.request), "kms.release.attestation"
    )


def test_authority_refuses(world: World, launch: Launch) -> None:
    world.attestor.error = VerificationError(
        "attest.appraise.host-policy", "refused"
    )
    answer = world.release(launch.key, launch.request)
    launch.refused(
        answer, "kms.release.attestation", "attest.appraise.host-policy"
    )


def test_authority_down(world: World, launch: Launch) -> None:
    world.attestor.error = Unavailable("kms.authority.silent", "silent")
    answer = world.release(launch.key, launch.request)
    launch.refused(
        answer, "kms.release.authority", "kms.authority.silent", 503
    )
    world.attestor.error = None
    launch.passes()


def test_second_authority_answers(world: World) -> None:
    launch = Launch(
        world,
        authorities=[
            softtpm.Authority("https://first.test").to_dict(),
            world.authority.to_dict(),
        ],
    )
    launch.passes()


# -- 6: release policy ---------------------------------------------------


@pytest.mark.parametrize(
    ("check", "policy", "request_changes", "result_changes"),
    [
        ("level", {}, {}, {"level": "boot-only"}),
        ("project", {"projects": ["another"]}, {}, {}),
        ("project", {}, {"project": "another"}, {}),
        ("purpose", {}, {"purpose": "migrate-in"}, {}),
        ("manifest", {}, {"manifest_digest": "ab" * 32}, {}),
        ("tags", {"tags": {"geo": ["DE", "FR"]}}, {}, {}),
        ("tags", {"tags": {"geo": "DE"}}, {}, {"tags": {"geo": "US"}}),
    ],
)
def test_policy_refuses(
    world: World,
    check: str,
    policy: dict[str, Any],
    request_changes: dict[str, Any],
    result_changes: dict[str, Any],
) -> None:
    # Listing no checks does not switch the built-in ones off.
    launch = Launch(world, checks=[], **policy)
    world.attestor.changes = result_changes
    request = replace(launch.request, **request_changes)
    answer = world.release(launch.key, request)
    launch.refused(answer, f"kms.release.{check}")


def test_policy_accepts_boot_only_and_tags(world: World) -> None:
    launch = Launch(
        world, levels=["trusted", "boot-only"], tags={"geo": ["DE", "FR"]}
    )
    world.attestor.changes = {"level": "boot-only", "tags": {"geo": "FR"}}
    launch.passes()


def test_manifest_withdrawn(world: World, launch: Launch) -> None:
    launch.passes()
    path = f"/v1/keys/{launch.key}/manifests/{launch.manifest}"
    assert world.call("DELETE", path).status_code == 204
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.manifest")


def test_check_that_is_not_loaded_denies(world: World, launch: Launch) -> None:
    checks = dict(world.parts.checks)
    del checks["tags"]
    from mh_kms import release

    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    with pytest.raises(release.Refused) as caught:
        release.release_key(
            launch.key,
            nonce,
            launch.request,
            evidence,
            parts=replace(world.parts, checks=checks),
            request_id="req-1",
        )
    assert caught.value.event == "kms.release.check"


# -- 7: tickets ----------------------------------------------------------


def test_ticket_is_needed(world: World) -> None:
    launch = Launch(world, tickets="required")
    for ticket in ("", "AAAA", "A" * 43):
        request = replace(launch.request, ticket=ticket)
        record = launch.refused(
            world.release(launch.key, request),
            "kms.release.ticket",
            "kms.ticket.form" if len(ticket) < 43 else "",
        )
        assert record["level"] == "trusted"


def test_ticket_once_then_the_instance(world: World) -> None:
    launch = Launch(world, tickets="required")
    ticket = world.ticket(launch.key, launch.manifest)
    launch.passes(ticket=ticket)
    assert world.audit(launch.key)[-1]["ticket"] == "spent"
    # the instance is known now: with or without the ticket
    launch.passes(purpose="start")
    assert world.audit(launch.key)[-1]["ticket"] == "instance"
    launch.passes(ticket=ticket)
    # another instance needs a ticket of its own
    other = replace(launch.request, ticket=ticket, instance=str(uuid.uuid4()))
    launch.refused(world.release(launch.key, other), "kms.release.ticket")


def test_ticket_is_not_spent_by_a_refusal(world: World) -> None:
    launch = Launch(world, tickets="required")
    ticket = world.ticket(launch.key, launch.manifest)
    request = replace(launch.request, ticket=ticket, project="another")
    launch.refused(world.release(launch.key, request), "kms.release.project")
    launch.passes(ticket=ticket)


def test_ticket_counts(world: World) -> None:
    launch = Launch(world, tickets="required")
    ticket = world.ticket(launch.key, launch.manifest, count=2)
    launch.passes(ticket=ticket, instance=str(uuid.uuid4()))
    launch.passes(ticket=ticket, instance=str(uuid.uuid4()))
    third = replace(launch.request, ticket=ticket, instance=str(uuid.uuid4()))
    launch.refused(world.release(launch.key, third), "kms.release.ticket")


def test_ticket_expired(world: World) -> None:
    launch = Launch(world, tickets="required")
    ticket = world.ticket(launch.key, launch.manifest, ttl=10)
    world.offset = 11
    request = replace(launch.request, ticket=ticket)
    launch.refused(world.release(launch.key, request), "kms.release.ticket")


def test_ticket_of_another_key(world: World) -> None:
    launch, other = (
        Launch(world, tickets="required"),
        Launch(world, tickets="required"),
    )
    ticket = world.ticket(other.key, other.manifest)
    request = replace(launch.request, ticket=ticket)
    launch.refused(world.release(launch.key, request), "kms.release.ticket")


def test_ticket_for_another_manifest(world: World) -> None:
    launch = Launch(world, tickets="required")
    other = world.register(launch.key, virtual_size=1 << 21)
    ticket = world.ticket(launch.key, other)
    request = replace(launch.request, ticket=ticket)
    launch.refused(world.release(launch.key, request), "kms.release.ticket")
    # a known instance changes its image only by a new ticket
    launch.passes(ticket=world.ticket(launch.key, launch.manifest))
    request = replace(launch.request, manifest_digest=other)
    launch.refused(
        world.release(launch.key, request),
        "kms.release.ticket",
        "kms.ticket.form",
    )
    launch.passes(manifest_digest=other, ticket=ticket)


# -- 8: no log, no key ---------------------------------------------------


def _sql(world: World, statement: str) -> None:
    with sqlite3.connect(world.base / "kms.sqlite") as connection:
        connection.execute(statement)
    connection.close()


def test_no_record_no_key(world: World) -> None:
    launch = Launch(world, tickets="required")
    ticket = world.ticket(launch.key, launch.manifest)
    _sql(
        world,
        "create trigger stop before insert on audit begin"
        " select raise(abort, 'disk full'); end",
    )
    request = replace(launch.request, ticket=ticket)
    answer = world.release(launch.key, request)
    assert answer.status_code == 503
    assert answer.json["error"]["event"] == "kms.release.audit"
    assert answer.json["error"]["audit"] == ""
    assert "jwe" not in answer.text
    # a refusal that cannot be recorded is a refusal too
    answer = world.release(launch.key, replace(request, project="another"))
    assert answer.status_code == 503
    assert answer.json["error"]["event"] == "kms.release.audit"
    # nothing else of it happened: the ticket is still good
    _sql(world, "drop trigger stop")
    launch.passes(ticket=ticket)


def test_chain_goes_on_after_a_failed_write(
    world: World, launch: Launch
) -> None:
    _sql(
        world,
        "create trigger stop before insert on audit begin"
        " select raise(abort, 'disk full'); end",
    )
    assert world.release(launch.key, launch.request).status_code == 503
    _sql(world, "drop trigger stop")
    launch.passes()
    assert world.manage("audit", "verify") == 0


def test_wrapped_only_to_the_bind_key(world: World, launch: Launch) -> None:
    answer = world.release(launch.key, launch.request)
    other = softtpm.SoftTpm(world.tpm.enroller)
    from mh_core import jose

    with pytest.raises(VerificationError):
        jose.unwrap(
            answer.json["jwe"], other.bind_jwk, launch.request.digest()
        )
    with pytest.raises(VerificationError):
        jose.unwrap(answer.json["jwe"], world.tpm.bind_jwk, bytes(32))


def test_nothing_secret_is_recorded_or_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    launch = Launch(world, tickets="required")
    ticket = world.ticket(launch.key, launch.manifest)
    launch.passes(ticket=ticket)
    everything = caplog.text + str(world.audit(launch.key))
    import base64

    for secret in (
        ticket,
        DEK.hex(),
        base64.b64encode(DEK).decode().rstrip("="),
        world.token,
        "eyJ",
    ):
        assert secret not in everything
    raw = b"".join(
        path.read_bytes() for path in world.base.glob("kms.sqlite*")
    )
    assert DEK not in raw
    assert ticket.encode() not in raw
    assert world.token.encode() not in raw
    assert PROJECT.encode() in raw
