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
"""Statements on VM reports and the nonces they spend."""

import json
from typing import Any

import sqlalchemy as sa

from mh_attest.db.tables import spent_nonces, vm_reports
from mh_core.encoding import canonical_json
from mh_core.errors import Denied

#: Reports of one instance that are listed, the newest.
LISTED = 32


def spend(
    connection: sa.Connection,
    nonce: str,
    now: int,
    expires_at: int,
    event: str = "attest.vm-report.nonce",
) -> None:
    """Use a nonce up.

    :raises Denied: ``event``: it is used up already.
    """
    connection.execute(
        sa.delete(spent_nonces).where(spent_nonces.c.expires_at < now)
    )
    if connection.execute(
        sa.select(spent_nonces.c.nonce).where(spent_nonces.c.nonce == nonce)
    ).first():
        raise Denied(event, "the nonce was used before")
    connection.execute(
        sa.insert(spent_nonces).values(nonce=nonce, expires_at=expires_at)
    )


def add(
    connection: sa.Connection,
    *,
    host: str,
    nonce: str,
    report: str,
    claims: dict[str, Any],
    evidence: dict[str, Any],
    now: int,
    kept: int = LISTED,
) -> None:
    """Store a report; of one host about one instance the newest stay.

    Of one host: which instance a report is about is the host's claim.
    """
    connection.execute(
        sa.insert(vm_reports).values(
            instance=claims["instance"],
            host=host,
            nonce=nonce,
            report=report,
            claims=canonical_json(claims).decode(),
            evidence=canonical_json(evidence).decode(),
            created_at=now,
        )
    )
    same = sa.and_(
        vm_reports.c.instance == claims["instance"],
        vm_reports.c.host == host,
    )
    newest = (
        sa.select(vm_reports.c.id)
        .where(same)
        .order_by(vm_reports.c.id.desc())
        .limit(kept)
    )
    oldest = connection.execute(newest).scalars().all()[-1]
    connection.execute(
        sa.delete(vm_reports).where(same, vm_reports.c.id < oldest)
    )


def of_instance(
    connection: sa.Connection, instance: str
) -> list[dict[str, Any]]:
    rows = connection.execute(
        sa.select(vm_reports)
        .where(vm_reports.c.instance == instance)
        .order_by(vm_reports.c.id.desc())
        .limit(LISTED)
    ).all()
    return [
        {
            "report": row.report,
            "nonce": row.nonce,
            "claims": json.loads(row.claims),
            "evidence": json.loads(row.evidence),
        }
        for row in reversed(rows)
    ]
