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
"""Enrolling and learning, with what is stored: the shell of ``enrol``."""

import hashlib
import pathlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)

from mh_attest import ek_ca, host_policy, verifier
from mh_attest.db import host_policies, hosts
from mh_attest.enrol import DONE, EVENT, Enrolled, EnrolmentRequest, enrol
from mh_attest.evidence.base import Question
from mh_attest.host_policy import HostPolicy
from mh_attest.listener import Identity, Listener
from mh_attest.service import Origin, Service, known, require
from mh_attest.verifier import Appraisal
from mh_core.errors import Denied, MHError, NotFound
from mh_core.tpm.public import Public
from mh_core.tpm.quote import LABEL_HOST

LEARNT = "attest.host-policy.learnt"


def spki_digest(key: Any) -> str:
    """SHA-256 (hex) of a public key's SubjectPublicKeyInfo."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def host_question(nonce: bytes) -> Question:
    """How is this host now?"""

    def claims(bind: Public) -> bytes:
        return bind.name

    return Question(LABEL_HOST, nonce, claims)


def _new_host(
    request: EnrolmentRequest, done: Enrolled, now: int
) -> hosts.Host:
    return hosts.Host(
        id=done.identity.host_id,
        name=request.host,
        grp=request.group,
        tags=request.tags,
        ek_sha256=done.ek_sha256,
        ak_name=done.identity.ak.name.hex(),
        ak_spki=spki_digest(done.identity.ak.key),
        ak_certificate=done.ak_certificate,
        listener=request.listener,
        listener_sha256=request.listener_sha256,
        enrolled_at=now,
        level=hosts.UNKNOWN,
        event="",
        appraised_at=0,
        expires_at=0,
        reset_count=0,
        restart_count=0,
    )


def enrol_host(
    service: Service, request: EnrolmentRequest, origin: Origin
) -> tuple[hosts.Host, str]:
    """Enrol a host; its row and the id of the audit record.

    :raises MHError: refused, with an audit id; nothing is stored.
    """
    facts = {
        "host": request.host,
        "ek_sha256": request.ek_sha256,
        "listener": request.listener,
        "group": request.group,
    }
    try:
        return _enrol(service, request, origin, facts)
    except MHError as exc:
        raise service.refuse(exc, EVENT, origin, facts) from exc


def _enrol(
    service: Service,
    request: EnrolmentRequest,
    origin: Origin,
    facts: dict[str, Any],
) -> tuple[hosts.Host, str]:
    now = service.now()
    agent = service.listener(
        request.listener,
        request.listener_sha256,
        service.conf.listener_client.timeout,
    )

    def check_known(identity: Identity, ek_sha256: str) -> None:
        found = Enrolled(identity, ek_sha256, "")
        with service.reading() as connection:
            hosts.clash(connection, _new_host(request, found, now))

    done = enrol(
        request,
        agent,
        ek_ca=ek_ca.load(pathlib.Path(service.conf.enrolment.ek_ca_dir)),
        authority=service.authority,
        check_known=check_known,
        lifetime=timedelta(days=service.conf.authority.ak_certificate_days),
        now=datetime.fromtimestamp(service.clock(), UTC),
        random=service.random,
    )
    host = _new_host(request, done, now)
    with service.reading() as connection:
        before = hosts.by_name(connection, host.name)
    if before is not None:
        # Counters that were seen stay seen.
        host = replace(
            host,
            reset_count=before.reset_count,
            restart_count=before.restart_count,
        )
    if request.learn:
        policy, appraisal = _learn(service, agent, host)
    else:
        policy, appraisal = None, _first(service, agent, host)

    def change(connection: sa.Connection) -> None:
        hosts.put(connection, host)
        if policy is not None and appraisal.proof is not None:
            _put_learnt(connection, policy, appraisal.proof.pcrs, now)
        if appraisal.proof is not None:
            hosts.set_counters(
                connection,
                host.id,
                appraisal.proof.reset,
                appraisal.proof.restart,
            )
        service.set_state(connection, appraisal, now)

    audit = service.journal.write(
        {
            "event": DONE,
            "decision": EVENT,
            **facts,
            **origin.record(),
            "host_id": host.id,
            "ak_name": host.ak_name,
            "learnt": policy is not None,
            "level": appraisal.level or hosts.UNTRUSTED,
            "appraisal": appraisal.event,
        },
        change,
    )
    with service.reading() as connection:
        stored = hosts.by_name(connection, host.name)
    return stored or host, audit


def _first(service: Service, agent: Listener, host: hosts.Host) -> Appraisal:
    """The first appraisal; that it says no does not undo the enrolment.

    :raises Denied: what came back is no evidence of this host.
    """
    nonce = service.random(32)
    evidence = service.driver.parse(agent.host_quote(nonce))
    appraisal = service.appraise(
        evidence, host_question(nonce), find_host=_only(host)
    )
    if appraisal.proof is None:
        require(appraisal, "")
    return appraisal


def _only(host: hosts.Host) -> Any:
    def find(ak_name: bytes) -> verifier.KnownHost | None:
        return known(host) if ak_name.hex() == host.ak_name else None

    return find


def _learn(
    service: Service, agent: Listener, host: hosts.Host
) -> tuple[HostPolicy, Appraisal]:
    """Take a host's PCRs into its group's policy, then appraise it by it.

    1. the evidence proves the PCRs, now, for this host;
    2. its event log explains them;
    3. none of them is zero;
    4. the appraisal by the new policy finds no other fault.

    :raises Denied: ``attest.appraise.*``, ``attest.host-policy.zero``.
    """
    nonce = service.random(32)
    evidence = service.driver.parse(agent.host_quote(nonce))
    with service.reading() as connection:
        current = host_policies.get(connection, host.grp)

    def appraise(policy: HostPolicy | None) -> Appraisal:
        return verifier.appraise(
            evidence,
            host_question(nonce),
            driver=service.driver,
            find_host=_only(host),
            find_policy=lambda group: policy,
            enrollers=[service.authority.enroller],
            now=datetime.fromtimestamp(service.clock(), UTC),
        )

    # 1
    first = appraise(current)
    if first.proof is None:
        require(first, "")
        raise Denied(verifier.STEP_EVIDENCE, "no proof")
    # 2
    for event in verifier.log_findings(
        service.driver, evidence, first.proof
    ).events:
        raise Denied(event.id, event.detail)
    # 3
    pcrs = first.proof.pcrs
    policy = (
        host_policy.learn(host.grp, pcrs)
        if current is None
        else current.learnt(pcrs)
    )
    # 4
    appraisal = appraise(policy)
    require(appraisal, "")
    return policy, appraisal


def _put_learnt(
    connection: sa.Connection,
    policy: HostPolicy,
    pcrs: Mapping[int, bytes],
    now: int,
) -> HostPolicy:
    """Store what was learnt, added to the policy as it is by now.

    The one that :func:`_learn` read may have been replaced since, and a
    value that was taken out must not come back with it.

    :param policy: where the group has none still.
    """
    stored = host_policies.get(connection, policy.group)
    learnt = policy if stored is None else stored.learnt(pcrs)
    host_policies.put(connection, learnt, now)
    hosts.expire(connection, learnt.group)
    return learnt


def learn_policy(
    service: Service, group: str, name: str, origin: Origin
) -> tuple[HostPolicy, str]:
    """Allow what an enrolled host measures now in its group.

    :raises NotFound: ``attest.host.unknown``: not in that group.
    :raises MHError: refused, with an audit id.
    """
    with service.reading() as connection:
        host = hosts.by_name(connection, name)
    facts = {"host": name, "group": group}
    try:
        if host is None or host.grp != group:
            raise NotFound(
                "attest.host.unknown", "no such host is enrolled in the group"
            )
        now = service.now()
        agent = service.listener(
            host.listener,
            host.listener_sha256,
            service.conf.listener_client.timeout,
        )
        policy, appraisal = _learn(service, agent, host)
    except MHError as exc:
        raise service.refuse(exc, LEARNT, origin, facts) from exc

    record = {
        "event": LEARNT,
        "decision": LEARNT,
        **facts,
        **origin.record(),
    }
    stored = [policy]

    def change(connection: sa.Connection) -> None:
        if appraisal.proof is None:
            raise Denied(verifier.STEP_EVIDENCE, "no proof")
        proof = appraisal.proof
        stored[0] = _put_learnt(connection, policy, proof.pcrs, now)
        record["policy"] = stored[0].fingerprint()
        hosts.set_counters(connection, host.id, proof.reset, proof.restart)
        service.set_state(connection, appraisal, now)

    audit = service.journal.write(record, change)
    return stored[0], audit
