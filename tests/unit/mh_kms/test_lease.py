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

"""Leases: one holder for an instance, renewals, revocation, receipts."""

from dataclasses import replace
from typing import Any

import pytest

from mh_core.encoding import b64u
from mh_core.evidence import Evidence, release_claims
from mh_core.launch_policy import LaunchPolicy
from mh_core.lease import LeaseGrant, LeaseRequest
from mh_core.payload import ReleasePayload
from mh_core.request import PURPOSES, STARTS, Disk
from mh_core.tpm.quote import LABEL_HOST, LABEL_RELEASE
from tests.fixture import softtpm
from tests.unit.mh_kms.launch import Launch
from tests.unit.mh_kms.world import DEK, ORIGIN, World

LEASE = 600
VOLUME = "7a5f6c1e-93b0-4d28-8e14-2c9d0b7f3a65"


class Holder:
    """A host that was given an instance's keys."""

    def __init__(self, launch: Launch, tpm: softtpm.SoftTpm) -> None:
        self.launch, self.world, self.tpm = launch, launch.world, tpm
        self.lease = ""
        self.signing: dict[str, Any] = {}

    @property
    def instance(self) -> str:
        return self.launch.request.instance

    def speaks(self) -> None:
        self.world.tpm = self.tpm
        self.world.attestor.tpm = self.tpm

    def takes(self, purpose: str = "start", **changes: Any) -> ReleasePayload:
        """A release; what the agent keeps of it."""
        self.speaks()
        request = replace(
            self.launch.request,
            purpose=purpose,
            host=self.tpm.host,
            **changes,
        )
        answer = self.world.release(self.launch.key, request)
        assert answer.status_code == 200, answer.text
        payload = self.world.open(answer.json["jwe"], request)
        self.lease, self.signing = payload.audit, payload.signing_jwk
        return payload

    def request(self, purpose: str = "renew", **changes: Any) -> LeaseRequest:
        request = LeaseRequest(
            key_id=self.launch.key,
            kms_origin=ORIGIN,
            purpose=purpose,
            instance=self.instance,
            lease=self.lease,
            host=self.tpm.host,
        )
        return replace(request, **changes)

    def evidence(
        self, nonce: bytes, request: LeaseRequest, label: str = LABEL_RELEASE
    ) -> Evidence:
        claims = release_claims(request.digest(), self.tpm.bind)
        return self.tpm.evidence(label, nonce, claims)

    def send(
        self, nonce: bytes, request: LeaseRequest, evidence: Evidence
    ) -> Any:
        return self.world.call(
            "POST",
            f"/v1/keys/{self.launch.key}/lease",
            {
                "nonce": b64u(nonce),
                "request": request.to_dict(),
                "evidence": evidence.to_dict(),
            },
            token="",
        )

    def asks(self, purpose: str = "renew", **changes: Any) -> Any:
        self.speaks()
        request = self.request(purpose, **changes)
        nonce = self.world.nonce(self.launch.key)
        answer = self.send(nonce, request, self.evidence(nonce, request))
        if answer.status_code == 200:
            self.grant = LeaseGrant.verify(
                answer.json["lease"], self.signing, request.digest(), nonce
            )
        return answer

    def gets(self, purpose: str = "renew", **changes: Any) -> LeaseGrant:
        answer = self.asks(purpose, **changes)
        assert answer.status_code == 200, answer.text
        return self.grant

    def refused(self, event: str, purpose: str = "renew") -> dict[str, Any]:
        return self.launch.refused(self.asks(purpose), event)


def policy(**changes: Any) -> dict[str, Any]:
    return {
        "lease": LEASE,
        "purposes": ["launch", "start", "migrate-in"],
        **changes,
    }


@pytest.fixture
def launch(world: World) -> Launch:
    return Launch(world, **policy())


@pytest.fixture
def first(launch: Launch) -> Holder:
    return Holder(launch, launch.world.tpm)


@pytest.fixture
def second(launch: Launch, first: Holder) -> Holder:
    enroller = first.tpm.enroller
    return Holder(launch, softtpm.SoftTpm(enroller, "node2"))


