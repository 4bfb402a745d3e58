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
"""VM reports: what an AK says about one launched instance."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from mh_attest import nonce as nonce_module
from mh_attest.db import vm_reports
from mh_attest.evidence.base import Question
from mh_attest.service import Origin, Service, require
from mh_core import jose
from mh_core.encoding import b64u, canonical_json
from mh_core.errors import Denied
from mh_core.fields import Fields
from mh_core.tpm.public import Public
from mh_core.tpm.quote import LABEL_VM
from mh_core.vm_report import TYP, VmClaims

EVENT = "attest.vm-report"
STEP_NONCE = EVENT + ".nonce"
STEP_HOST = EVENT + ".host"
PURPOSE = "vm-report"


@dataclass(frozen=True)
class ReportRequest:
    """Body of ``POST /v1/vm-reports``."""

    nonce: bytes
    claims: VmClaims
    evidence: dict[str, Any]

    @classmethod
    def parse(cls, value: Any) -> "ReportRequest":
        """:raises InputError: ``attest.vm-report.body``."""
        fields = Fields(value, EVENT + ".body")
        request = cls(
            nonce=fields.b64u("nonce", 32),
            claims=VmClaims.parse(fields.object("claims")),
            evidence=fields.object("evidence"),
        )
        fields.end()
        return request


def report(
    service: Service, request: ReportRequest, origin: Origin
) -> dict[str, str]:
    """Accept a host's word about an instance: ``{"report", "audit"}``.

    1. the nonce was given out here, for this, within its life;
    2. the host passes the appraisal, its quote covering these claims;
    3. the claims name that host;
    4. the nonce is spent, the report stored, the record written: at once;
    5. sign.

    :raises Denied: ``attest.vm-report.*``, ``attest.appraise.*``.
    """
    service_nonce = b64u(request.nonce)
    facts = {
        "purpose": "vm-report",
        "instance": request.claims.instance,
        "claims": request.claims.digest().hex(),
        "nonce": service_nonce,
    }
    # 1: who shows no AK we know leaves no record; nobody asked who they are,
    # and anybody could fill the log.
    expires = nonce_module.check(
        service.authority.nonce_key,
        PURPOSE,
        request.nonce,
        service.now(),
        STEP_NONCE,
    )
    evidence = service.driver.parse(request.evidence)
    # 2
    digest = request.claims.digest()

    def claims(_bind: Public) -> bytes:
        return digest

    appraisal = service.appraise(
        evidence, Question(LABEL_VM, request.nonce, claims)
    )
    asked_at = expires - nonce_module.LIFE
    if not appraisal.verdict.allowed or appraisal.host is None:
        audit = ""
        if appraisal.host is not None:
            audit = service.keep(appraisal, origin, facts, asked_at)
        require(appraisal, audit)
        raise Denied(EVENT + ".internal", "no verdict")
    # 3
    host = appraisal.host
    if request.claims.host != host.name:
        raise service.refuse(
            Denied(STEP_HOST, "the claims name another host"),
            EVENT,
            origin,
            {**facts, "host": host.name},
        )
    # 5, made before 4 so that what is answered is what is stored
    now = service.now()
    token = jose.sign(
        canonical_json(
            {
                "iss": service.authority.issuer,
                "iat": now,
                "claims": request.claims.to_dict(),
                "host": host.name,
                "level": appraisal.level,
                "nonce": service_nonce,
            }
        ),
        service.authority.result_key,
        TYP,
    )

    # 4
    def store(connection: sa.Connection) -> None:
        vm_reports.spend(connection, service_nonce, now, expires)
        vm_reports.add(
            connection,
            host=host.name,
            nonce=service_nonce,
            report=token,
            claims=request.claims.to_dict(),
            evidence=request.evidence,
            now=now,
            kept=service.conf.database.vm_reports_kept,
        )

    try:
        audit = service.keep(
            appraisal,
            origin,
            {**facts, "event": EVENT + ".accepted", "decision": EVENT},
            asked_at,
            store,
        )
    except Denied as exc:
        raise service.refuse(
            exc, EVENT, origin, {**facts, "host": host.name}
        ) from exc
    return {"report": token, "audit": audit}
