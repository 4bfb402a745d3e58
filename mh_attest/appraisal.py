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
"""Appraisals for relying parties, and the result they get."""

from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from mh_attest.db import hosts
from mh_attest.enrolment import spki_digest
from mh_attest.evidence.base import Question
from mh_attest.service import Origin, Service, require
from mh_attest.verifier import Appraisal
from mh_core import jose
from mh_core.encoding import b64u
from mh_core.errors import Denied, InputError, MHError
from mh_core.evidence import release_claims
from mh_core.fields import Fields
from mh_core.request import KeyRequest
from mh_core.result import AttestationResult
from mh_core.tpm.public import Public
from mh_core.tpm.quote import LABEL_RELEASE, LABEL_SNAPSHOT

EVENT = "attest.appraise"
COMPAT = "attest.compat"
#: What a relying party may have appraised, and the label of its quote.
LABELS = {"release": LABEL_RELEASE, "snapshot": LABEL_SNAPSHOT}


@dataclass(frozen=True)
class AppraisalRequest:
    """Body of ``POST /v1/appraisals``.

    :param purpose: one of :data:`LABELS`.
    """

    nonce: bytes
    audience: str
    request_digest: bytes
    evidence: dict[str, Any]
    purpose: str = "release"

    @classmethod
    def parse(cls, value: Any) -> "AppraisalRequest":
        """:raises InputError: ``attest.appraise.body``."""
        fields = Fields(value, EVENT + ".body")
        request = cls(
            nonce=fields.b64u("nonce", 32),
            audience=fields.text("audience", minimum=1),
            request_digest=fields.hex("request_digest", 32),
            evidence=fields.object("evidence"),
            purpose=fields.choice("purpose", tuple(LABELS), "release"),
        )
        fields.end()
        return request


@dataclass(frozen=True)
class CompatRequest:
    """Body of ``POST /v1/compat/appraisals``."""

    nonce: bytes
    audience: str
    key_url: str
    ak_pem: str

    @classmethod
    def parse(cls, value: Any) -> "CompatRequest":
        """:raises InputError: ``attest.compat.body``."""
        fields = Fields(value, COMPAT + ".body")
        request = cls(
            nonce=fields.b64u("nonce", 32),
            audience=fields.text("audience", minimum=1),
            key_url=fields.text("key_url", minimum=1, maximum=2048),
            ak_pem=fields.text("ak_pem", minimum=1, maximum=4096),
        )
        fields.end()
        return request


def release_question(
    nonce: bytes, request_digest: bytes, label: str = LABEL_RELEASE
) -> Question:
    def claims(bind: Public) -> bytes:
        return release_claims(request_digest, bind)

    return Question(label, nonce, claims)


def appraise(
    service: Service, request: AppraisalRequest, origin: Origin
) -> tuple[dict[str, Any], str]:
    """``{"result"}`` for one key request, and the id of the record.

    The nonce is the relying party's, so the answer says nothing about the
    host's state in general: that is not touched.

    :raises InputError: ``core.evidence``.
    :raises Denied: ``attest.appraise.*``.
    """
    evidence = service.driver.parse(request.evidence)
    appraisal = service.appraise(
        evidence,
        release_question(
            request.nonce, request.request_digest, LABELS[request.purpose]
        ),
    )
    audit = service.keep(
        appraisal,
        origin,
        {
            "purpose": request.purpose,
            "audience": request.audience,
            "nonce": b64u(request.nonce),
            "request_digest": request.request_digest.hex(),
        },
    )
    require(appraisal, audit)
    result = sign(
        service,
        appraisal,
        request.nonce,
        request.audience,
        request.request_digest,
    )
    return {"result": result}, audit


def sign(
    service: Service,
    appraisal: Appraisal,
    nonce: bytes,
    audience: str,
    request_digest: bytes,
) -> str:
    """The authority's word about a host that passed; an EAT as JWT."""
    host, proof = appraisal.host, appraisal.proof
    if not appraisal.verdict.allowed or host is None or proof is None:
        raise Denied(appraisal.event, "only a host that passed gets a result")
    now = service.now()
    return AttestationResult(
        issuer=service.authority.issuer,
        audience=audience,
        issued_at=now,
        expires_at=now + service.conf.authority.result_life,
        nonce=nonce,
        request_digest=request_digest,
        host=host.name,
        host_id=host.id,
        level=appraisal.level,
        bind_jwk=jose.public(proof.bind.jwk()),
        tags=appraisal.tags,
    ).sign(service.authority.result_key)


def appraise_compat(
    service: Service, request: CompatRequest, origin: Origin
) -> tuple[dict[str, Any], str]:
    """``{"result", "request", "evidence"}`` for a bare AK, and the record.

    1. the AK is that of an enrolled host;
    2. its trust agent has a launch pending for the key URL, and quotes it;
    3. the host passes the appraisal, for that request, and is that host.

    :raises NotFound: ``agent.compat.nothing-pending``.
    :raises Denied: ``attest.appraise.*``.
    """
    facts = {"purpose": "compat", "key_url": request.key_url}
    try:
        # 1
        host = _host_of(service, request.ak_pem)
        # 2
        agent = service.listener(
            host.listener, host.listener_sha256, service.conf.trust.timeout
        )
        sent, evidence = agent.pending_release(request.nonce, request.key_url)
        try:
            pending = KeyRequest.parse(sent)
            parsed = service.driver.parse(evidence)
        except InputError as exc:
            raise Denied(
                COMPAT + ".reply", f"{exc.message} [{exc.event}]"
            ) from exc
    except MHError as exc:
        raise service.refuse(exc, COMPAT, origin, facts) from exc
    # 3
    digest = pending.digest()
    appraisal = service.appraise(
        parsed, release_question(request.nonce, digest)
    )
    audit = service.keep(
        appraisal,
        origin,
        {
            **facts,
            "audience": request.audience,
            "nonce": b64u(request.nonce),
            "request_digest": digest.hex(),
        },
    )
    require(appraisal, audit)
    if appraisal.host is None or appraisal.host.id != host.id:
        raise Denied(EVENT + ".host", "the evidence is of another host")
    result = sign(service, appraisal, request.nonce, request.audience, digest)
    return {
        "result": result,
        "request": pending.to_dict(),
        "evidence": evidence,
    }, audit


def _host_of(service: Service, ak_pem: str) -> hosts.Host:
    try:
        digest = spki_digest(load_pem_public_key(ak_pem.encode()))
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise InputError(COMPAT + ".ak", "not a public key in PEM") from exc
    with service.reading() as connection:
        host = hosts.by_ak_spki(connection, digest)
    if host is None:
        raise Denied(EVENT + ".host", "no host is enrolled with this AK")
    return host