def shown(launch: Launch) -> dict[str, Any]:
    path = f"/v1/keys/{launch.key}/instances/{launch.request.instance}"
    answer = launch.world.call("GET", path)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json
    return found


def events(launch: Launch) -> list[str]:
    return [record["event"] for record in launch.world.audit(launch.key)]


def test_renewed(launch: Launch, first: Holder) -> None:
    payload = first.takes("launch")
    assert payload.lease == LEASE
    launch.world.offset = 300
    grant = first.gets()
    assert grant.seconds == LEASE
    record = launch.world.audit(launch.key)[-1]
    assert record["event"] == "kms.lease.renewed"
    assert record["audit"] == grant.audit
    assert record["purpose"] == "renew"
    assert record["level"] == "trusted"
    assert record["host"] == "node1"
    assert record["claims"] == {"instance": first.instance, "host": "node1"}
    lease = shown(launch)["leases"][-1]
    assert lease["id"] == payload.audit
    assert lease["expires_at"] == lease["renewed_at"] + LEASE
    assert lease["renewed_at"] >= lease["granted_at"] + 300


def test_the_answer_carries_no_key(launch: Launch, first: Holder) -> None:
    first.takes()
    answer = first.asks()
    assert set(answer.json) == {"lease"}
    assert DEK.hex() not in answer.text
    assert b64u(DEK) not in answer.text


def test_the_policy_of_now_counts(launch: Launch, first: Holder) -> None:
    first.takes()
    path = f"/v1/keys/{launch.key}/policy"
    world = launch.world
    world.call("PUT", path, world.policy(**policy(lease=60)))
    assert first.gets().seconds == 60
    # purposes say what keys are given for, not whether a guest goes on
    world.call("PUT", path, world.policy(**policy(purposes=["launch"])))
    first.gets()
    world.call("PUT", path, world.policy(**policy(projects=["other"])))
    first.refused("kms.release.project")
    world.call("PUT", path, world.policy(**policy(tags={"geo": "DE"})))
    first.refused("kms.release.tags")
    world.attestor.changes = {"level": "boot-only"}
    world.call("PUT", path, world.policy(**policy()))
    first.refused("kms.release.level")
    world.attestor.changes = {}
    first.gets()


def test_another_host_takes_it_over(
    launch: Launch, first: Holder, second: Holder
) -> None:
    """As an evacuation does: the source hears of it when it asks."""
    first.takes("launch")
    second.takes("launch")
    moved = launch.world.audit(launch.key)[-1]
    assert moved["event"] == "kms.lease.moved"
    assert moved["host"] == "node1"
    assert moved["lease"] == first.lease
    assert moved["successor"] == second.lease
    record = first.refused("kms.release.lease-moved")
    assert record["purpose"] == "renew"
    second.gets()
    one, two = shown(launch)["leases"]
    assert (one["host"], one["why"]) == ("node1", "moved")
    assert (two["host"], two["ended_at"]) == ("node2", None)


def allows(launch: Launch, *purposes: str) -> None:
    """The policy, from now on."""
    world = launch.world
    document = world.policy(**policy(purposes=["start", *purposes]))
    path = f"/v1/keys/{launch.key}/policy"
    assert world.call("PUT", path, document).status_code == 200


@pytest.mark.parametrize("purpose", STARTS)
def test_whoever_starts_it_holds_it(
    launch: Launch, first: Holder, second: Holder, purpose: str
) -> None:
    """Whatever the guest is started for: on one host, by one lease."""
    allows(launch, purpose)
    first.takes()
    second.takes(purpose)
    first.refused("kms.release.lease-moved")
    second.gets()
    second.takes(purpose)
    second.gets()


@pytest.mark.parametrize("purpose", STARTS)
def test_the_same_host_starts_it_again(
    launch: Launch, first: Holder, purpose: str
) -> None:
    allows(launch, purpose)
    first.takes("start")
    old = first.lease
    first.takes(purpose)
    assert "kms.lease.moved" not in events(launch)
    first.gets()
    # the answer may have been lost: the guest goes on by what its host has
    new, first.lease = first.lease, old
    first.gets()
    shows = {one["id"]: one for one in shown(launch)["leases"]}
    assert shows[old]["why"] == "replaced"
    assert shows[new]["ended_at"] is None


