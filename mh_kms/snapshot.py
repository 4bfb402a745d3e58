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

"""The one way for a key from a host: the new key of a snapshot."""

import hmac
from dataclasses import dataclass, replace
from typing import Any

from mh_core import jose
from mh_core import manifest as manifests
from mh_core.encoding import b64u, canonical_json, parse_json
from mh_core.errors import Conflict, Denied, MHError, NotFound
from mh_core.evidence import Evidence, VerifiedHost
from mh_core.launch_policy import LaunchPolicy
from mh_core.manifest import Manifest
from mh_core.request import KeyRequest
from mh_core.secret import Secret
from mh_core.snapshot import SnapshotClaims, jwe_digest, key_apv
from mh_core.tpm.quote import LABEL_SNAPSHOT
from mh_kms.attestors.base import Question
from mh_kms.db import keys, nonces, snapshots, tickets
from mh_kms.db.keys import Key
from mh_kms.key_stores.base import DEK, OVERLAY_ROOT
from mh_kms.ledger import Transaction
from mh_kms.parts import Parts
from mh_kms.policy_checks.base import Facts
from mh_kms.proof import step, verified, with_token
from mh_kms.release import Trail, check, recorded, refuse
from mh_kms.release_policy import ReleasePolicy

EVENT = "kms.snapshot"
REGISTERED = EVENT + ".registered"


@dataclass(frozen=True)
class Upload:
    """What a host brings, as sent.

    :param nonce: 32 bytes, of a challenge of the source key.
    :param manifest: compact JWS of the new image.
    :param jwe: the new key, to this server's transport key.
    """

    nonce: bytes
    claims: SnapshotClaims
    manifest: str
    jwe: str
    evidence: Evidence


def register(
    key_id: str, upload: Upload, *, parts: Parts, request_id: str
) -> str:
    """Decide whether a host's new key becomes a key of the source's owner.

    The steps are those of the protocol page. Every one must pass; the
    decision, either way, is on the disk before this function ends.

    1. the source key exists;
    2. the nonce is known, for this key, unspent and in time;
    3. the claims are for this key and this server;
    4. the evidence is verified, and the certified host is the claims';
    5. an authority's result is for exactly this nonce, digest and bind key;
    6. the source key's release policy, as it is now;
    7. a release for ``snapshot`` preceded: to this AK, of this instance and
       image, in time, and no other key followed it;
    8. the manifest is the one claimed, of this image and key, signed by the
       claimed key, and its launch policy is the source's own;
    9. the wrapped key is the one claimed, for this release, of 32 bytes;
    10. the audit record, with key, manifest, policy and the instance's
        record.

    The policy is the source's; of the keys that may sign manifests, that of
    this snapshot takes the place of an earlier one's.

    :param key_id: of the source.
    :returns: the new key's id.
    :raises Refused: with the step's event id; it is recorded.
    :raises Unavailable: ``kms.release.audit``: it is not.
    """
    claims = upload.claims
    trail = Trail(key_id, request_id, upload.nonce)
    trail.facts |= {"snapshot": claims.to_dict()}
    try:
        # 1
        with step(EVENT + ".key", NotFound):
            source = keys.get(parts.database, key_id)
            policy = source.policy
            known = keys.manifests(parts.database, key_id)
        trail.facts["project"] = source.project
        # 2
        with step(EVENT + ".nonce"):
            fresh = nonces.known(
                parts.database, upload.nonce, key_id, parts.now()
            )
        if not fresh:
            raise _spent()
        # 3
        if (
            claims.source_key_id != key_id
            or claims.kms_origin not in parts.origins
        ):
            raise Denied(
                EVENT + ".origin", "made for another key or key server"
            )
        # 4
        digest = claims.digest()
        with step(EVENT + ".evidence"):
            host = verified(
                upload.evidence,
                policy,
                upload.nonce,
                digest,
                parts,
                LABEL_SNAPSHOT,
            )
        trail.host(host)
        if host.identity.host != claims.host:
            raise Denied(EVENT + ".host", "the claims name another host")
        # 5
        question = Question(
            upload.nonce, parts.origin, digest, upload.evidence, "snapshot"
        )
        with step(EVENT + ".attestation"):
            result, token = with_token(policy, question, host, parts)
        trail.result(result)
        # 6
        facts = Facts(
            policy,
            _request(claims),
            host,
            result,
            frozenset(known),
            parts.now(),
        )
        with step(EVENT + ".policy"):
            for name in policy.all_checks:
                check(name, facts, parts)
        # 8, 9
        manifest = _manifest(upload, known[claims.source_manifest])
        dek = _key(upload, parts)
        made = _new_key(source, upload, dek, parts)
        document = {
            "claims": claims.to_dict(),
            "nonce": b64u(upload.nonce),
            # the log is long, and judged already
            "evidence": replace(upload.evidence, event_log=b"").to_dict(),
            "result": token,
            "manifest": upload.manifest,
        }
        # 7, 10
        with recorded(parts.ledger) as entry:
            if not keys.unchanged(entry.connection, source):
                raise Denied(EVENT + ".key", "the key has just changed")
            if not nonces.spend(
                entry.connection, upload.nonce, key_id, entry.now
            ):
                raise _spent()
            if _follows(entry, claims, digest.hex(), host):
                _insert(entry, made, claims, upload, manifest, host)
                snapshots.add(
                    entry.connection, made.id, key_id, document, entry.now
                )
                entry.record(
                    "kms.key.created",
                    made.id,
                    project=made.project,
                    policy=parse_json(made.policy_text.encode()),
                    request_id=request_id,
                    snapshot=claims.to_dict(),
                    host=host.identity.host,
                    ak_name=host.ak.name.hex(),
                )
            trail.write(entry, REGISTERED)
    except MHError as exc:
        raise refuse(parts.ledger, trail, exc) from exc
    return made.id


