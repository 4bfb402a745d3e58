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

"""What a host proves: the steps that every question of a host goes through.

Their ids are those of a release, whatever was asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from mh_core.errors import Denied, MHError, Unavailable, VerificationError
from mh_core.evidence import (
    Evidence,
    VerifiedHost,
    release_claims,
    verify_host,
)
from mh_core.result import AttestationResult
from mh_core.tpm.public import Public
from mh_core.tpm.quote import LABEL_RELEASE, extra_data
from mh_kms.attestors.base import Question
from mh_kms.parts import Parts
from mh_kms.release_policy import ReleasePolicy


@contextmanager
def step(event: str, kind: type[MHError] = Denied) -> Iterator[None]:
    """Whatever a step's checks say, the step refuses by its own id.

    That something does not answer stays :class:`Unavailable`.
    """
    try:
        yield
    except Unavailable as exc:
        raise Unavailable(event, exc.message) from exc
    except MHError as exc:
        raise kind(event, exc.message) from exc


def verified(
    evidence: Evidence,
    policy: ReleasePolicy,
    nonce: bytes,
    digest: bytes,
    parts: Parts,
    label: str = LABEL_RELEASE,
) -> VerifiedHost:
    """The quote must cover nonce, request and bind key (step 4)."""
    bind = Public.parse(evidence.bind_public)
    extra = extra_data(label, nonce, release_claims(digest, bind))
    return verify_host(
        evidence,
        extra=extra,
        enrollers=policy.enrollers,
        now=datetime.fromtimestamp(parts.now(), UTC),
    )


def attested(
    policy: ReleasePolicy,
    question: Question,
    host: VerifiedHost,
    parts: Parts,
) -> AttestationResult:
    """The word of one of the policy's authorities (step 5)."""
    return with_token(policy, question, host, parts)[0]


def with_token(
    policy: ReleasePolicy,
    question: Question,
    host: VerifiedHost,
    parts: Parts,
) -> tuple[AttestationResult, str]:
    """The same, with the token to keep."""
    refusal: MHError | None = None
    silence: Unavailable | None = None
    for authority in policy.authorities:
        try:
            token = parts.attestor.appraise(authority, question)
            result = AttestationResult.verify(
                token,
                authority.jwk,
                issuer=authority.issuer,
                audience=question.audience,
                nonce=question.nonce,
                request_digest=question.request_digest,
                bind_jwk=host.bind.jwk(),
                now=parts.now(),
            )
        except Unavailable as exc:
            silence = exc
            continue
        except MHError as exc:
            refusal = exc
            continue
        if (result.host, result.host_id) == (
            host.identity.host,
            host.identity.host_id,
        ):
            return result, token
        refusal = VerificationError(
            "kms.release.result-host", "the result is about another host"
        )
    # A "no" says more than the silence of another authority.
    if refusal is None and silence is not None:
        raise Unavailable(
            "kms.release.authority", silence.message
        ) from silence
    raise Denied(
        "kms.release.attestation",
        refusal.message if refusal else "the policy names no authority",
    ) from refusal