def test_of_a_lease_that_was_replaced(
    launch: Launch, first: Holder, second: Holder
) -> None:
    """Only while the later one is held, only for its host, and nothing that
    is told of the old one ends the later."""
    first.takes("start")
    old = first.lease
    first.takes("start")
    new, first.lease = first.lease, old
    second.lease = old
    second.refused("kms.release.lease-unknown")
    first.gets("left")
    first.gets()
    first.gets("erased")
    first.gets()
    first.lease = new
    first.gets("left")
    first.lease = old
    first.refused("kms.release.lease-ended")
    second.takes("start")
    first.refused("kms.release.lease-ended")


@pytest.mark.parametrize(
    ("purpose", "disks"),
    [
        ("snapshot", ("disk",)),
        ("flatten", ("disk",)),
        ("stream", ("disk",)),
        ("attach", ("volume-" + VOLUME,)),
        # by the key of the rescue image, which may be the same
        ("rescue", ("disk.rescue", "disk.config.rescue")),
    ],
)
def test_a_release_that_starts_nothing_takes_no_lease(
    second: Holder,
    first: Holder,
    launch: Launch,
    purpose: str,
    disks: tuple[str, ...],
) -> None:
    allows(launch, purpose)
    digest = launch.world.register(
        launch.key, launch_policy=LaunchPolicy(snapshots=True)
    )
    launch.request = replace(launch.request, manifest_digest=digest)
    first.takes()
    held = first.lease
    second.takes(purpose, disks=tuple(Disk(name, VOLUME) for name in disks))
    first.gets()
    second.refused("kms.release.lease-unknown")
    # nor does the guest's own host lose it, or get another
    first.takes(purpose, disks=tuple(Disk(name, VOLUME) for name in disks))
    first.refused("kms.release.lease-unknown")
    first.lease = held
    first.gets()
    assert len(shown(launch)["leases"]) == 1


@pytest.mark.parametrize("disks", [(), ("disk", "disk.rescue"), ("disk",)])
def test_a_rescue_with_a_disk_of_the_instance_holds_it(
    launch: Launch, first: Holder, second: Holder, disks: tuple[str, ...]
) -> None:
    allows(launch, "rescue")
    first.takes()
    second.takes("rescue", disks=tuple(Disk(name, VOLUME) for name in disks))
    first.refused("kms.release.lease-moved")


def test_every_purpose_starts_a_guest_or_none() -> None:
    """A new one is to be thought about in the two tests above."""
    nothing = {"snapshot", "flatten", "stream", "attach"}
    assert set(PURPOSES) == {*STARTS} | nothing


# -- who asks ------------------------------------------------------------


def test_a_lease_is_of_one_ak(
    launch: Launch, first: Holder, second: Holder
) -> None:
    first.takes()
    second.lease = first.lease
    second.refused("kms.release.lease-unknown")
    # nor by another host of the same name
    again = Holder(launch, softtpm.SoftTpm(first.tpm.enroller, "node1"))
    again.lease = first.lease
    again.refused("kms.release.lease-unknown")
    again.refused("kms.release.lease-unknown", "erased")
    assert shown(launch)["leases"][-1]["ended_at"] is None


def test_a_lease_is_of_one_instance_and_key(
    launch: Launch, first: Holder
) -> None:
    first.takes()
    other = "11111111-2222-4333-8444-555555555555"
    launch.refused(first.asks(instance=other), "kms.release.lease-unknown")
    launch.refused(first.asks(key_id=other), "kms.release.origin")
    launch.refused(
        first.asks(kms_origin="https://evil.test"), "kms.release.origin"
    )
    launch.refused(first.asks(host="node9"), "kms.release.host")


