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

"""The one way for a key to a host."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mh_core import jose, volume
from mh_core.errors import (
    Denied,
    MHError,
    NotFound,
    Unavailable,
)
from mh_core.evidence import (
    Evidence,
    VerifiedHost,
)
from mh_core.image.overlay import overlay_key
from mh_core.payload import ReleasePayload
from mh_core.request import KeyRequest
from mh_core.result import AttestationResult
from mh_core.secret import Secret
from mh_kms.attestors.base import Question
from mh_kms.db import keys, leases, nonces, snapshots, tickets
from mh_kms.errors import Refused, detail
from mh_kms.key_stores.base import DEK, OVERLAY_ROOT
from mh_kms.ledger import Ledger, Transaction
from mh_kms.parts import Parts
from mh_kms.policy_checks.base import Facts
from mh_kms.proof import attested, step, verified
from mh_kms.release_policy import ReleasePolicy

GRANTED = "kms.release.granted"


@dataclass
class Trail:
    """What the audit record of a release will say; it grows by the steps.

    ``claims`` are the cloud's words, signed for by the host's TPM but true
    only as far as nova is; ``host``, ``host_id``, ``ak_name`` are this
    server's own findings, ``level`` and ``issuer`` the authority's.
    """

    key_id: str
    request_id: str
    nonce: bytes = field(repr=False)
    facts: dict[str, Any] = field(default_factory=dict)

    def request(self, request: KeyRequest) -> None:
        self.facts |= {
            "request_digest": request.digest().hex(),
            "purpose": request.purpose,
            "manifest_digest": request.manifest_digest,
            "disks": [disk.to_dict() for disk in request.disks],
            "claims": {
                "project": request.project,
                "user": request.user,
                "instance": request.instance,
                "host": request.host,
                "image": request.image,
            },
        }

    def host(self, host: VerifiedHost) -> None:
        self.facts |= {
            "host": host.identity.host,
            "host_id": host.identity.host_id,
            "ak_name": host.ak.name.hex(),
            "bind_name": host.bind.name.hex(),
        }

    def result(self, result: AttestationResult) -> None:
        self.facts |= {"level": result.level, "issuer": result.issuer}

    def write(
        self,
        entry: Transaction,
        event: str,
        cause: str = "",
        routine: bool = False,
    ) -> str:
        """:param routine: a host may cause it as often as it likes."""
        write = entry.routine if routine else entry.record
        return write(
            event,
            self.key_id,
            detail=cause,
            request_id=self.request_id,
            **self.facts,
        )


def refuse(ledger: Ledger, trail: Trail, error: MHError) -> MHError:
    """Record a refusal, spend the nonce with it, return what to raise.

    Where that cannot be recorded the answer is still no.
    """
    try:
        with ledger.transaction() as entry:
            if trail.nonce:
                nonces.spend(
                    entry.connection, trail.nonce, trail.key_id, entry.now
                )
            number = trail.write(
                entry, error.event, detail(error), routine=True
            )
    except Unavailable as exc:
        return Unavailable("kms.release.audit", exc.message)
    return Refused(error, number)


def release_key(
    key_id: str,
    nonce: bytes,
    request: KeyRequest,
    evidence: Evidence,
    *,
    parts: Parts,
    request_id: str,
) -> str:
    """Decide whether a key goes to a host, and wrap it if so.

    The steps are those of the protocol page. Every one must pass; the
    decision, either way, is on the disk before this function ends.

    1. the key exists;
    2. the nonce is known, for this key, unspent and in time;
    3. the request is for this key and this server;
    4. the evidence is verified, and the certified host is the request's;
    5. an authority's result is for exactly this nonce, digest and bind key;
    6. the release policy;
    7. the instance is not revoked; a ticket, or its record;
    8. the audit record;
    9. wrap.

    :param nonce: 32 bytes, as the host presents it.
    :param request_id: of the HTTP request, for the record.
    :returns: compact JWE of a ``ReleasePayload`` to the host's bind key.
    :raises Refused: with the step's event id; it is recorded.
    :raises Unavailable: ``kms.release.audit``: it is not.
    """
    trail = Trail(key_id, request_id, nonce)
    trail.request(request)
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
        question = Question(nonce, parts.origin, digest, evidence)
        result = attested(policy, question, host, parts)
        trail.result(result)
        # 6
        facts = Facts(
            policy, request, host, result, frozenset(manifests), parts.now()
        )
        for name in policy.all_checks:
            check(name, facts, parts)
        launch_policy = manifests[request.manifest_digest]
        if request.purpose == "snapshot" and not launch_policy.snapshots:
            raise Denied(
                "kms.release.snapshots",
                "the image's launch policy does not allow snapshots",
            )
        # 7, 8
        with recorded(parts.ledger) as entry:
            if not keys.unchanged(entry.connection, key):
                raise Denied("kms.release.key", "the key has just changed")
            if not nonces.spend(entry.connection, nonce, key_id, entry.now):
                raise spent()
            _ticket(entry, policy, request, host, trail)
            number = trail.write(entry, GRANTED)
            _hold(entry, policy, request, host, number)
            if request.purpose == "snapshot":
                snapshots.grant(
                    entry.connection,
                    number,
                    request,
                    host.ak.name.hex(),
                    entry.now,
                )
    except MHError as exc:
        raise refuse(parts.ledger, trail, exc) from exc
    # 9
    dek = parts.key_store.open(key.id, DEK, key.sealed_dek())
    root = parts.key_store.open(key.id, OVERLAY_ROOT, key.sealed_root())
    payload = ReleasePayload(
        purpose=request.purpose,
        key_id=key.id,
        dek=dek,
        overlay_keys=_overlay_keys(root, request),
        manifest_keys=policy.manifest_keys,
        manifest_digests=tuple(manifests),
        kms_origin=parts.origin,
        transport_jwk=parts.transport.public,
        lease=policy.lease,
        request_digest=digest,
        issued_at=parts.now(),
        audit=number,
        launch_policy=launch_policy,
        signing_jwk=parts.transport.signing,
    )
    return jose.wrap(payload.to_bytes(), host.bind.jwk(), digest)


def spent() -> Denied:
    return Denied(
        "kms.release.nonce", "the nonce is unknown, spent or too old"
    )


def check(name: str, facts: Facts, parts: Parts) -> None:
    """One condition of the policy (step 6); a missing check denies."""
    found = parts.checks.get(name)
    if found is None:
        raise Denied(
            "kms.release.check", f"the check {name!r} is not loaded here"
        )
    found.check(facts)


def _ticket(
    entry: Transaction,
    policy: ReleasePolicy,
    request: KeyRequest,
    host: VerifiedHost,
    trail: Trail,
) -> None:
    """What entitles the instance to the key (step 7), for the record.

    That another host had its keys before is said there as well: nothing
    that a host proves ties it to an instance, so a move is the owner's to
    judge.
    """
    if leases.revoked(entry.connection, request.key_id, request.instance):
        raise Denied("kms.release.revoked", "the owner revoked the instance")
    if policy.tickets == "none":
        trail.facts["ticket"] = "not-required"
        return
    connection, key_id = entry.connection, request.key_id
    name = request.instance
    manifest, ak_name = request.manifest_digest, host.ak.name.hex()
    known = tickets.instance(connection, key_id, name)
    if known is not None and known.ak_name not in ("", ak_name):
        trail.facts["previous_host"] = known.host
    if known is not None and known.entitles(manifest, request.project):
        trail.facts["ticket"] = "instance"
    else:
        with step("kms.release.ticket"):
            hashed = tickets.digest(request.ticket)
        # a rescue's image stands beside the instance's own; any other
        # ticket is of the image that it has from now on
        also = (
            known.manifests
            if known is not None
            and request.purpose == "rescue"
            and known.project in ("", request.project)
            else ()
        )
        if not tickets.spend(
            connection, key_id, hashed, name, manifest, entry.now, also
        ):
            raise Denied(
                "kms.release.ticket",
                "no valid launch ticket, and the instance is not known",
            )
        trail.facts["ticket"] = "spent"
        known = None
    if known is None or known.ak_name != ak_name:
        tickets.released(
            connection,
            key_id,
            name,
            request.project,
            host.identity.host,
            ak_name,
        )


def _hold(
    entry: Transaction,
    policy: ReleasePolicy,
    request: KeyRequest,
    host: VerifiedHost,
    number: str,
) -> None:
    """Begin a lease where a guest is to run, and end those of others.

    An instance has one holder; two only during a live migration that the
    first one named.
    """
    if not request.holds:
        return
    made = leases.Lease(
        id=number,
        key_id=request.key_id,
        instance=request.instance,
        host=host.identity.host,
        ak_name=host.ak.name.hex(),
        project=request.project,
        manifest=request.manifest_digest,
        image=request.image,
        purpose=request.purpose,
        seconds=policy.lease,
        granted_at=entry.now,
        renewed_at=entry.now,
    )
    for other in leases.begin(entry.connection, made, entry.now):
        entry.record(
            "kms.lease.moved",
            request.key_id,
            host=other.host,
            lease=other.id,
            successor=number,
            claims={"instance": request.instance, "host": made.host},
        )


@contextmanager
def recorded(ledger: Ledger) -> Iterator[Transaction]:
    """A transaction whose failure is that of the record (step 8)."""
    try:
        with ledger.transaction() as entry:
            yield entry
    except Unavailable as exc:
        raise Unavailable("kms.release.audit", exc.message) from exc


def _overlay_keys(root: Secret, request: KeyRequest) -> dict[str, Secret]:
    """The key of each disk of the request, and of no other.

    A volume's does not hang on the instance, which it outlives; a request
    has either kind of disk, never both.
    """
    if request.purpose == volume.ATTACH:
        return {
            disk.name: Secret(
                volume.volume_key(root.reveal(), uuid.UUID(disk.luks_uuid))
            )
            for disk in request.disks
        }
    instance = uuid.UUID(request.instance)
    return {
        disk.name: Secret(
            overlay_key(
                root.reveal(), instance, disk.name, uuid.UUID(disk.luks_uuid)
            )
        )
        for disk in request.disks
    }
