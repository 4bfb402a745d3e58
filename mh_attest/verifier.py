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
"""Is this host trusted?  THE decision, and the only one.

Pure: the evidence, what it must answer, what is known about the host and
what is allowed come in as arguments; a verdict goes out.
"""

import hmac
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography import x509

from mh_attest import level as level_module
from mh_attest.evidence.base import EvidenceDriver, Proof, Question
from mh_attest.host_policy import HostPolicy
from mh_core.encoding import labelled_digest
from mh_core.errors import InputError, MHError, VerificationError
from mh_core.tpm.policy import pcr_digest
from mh_core.verdict import Event, Findings, Verdict

STEP_HOST = "attest.appraise.host"
STEP_EVIDENCE = "attest.appraise.evidence"
STEP_LOG = "attest.appraise.event-log"
STEP_POLICY = "attest.appraise.host-policy"
STEP_NO_POLICY = "attest.appraise.no-policy"
STEP_COUNTER = "attest.appraise.counter"
PASSED = "attest.appraise.passed"


@dataclass(frozen=True)
class KnownHost:
    """What enrolment and earlier quotes say about a host.

    :param reset: highest resetCount in any quote of its AK; ``restart``:
        highest restartCount with that.
    :param tags: the operator's words about this host.
    """

    id: str
    name: str
    group: str
    ak_name: bytes
    reset: int
    restart: int
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """Steps 3, 4 and 6: what measurements are worth under a policy."""

    events: tuple[Event, ...]
    level: str


#: Judgements by everything that they depend on; see :func:`_judge`.
Judgements = MutableMapping[bytes, Judgement]


@dataclass(frozen=True)
class Appraisal:
    """What the decision ended in.

    :param proof: present from step 2 on, also where the verdict is no.
    :param level: of a host that passed, else empty.
    :param policy: fingerprint of the host policy judged by, or empty.
    :param tags: the group's, and over them the host's.
    """

    verdict: Verdict
    host: KnownHost | None = None
    proof: Proof | None = None
    level: str = ""
    policy: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def event(self) -> str:
        return PASSED if self.verdict.allowed else self.verdict.events[0].id

    @property
    def detail(self) -> str:
        """Every finding, as one sentence for people."""
        return "; ".join(event.detail for event in self.verdict.events)


def appraise(
    evidence: Any,
    question: Question,
    *,
    driver: EvidenceDriver,
    find_host: Callable[[bytes], KnownHost | None],
    find_policy: Callable[[str], HostPolicy | None],
    enrollers: Sequence[x509.Certificate],
    now: datetime,
    judgements: Judgements | None = None,
) -> Appraisal:
    """Appraise a parsed evidence as the answer to a question.

    1. the AK is known and not deleted;
    2. the evidence is verified, for this question and this host;
    3. the event log replays to the quoted PCRs;
    4. the PCRs are allowed by the host policy of the host's group;
    5. the TPM's counters are not behind what was seen;
    6. level: the measured command line covers the software or it does not.

    Steps 1 and 2 end the decision; of 3 to 5 every finding is collected.

    :param find_host: by the AK's TPM Name (34 bytes).
    :param find_policy: by the group's name.
    :param judgements: cache of steps 3, 4 and 6; 1, 2 and 5 are always done.
    """
    findings = Findings()
    # 1
    try:
        key_name = driver.key_name(evidence)
    except InputError as exc:
        findings.add(STEP_EVIDENCE, _because(exc))
        return Appraisal(findings.verdict())
    host = find_host(key_name)
    if host is None or not hmac.compare_digest(host.ak_name, key_name):
        findings.add(STEP_HOST, "no host is enrolled with this AK")
        return Appraisal(findings.verdict())
    # 2
    try:
        proof = driver.prove(evidence, question, enrollers, now)
    except (InputError, VerificationError) as exc:
        findings.add(STEP_EVIDENCE, _because(exc))
        return Appraisal(findings.verdict(), host)
    if proof.key_name != host.ak_name or (
        proof.identity.host_id,
        proof.identity.host,
    ) != (host.id, host.name):
        findings.add(STEP_HOST, "the AK certificate names another host")
        return Appraisal(findings.verdict(), host)
    policy = find_policy(host.group)
    # 3, 4, 6
    judgement = _judge(driver, evidence, proof, policy, host, judgements)
    findings.events += judgement.events
    # 5
    if (proof.reset, proof.restart) < (host.reset, host.restart):
        findings.add(
            STEP_COUNTER,
            f"TPM counters {proof.reset}/{proof.restart} are behind "
            f"{host.reset}/{host.restart}, seen before",
        )
    verdict = findings.verdict()
    return Appraisal(
        verdict,
        host,
        proof,
        judgement.level if verdict.allowed else "",
        "" if policy is None else policy.fingerprint(),
        {**({} if policy is None else policy.tags), **host.tags},
    )


def _because(error: MHError) -> str:
    return f"{error.message} [{error.event}]"


def _judge(
    driver: EvidenceDriver,
    evidence: Any,
    proof: Proof,
    policy: HostPolicy | None,
    host: KnownHost,
    judgements: Judgements | None,
) -> Judgement:
    if judgements is None:
        return judge(driver, evidence, proof, policy)
    key = labelled_digest(
        "mh/judgement/v1",
        (
            host.ak_name,
            pcr_digest(proof.pcrs),
            proof.reset.to_bytes(4, "big"),
            proof.restart.to_bytes(4, "big"),
            driver.log_digest(evidence),
            b"" if policy is None else policy.fingerprint().encode(),
        ),
    )
    found = judgements.get(key)
    if found is None:
        found = judge(driver, evidence, proof, policy)
        judgements[key] = found
    return found


def judge(
    driver: EvidenceDriver,
    evidence: Any,
    proof: Proof,
    policy: HostPolicy | None,
) -> Judgement:
    """Steps 3, 4 and 6 on proven measurements; see :func:`appraise`."""
    findings = log_findings(driver, evidence, proof)
    # 4
    if policy is None:
        findings.add(STEP_NO_POLICY, "the host's group has no host policy")
    else:
        for index in policy.mismatches(proof.pcrs):
            findings.add(
                STEP_POLICY,
                f"PCR {index}: {proof.pcrs[index].hex()} is not allowed in "
                f"group {policy.group}",
            )
    # 6
    level = ""
    if not findings.events:
        try:
            level = level_module.of(driver.command_lines(evidence))
        except MHError as exc:
            findings.add(STEP_LOG, _because(exc))
    return Judgement(tuple(findings.events), level)


def log_findings(
    driver: EvidenceDriver, evidence: Any, proof: Proof
) -> Findings:
    """Step 3 on its own: what is learnt must be explained, too."""
    findings = Findings()
    try:
        for index, why in driver.log_mismatches(evidence, proof):
            findings.add(STEP_LOG, f"PCR {index}: {why}")
    except MHError as exc:
        findings.add(STEP_LOG, _because(exc))
    return findings