def test_evidence_must_cover_this_question(
    launch: Launch, first: Holder
) -> None:
    first.takes()
    world = launch.world
    request = first.request()
    nonce = world.nonce(launch.key)
    evidence = first.evidence(nonce, replace(request, purpose="left"))
    launch.refused(
        first.send(nonce, request, evidence),
        "kms.release.evidence",
        "core.tpm.quote.extra-data",
    )
    nonce = world.nonce(launch.key)
    evidence = first.evidence(nonce, request, LABEL_HOST)
    launch.refused(
        first.send(nonce, request, evidence),
        "kms.release.evidence",
        "core.tpm.quote.extra-data",
    )
    # a release's evidence is none for a lease, whatever its claims
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    launch.refused(
        first.send(nonce, request, evidence),
        "kms.release.evidence",
        "core.tpm.quote.extra-data",
    )
    first.gets()


def test_a_nonce_is_used_once(launch: Launch, first: Holder) -> None:
    first.takes()
    world, request = launch.world, first.request()
    nonce = world.nonce(launch.key)
    evidence = first.evidence(nonce, request)
    assert first.send(nonce, request, evidence).status_code == 200
    launch.refused(first.send(nonce, request, evidence), "kms.release.nonce")


def test_a_silent_authority_is_no_renewal(
    launch: Launch, first: Holder
) -> None:
    from mh_core.errors import Unavailable

    first.takes()
    launch.world.attestor.error = Unavailable("kms.authority.silent", "away")
    launch.refused(
        first.asks(),
        "kms.release.authority",
        "kms.authority.silent",
        status=503,
    )


def test_a_destroyed_key_is_no_renewal(launch: Launch, first: Holder) -> None:
    first.takes()
    world = launch.world
    nonce = world.nonce(launch.key)
    assert world.call("DELETE", f"/v1/keys/{launch.key}").status_code == 204
    request = first.request()
    answer = first.send(nonce, request, first.evidence(nonce, request))
    assert answer.status_code == 404
    assert answer.json["error"]["event"] == "kms.release.key"


# -- the owner -----------------------------------------------------------


def revoke(launch: Launch, value: Any = True, token: str | None = None) -> Any:
    path = f"/v1/keys/{launch.key}/instances/{launch.request.instance}"
    return launch.world.call("PUT", path, {"revoked": value}, token)


def test_revoked_and_restored(
    launch: Launch, first: Holder, second: Holder
) -> None:
    first.takes("launch")
    answer = revoke(launch)
    assert answer.status_code == 200
    assert answer.json["revoked"] is True
    assert answer.json["leases"][-1]["why"] == "revoked"
    record = launch.world.audit(launch.key)[-1]
    assert record["event"] == "kms.lease.revoked"
    assert record["holders"] == ["node1"]
    first.refused("kms.release.lease-revoked")
    # nor does any host start it
    second.speaks()
    request = replace(launch.request, purpose="start", host="node2")
    launch.refused(
        launch.world.release(launch.key, request), "kms.release.revoked"
    )
    # another instance of the key goes on
    other = replace(request, instance="11111111-2222-4333-8444-555555555555")
    assert launch.world.release(launch.key, other).status_code == 200
    assert revoke(launch, False).json["revoked"] is False
    second.takes()
    second.gets()
    assert events(launch)[-3:] == [
        "kms.lease.restored",
        "kms.release.granted",
        "kms.lease.renewed",
    ]


def test_only_the_owner_revokes(launch: Launch) -> None:
    world = launch.world
    auditor = world.make_token("auditor", "cloud-project", ("auditor",))
    assert revoke(launch, token=auditor).status_code == 403
    stranger = world.make_token("stranger", "elsewhere", ("owner",))
    assert revoke(launch, token=stranger).status_code == 404
    assert revoke(launch, token="").status_code == 401
    assert revoke(launch, "yes").status_code == 400
    assert shown(launch)["revoked"] is False


def test_an_instance_is_a_uuid(launch: Launch) -> None:
    path = f"/v1/keys/{launch.key}/instances/all"
    answer = launch.world.call("GET", path)
    assert answer.status_code == 404
    assert answer.json["error"]["event"] == "kms.instance.unknown"


# -- a live migration ----------------------------------------------------


