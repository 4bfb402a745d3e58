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

"""What a host that has an instance's keys says, and asks, afterwards."""

from mh_core.errors import Denied, MHError, NotFound
from mh_core.evidence import Evidence, VerifiedHost
from mh_core.lease import (
    ERASED,
    HANDOVER,
    LEFT,
    RENEW,
    LeaseGrant,
    LeaseRequest,
)
from mh_core.request import KeyRequest
from mh_core.result import AttestationResult
from mh_kms.attestors.base import Question
from mh_kms.db import keys, leases, nonces
from mh_kms.db.leases import Lease
from mh_kms.ledger import Transaction
from mh_kms.parts import Parts
from mh_kms.policy_checks.base import Facts
from mh_kms.proof import attested, step, verified
from mh_kms.release import Trail, check, recorded, refuse, spent
from mh_kms.release_policy import ReleasePolicy

EVENT = "kms.lease"
#: What asks for something; the others only tell.
_ASKING = (RENEW, HANDOVER)
_ENDED = {
    leases.MOVED: "lease-moved",
    leases.CANCELLED: "lease-moved",
    leases.REVOKED: "lease-revoked",
}


def decide_lease(
    key_id: str,
    nonce: bytes,
    request: LeaseRequest,
    evidence: Evidence,
    *,
    parts: Parts,
    request_id: str,
) -> str:
    """Decide what a holder asks, or take note of what it tells.

    No key leaves by this. Steps 1 to 5 and their ids are those of a release.

    1. the key exists;
    2. the nonce is known, for this key, unspent and in time;
    3. the request is for this key and this server;
    4. the evidence is verified, and the certified host is the request's;
    5. an authority's result is for exactly this nonce, digest and bind key
       (renew, handover);
    6. the lease is this host's (by its AK) and, to renew it or hand it
       over, held: not moved, not revoked, not ended; one that a later
       release to this host replaced stands for that release's;
    7. the release policy, but for the purpose (renew, handover);
    8. the audit record;
    9. sign.

    :returns: compact JWS of a :class:`LeaseGrant`.
    :raises Refused: with the step's event id; it is recorded.
    :raises Unavailable: ``kms.release.audit``: it is not.
    """
    trail = Trail(key_id, request_id, nonce)
    trail.facts |= {
        "request_digest": request.digest().hex(),
        "purpose": request.purpose,
        "lease": request.lease,
        "claims": {"instance": request.instance, "host": request.host},
    }
    asking = request.purpose in _ASKING
    try:
        # 1
        with step("kms.release.key", NotFound):
            key = keys.get(parts.database, key_id)
            policy = key.policy
            manifests = keys.manifests(parts.database, key_id)
        trail.facts["project"] = key.project
        # 2
        with step("kms.release.nonce"):
            known = nonces.known(parts.database, nonce, key_id, parts.now())
        if not known:
            raise spent()
        # 3
        if request.key_id != key_id or request.kms_origin not in parts.origins:
            raise Denied(
                "kms.release.origin", "made for another key or key server"
            )
        # 4
        digest = request.digest()
        with step("kms.release.evidence"):
            host = verified(evidence, policy, nonce, digest, parts)
        trail.host(host)
        if host.identity.host != request.host:
            raise Denied("kms.release.host", "the request names another host")
        # 5
        result: AttestationResult | None = None
        if asking:
            question = Question(nonce, parts.origin, digest, evidence)
            result = attested(policy, question, host, parts)
            trail.result(result)
        # 6, 7, 8
        with recorded(parts.ledger) as entry:
            if asking and not keys.unchanged(entry.connection, key):
                raise Denied("kms.release.key", "the key has just changed")
            if not nonces.spend(entry.connection, nonce, key_id, entry.now):
                raise spent()
            lease = _lease(entry, request, host, asking)
            trail.facts["lease"] = lease.id
            if result is not None:
                facts = Facts(
                    policy,
                    _as_released(request, lease),
                    host,
                    result,
                    frozenset(manifests),
                    entry.now,
                )
                for name in policy.all_checks:
                    if name != "purpose":
                        check(name, facts, parts)
            _act(entry, request, lease, policy, trail)
            number = trail.write(
                entry, f"{EVENT}.{_DONE[request.purpose]}", routine=True
            )
    except MHError as exc:
        raise refuse(parts.ledger, trail, exc) from exc
    # 9
    return parts.transport.sign(
        LeaseGrant(digest, nonce, policy.lease, parts.now(), number)
    )


_DONE = {
    RENEW: "renewed",
    HANDOVER: "handover",
    LEFT: "left",
    ERASED: "erased",
}


def _lease(
    entry: Transaction, request: LeaseRequest, host: VerifiedHost, asking: bool
) -> Lease:
    """The lease a request is about (step 6)."""
    connection = entry.connection
    for over in leases.settle(
        connection, request.key_id, request.instance, entry.now
    ):
        entry.record(
            f"{EVENT}.moved",
            request.key_id,
            host=over.host,
            lease=over.id,
            claims={"instance": request.instance, "host": over.host},
        )
    lease = leases.find(
        connection, request.key_id, request.instance, request.lease
    )
    if lease is None or lease.ak_name != host.ak.name.hex():
        raise Denied(
            "kms.release.lease-unknown", "this host was given no such lease"
        )
    if not asking or lease.held:
        return lease
    if lease.why == leases.REPLACED:
        # the answer of that release may have been lost: the host asks by
        # the lease it knows
        for later in leases.of_instance(
            connection, request.key_id, request.instance
        ):
            if later.held and later.ak_name == lease.ak_name:
                return later
    cause = _ENDED.get(lease.why, "lease-ended")
    raise Denied(f"kms.release.{cause}", f"the lease has ended: {lease.why}")


def _as_released(request: LeaseRequest, lease: Lease) -> KeyRequest:
    """The request that the lease began with, as far as policies see it."""
    return KeyRequest(
        key_id=request.key_id,
        kms_origin=request.kms_origin,
        purpose=lease.purpose,
        instance=request.instance,
        project=lease.project,
        user="",
        host=request.host,
        image=lease.image,
        manifest_digest=lease.manifest,
        disks=(),
    )


def _act(
    entry: Transaction,
    request: LeaseRequest,
    lease: Lease,
    policy: ReleasePolicy,
    trail: Trail,
) -> None:
    connection, now = entry.connection, entry.now
    if request.purpose == RENEW:
        leases.renew(connection, lease, policy.lease, now)
        trail.facts["seconds"] = policy.lease
    elif request.purpose == HANDOVER and request.to:
        if "migrate-in" not in policy.purposes:
            raise Denied(
                "kms.release.purpose",
                "the policy does not allow 'migrate-in'",
            )
        trail.facts["to"] = request.to
        leases.name_handover(
            connection, lease, request.to, now + leases.HANDOVER
        )
    elif request.purpose == HANDOVER:
        leases.name_handover(connection, lease, "", 0)
        for other in leases.of_instance(
            connection, lease.key_id, lease.instance
        ):
            if other.held and other.parent == lease.id:
                leases.end(connection, other, leases.CANCELLED, now)
    elif request.purpose in (LEFT, ERASED):
        trail.facts["held"] = lease.held
        leases.end(connection, lease, leases.LEFT, now)
        if request.purpose == ERASED:
            leases.erased(connection, lease, now)
    else:
        raise Denied("kms.release.purpose", "no such request")
