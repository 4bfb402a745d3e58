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
"""May this guest's memory go to that host?  The authority's part of it.

The source's agent decides (``mh_nova.agent.migrate``); what it cannot know
by itself is how the destination is now and which TLS key it holds.
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives import hashes

from mh_attest import migration_ca
from mh_attest import nonce as nonce_module
from mh_attest.db import hosts, vm_reports
from mh_attest.errors import audit_of
from mh_attest.evidence.base import Question
from mh_attest.service import Origin, Service, require
from mh_attest.verifier import Appraisal
from mh_core import jose
from mh_core.encoding import b64u
from mh_core.errors import Denied, InputError, MHError, VerificationError
from mh_core.fields import Fields
from mh_core.migration import MigrationRequest, MigrationResult, public_key
from mh_core.tpm.public import Public
from mh_core.tpm.quote import LABEL_MIGRATION

EVENT = "attest.migration"
STEP_NONCE = EVENT + ".nonce"
STEP_SOURCE = EVENT + ".source"
STEP_DESTINATION = EVENT + ".destination"
STEP_KEY = EVENT + ".key"
GRANTED = EVENT + ".granted"
#: Nonce purposes.
PURPOSE = "migration"
KEY_PURPOSE = migration_ca.PURPOSE


@dataclass(frozen=True)
class Ask:
    """Body of ``POST /v1/migrations``."""

    nonce: bytes
    request: MigrationRequest
    evidence: dict[str, Any]

    @classmethod
    def parse(cls, value: Any) -> "Ask":
        """:raises InputError: ``attest.migration.body``."""
        fields = Fields(value, EVENT + ".body")
        ask = cls(
            nonce=fields.b64u("nonce", 32),
            request=MigrationRequest.parse(fields.object("request")),
            evidence=fields.object("evidence"),
        )
        fields.end()
        return ask


def vouch(
    service: Service, ask: Ask, origin: Origin
) -> tuple[dict[str, Any], str]:
    """``{"result"}`` about a destination, and the id of the record.

    1. the nonce was given out here, for this, within its life;
    2. the source passes the appraisal, its quote covering this request,
       and is the host that the request names; the nonce is spent;
    3. the destination is another host that is enrolled;
    4. its trust agent quotes, now, over a nonce of this server's own and
       the migration key it holds, and passes the appraisal;
    5. the record, and the result with that key in it.

    :raises Denied: ``attest.migration.*``, ``attest.appraise.*``.
    :raises MHError: ``attest.listener.*``: the destination does not answer.
    """
    request = ask.request
    facts: dict[str, Any] = {
        "purpose": PURPOSE,
        "instance": request.instance,
        "source": request.source,
        "destination": request.destination,
        "nonce": b64u(ask.nonce),
    }
    # 1: who shows no AK we know leaves no record
    expires = nonce_module.check(
        service.authority.nonce_key,
        PURPOSE,
        ask.nonce,
        service.now(),
        STEP_NONCE,
    )
    # 2
    _source(service, ask, expires, origin, facts)
    try:
        # 3
        host = _destination(service, request)
        # 4
        appraisal, jwk = _quoted(service, host, origin, facts)
    except MHError as exc:
        if audit_of(exc):
            # the destination's own appraisal is on record
            raise
        raise service.refuse(exc, EVENT, origin, facts) from exc
    # 5
    now = service.now()
    result = MigrationResult(
        issuer=service.authority.issuer,
        audience=request.source,
        issued_at=now,
        expires_at=now + service.conf.authority.result_life,
        challenge=request.challenge,
        instance=request.instance,
        host=host.name,
        host_id=host.id,
        level=appraisal.level,
        tls_jwk=jwk,
        ca_sha256=service.authority.migration_ca.fingerprint(hashes.SHA256()),
    ).sign(service.authority.result_key)
    audit = service.journal.write(
        {
            "event": GRANTED,
            "decision": EVENT,
            "level": appraisal.level,
            "key": jose.thumbprint(jwk),
            **origin.record(),
            **facts,
        }
    )
    return {"result": result}, audit


def _source(
    service: Service,
    ask: Ask,
    expires: int,
    origin: Origin,
    facts: dict[str, Any],
) -> None:
    """Step 2."""
    evidence = service.driver.parse(ask.evidence)
    digest = ask.request.digest()

    def claims(_bind: Public) -> bytes:
        return digest

    appraisal = service.appraise(
        evidence, Question(LABEL_MIGRATION, ask.nonce, claims)
    )
    asked_at = expires - nonce_module.LIFE
    if not appraisal.verdict.allowed or appraisal.host is None:
        audit = ""
        if appraisal.host is not None:
            audit = service.keep(appraisal, origin, facts, asked_at)
        require(appraisal, audit)
        raise Denied(EVENT + ".internal", "no verdict")
    if appraisal.host.name != ask.request.source:
        raise service.refuse(
            Denied(STEP_SOURCE, "the request names another source"),
            EVENT,
            origin,
            {**facts, "host": appraisal.host.name},
        )

    def spend(connection: sa.Connection) -> None:
        vm_reports.spend(
            connection, b64u(ask.nonce), service.now(), expires, STEP_NONCE
        )

    try:
        service.keep(appraisal, origin, facts, asked_at, spend)
    except Denied as exc:
        raise service.refuse(exc, EVENT, origin, facts) from exc


def _destination(service: Service, request: MigrationRequest) -> hosts.Host:
    """Step 3."""
    if request.destination == request.source:
        raise Denied(STEP_DESTINATION, "a guest is where it is already")
    with service.reading() as connection:
        host = hosts.by_name(connection, request.destination)
    if host is None:
        raise Denied(STEP_DESTINATION, "the destination is not enrolled")
    return host


def _quoted(
    service: Service,
    host: hosts.Host,
    origin: Origin,
    facts: dict[str, Any],
) -> tuple[Appraisal, jose.Jwk]:
    """Step 4: asked of the host itself, whatever is remembered of it."""
    agent = service.listener(
        host.listener, host.listener_sha256, service.conf.trust.timeout
    )
    nonce = service.random(32)
    asked_at = service.now()
    key, sent = agent.migration_quote(nonce)
    try:
        jwk = public_key(key)
        evidence = service.driver.parse(sent)
    except InputError as exc:
        raise VerificationError(
            STEP_KEY, f"{exc.message} [{exc.event}]"
        ) from exc
    appraisal = service.appraise(
        evidence, migration_ca.key_question(nonce, host.name, jwk)
    )
    if appraisal.host is None or appraisal.host.id != host.id:
        raise Denied(STEP_KEY, "the listener answers for another host")
    audit = service.keep(appraisal, origin, facts, asked_at)
    require(appraisal, audit)
    if appraisal.level not in service.conf.migration.levels:
        raise Denied(
            migration_ca.STEP_LEVEL, f"level {appraisal.level} is not enough"
        )
    return appraisal, jwk