def test_two_hold_it_during_a_named_migration(
    launch: Launch, first: Holder, second: Holder
) -> None:
    first.takes("launch")
    first.gets("handover", to="node2")
    second.takes("migrate-in")
    assert "kms.lease.moved" not in events(launch)
    first.gets()
    second.gets()
    first.gets("left")
    first.refused("kms.release.lease-ended")
    second.gets()


@pytest.mark.parametrize("purpose", ["launch", "start", "migrate-in"])
def test_without_a_name_there_is_one_holder(
    launch: Launch, first: Holder, second: Holder, purpose: str
) -> None:
    first.takes("launch")
    first.gets("handover", to="node3")
    second.takes(purpose)
    first.refused("kms.release.lease-moved")


def test_the_source_takes_it_back(
    launch: Launch, first: Holder, second: Holder
) -> None:
    first.takes("launch")
    first.gets("handover", to="node2")
    second.takes("migrate-in")
    first.gets("handover", to="")
    second.refused("kms.release.lease-moved")
    first.gets()
    # the name is gone as well
    second.takes("migrate-in")
    first.refused("kms.release.lease-moved")


def test_the_destination_cannot_end_the_source(
    launch: Launch, first: Holder, second: Holder
) -> None:
    first.takes("launch")
    first.gets("handover", to="node2")
    second.takes("migrate-in")
    second.gets("handover", to="")
    first.gets()


@pytest.mark.parametrize("ran", [True, False])
def test_a_migration_that_nobody_ended(
    launch: Launch, first: Holder, second: Holder, ran: bool
) -> None:
    first.takes("launch")
    first.gets("handover", to="node2")
    second.takes("migrate-in")
    if ran:
        second.gets()
    launch.world.offset = 3601
    loser, winner = (first, second) if ran else (second, first)
    assert loser.asks().status_code == 403
    winner.gets()
    moved = [
        record
        for record in launch.world.audit(launch.key)
        if record["event"] == "kms.lease.moved"
    ]
    assert [record["lease"] for record in moved] == [loser.lease]
    loser.refused("kms.release.lease-moved")


def test_a_migration_that_the_policy_forbids(
    world: World, first: Holder, launch: Launch
) -> None:
    path = f"/v1/keys/{launch.key}/policy"
    world.call("PUT", path, world.policy(**policy(purposes=["start"])))
    first.takes()
    launch.refused(first.asks("handover", to="node2"), "kms.release.purpose")


# -- receipts ------------------------------------------------------------


def test_receipt(launch: Launch, first: Holder) -> None:
    first.takes("launch")
    # a host that nobody trusts any more may still say what it deleted
    launch.world.attestor.changes = {"level": "boot-only"}
    grant = first.gets("erased")
    record = launch.world.audit(launch.key)[-1]
    assert record["event"] == "kms.lease.erased"
    assert record["audit"] == grant.audit
    assert record["held"] is True
    assert record["host"] == "node1"
    lease = shown(launch)["leases"][-1]
    assert lease["why"] == "left"
    assert lease["erased_at"] is not None
    launch.world.attestor.changes = {}
    first.refused("kms.release.lease-ended")


def test_receipt_of_a_host_that_had_it_before(
    launch: Launch, first: Holder, second: Holder
) -> None:
    first.takes("launch")
    second.takes("launch")
    first.gets("erased")
    assert launch.world.audit(launch.key)[-1]["held"] is False
    second.gets()


def test_receipt_of_an_earlier_life_ends_no_later_one(
    launch: Launch, first: Holder
) -> None:
    """As at a rebuild, where the receipt comes after the next launch."""
    first.takes("launch")
    old = first.lease
    first.takes("launch")
    first.gets("erased", lease=old)
    first.gets()


def test_ended_leases_are_bounded(launch: Launch, first: Holder) -> None:
    for _ in range(12):
        first.takes("start")
    assert len(shown(launch)["leases"]) == 9


def test_chain_holds(launch: Launch, first: Holder, second: Holder) -> None:
    first.takes("launch")
    second.takes("start")
    first.asks()
    second.gets("erased")
    assert launch.world.manage("audit", "verify") == 0
