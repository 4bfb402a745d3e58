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

"""The seed's form of a release: the request is just the AK's public key."""

from dataclasses import replace

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from mh_core.errors import (
    Denied,
    InputError,
    MHError,
    NotFound,
    Unavailable,
)
from mh_core.tpm.public import Public
from mh_kms.attestors.base import Pending
from mh_kms.attestors.presented import PresentedResult
from mh_kms.db import keys, nonces
from mh_kms.parts import Parts
from mh_kms.proof import step
from mh_kms.release import Trail, refuse, release_key
from mh_kms.release_policy import Authority, ReleasePolicy

#: Longest body, bytes.
MAX_PEM = 4096
_BAD = "kms.compat.body"


def canonical_pem(body: bytes) -> str:
    """The key alone, in one spelling.

    :raises InputError: ``kms.compat.body``.
    """
    if len(body) > MAX_PEM or body.count(b"-----BEGIN") != 1:
        raise InputError(_BAD, "one public key in PEM is expected")
    try:
        key = load_pem_public_key(body)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise InputError(_BAD, "not a public key in PEM") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise InputError(_BAD, "an EC or RSA key is expected")
    return key.public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    ).decode()


def release_to_ak(
    key_id: str,
    ak_pem: str,
    key_url: str,
    *,
    parts: Parts,
    request_id: str,
) -> str:
    """Find out what the AK's host wants, and decide as for any release.

    1. the key exists, and its policy allows this form;
    2. a nonce is made, and an authority fetches the request and evidence
       that the host's agent gives for its pending launch;
    3. the AK in the evidence is the one that was posted;
    4. :func:`mh_kms.release.release_key`.

    :param ak_pem: from :func:`canonical_pem`.
    :param key_url: URL at which the key was asked for.
    :raises Refused, Unavailable: as ``release_key``.
    """
    trail = Trail(key_id, request_id, b"", {"form": "compat"})
    try:
        # 1
        with step("kms.release.key", NotFound):
            key = keys.get(parts.database, key_id)
            policy = key.policy
        trail.facts["project"] = key.project
        if not policy.compat:
            raise Denied(
                "kms.release.compat", "the key does not allow this form"
            )
        # 2
        nonce = parts.random(32)
        nonces.add(parts.database, nonce, key_id, parts.now())
        trail.nonce = nonce
        authority, pending = _fetch(policy, nonce, key_url, ak_pem, parts)
        # 3
        with step("kms.release.evidence"):
            ak = Public.parse(pending.evidence.ak_public)
        if canonical_pem(ak.pem().encode()) != ak_pem:
            raise Denied("kms.release.compat", "evidence of another AK")
    except MHError as exc:
        raise refuse(parts.ledger, trail, exc) from exc
    # 4
    return release_key(
        key_id,
        nonce,
        pending.request,
        pending.evidence,
        parts=replace(
            parts, attestor=PresentedResult(authority, pending.result)
        ),
        request_id=request_id,
    )


def _fetch(
    policy: ReleasePolicy,
    nonce: bytes,
    key_url: str,
    ak_pem: str,
    parts: Parts,
) -> tuple[Authority, Pending]:
    refusal: MHError | None = None
    silence: Unavailable | None = None
    for authority in policy.authorities:
        try:
            return authority, parts.attestor.fetch(
                authority, nonce, parts.origin, key_url, ak_pem
            )
        except Unavailable as exc:
            silence = exc
        except MHError as exc:
            refusal = exc
    if refusal is None and silence is not None:
        raise Unavailable(
            "kms.release.authority", silence.message
        ) from silence
    raise Denied(
        "kms.release.attestation",
        refusal.message if refusal else "the policy names no authority",
    ) from refusal