def _spent() -> Denied:
    return Denied(EVENT + ".nonce", "the nonce is unknown, spent or too old")


def _request(claims: SnapshotClaims) -> KeyRequest:
    """The claims in the form that the policy's checks look at."""
    return KeyRequest(
        key_id=claims.source_key_id,
        kms_origin=claims.kms_origin,
        purpose="snapshot",
        instance=claims.instance,
        project=claims.project,
        user="",
        host=claims.host,
        image=claims.source_image,
        manifest_digest=claims.source_manifest,
        disks=(),
    )


def _follows(
    entry: Transaction, claims: SnapshotClaims, digest: str, host: VerifiedHost
) -> bool:
    """Step 7; false where these very claims are registered already.

    :raises Denied: ``kms.snapshot.release``.
    """
    grant = snapshots.granted(entry.connection, claims.release, entry.now)
    if grant is None or (
        grant.key_id,
        grant.instance,
        grant.project,
        grant.image,
        grant.manifest,
        grant.ak_name,
    ) != (
        claims.source_key_id,
        claims.instance,
        claims.project,
        claims.source_image,
        claims.source_manifest,
        host.ak.name.hex(),
    ):
        raise Denied(
            EVENT + ".release", "no release to this host preceded the snapshot"
        )
    # a host that lost the answer asks again
    if hmac.compare_digest(grant.used_by, digest):
        return False
    if not snapshots.use(entry.connection, claims.release, digest):
        raise Denied(
            EVENT + ".release", "another key has followed this release"
        )
    return True


def _manifest(upload: Upload, source: LaunchPolicy) -> Manifest:
    """Step 8.

    :raises Denied: ``kms.snapshot.manifest``.
    """
    claims = upload.claims
    with step(EVENT + ".manifest"):
        manifest = Manifest.verify(upload.manifest, [claims.signer])
        digest = manifests.digest(upload.manifest)
    if (
        not hmac.compare_digest(digest, claims.manifest_digest)
        or manifest.image != claims.image
        or manifest.key_id != claims.key_id
        or manifest.launch_policy != source
    ):
        raise Denied(
            EVENT + ".manifest",
            "the manifest is not the one claimed, or allows more than the "
            "source's",
        )
    return manifest


def _key(upload: Upload, parts: Parts) -> Secret:
    """Step 9.

    :raises Denied: ``kms.snapshot.wrapped-key``.
    """
    claims = upload.claims
    if not hmac.compare_digest(jwe_digest(upload.jwe), claims.jwe_digest):
        raise Denied(
            EVENT + ".wrapped-key", "the wrapped key is not the one claimed"
        )
    with step(EVENT + ".wrapped-key"):
        dek = parts.transport.unwrap(
            upload.jwe, key_apv(claims.key_id, claims.release)
        )
    if len(dek.reveal()) != 32:
        raise Denied(EVENT + ".wrapped-key", "a key of 32 bytes is expected")
    return dek


def _new_key(source: Key, upload: Upload, dek: Secret, parts: Parts) -> Key:
    claims = upload.claims
    return Key(
        id=claims.key_id,
        name=f"{source.name[:180]} snapshot {claims.image}",
        project=source.project,
        created_at=parts.now(),
        deleted_at=None,
        revision=1,
        policy_text=_policy(source, claims, parts),
        dek=parts.key_store.seal(claims.key_id, DEK, dek),
        overlay_root=parts.key_store.seal(
            claims.key_id, OVERLAY_ROOT, Secret(parts.random(32))
        ),
    )


def _policy(source: Key, claims: SnapshotClaims, parts: Parts) -> str:
    """The source's document; who may sign manifests is the owner, and the
    host's key of this one snapshot.

    :raises MHError: ``kms.policy``.
    """
    policy: dict[str, Any] = parse_json(source.policy_text.encode())
    before = snapshots.find(parts.database, source.id)
    earlier = None
    if before is not None:
        earlier = jose.thumbprint(before["claims"]["signer"])
    signers = [
        key
        for key in policy.get("manifest_keys", [])
        if jose.thumbprint(key) != earlier
    ]
    policy["manifest_keys"] = [*signers, jose.public(claims.signer)]
    ReleasePolicy.parse(policy)
    return canonical_json(policy).decode()


def _insert(
    entry: Transaction,
    made: Key,
    claims: SnapshotClaims,
    upload: Upload,
    manifest: Manifest,
    host: VerifiedHost,
) -> None:
    """Key, manifest, and the right of the instance it was taken of to be
    started from it: an unshelved server brings no new ticket.

    :raises Conflict: ``kms.snapshot.conflict``.
    """
    if not keys.free(entry.connection, made.id):
        raise Conflict(EVENT + ".conflict", "there is a key of this id")
    keys.insert(entry.connection, made)
    keys.add_manifest(
        entry.connection,
        made,
        claims.manifest_digest,
        upload.manifest,
        manifest.launch_policy,
        entry.now,
    )
    tickets.carry(
        entry.connection,
        made.id,
        claims.instance,
        claims.manifest_digest,
        entry.now,
    )
    tickets.released(
        entry.connection,
        made.id,
        claims.instance,
        claims.project,
        host.identity.host,
        host.ak.name.hex(),
    )
