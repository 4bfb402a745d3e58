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
"""THE decision, step by step; every liar by name."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mh_attest import host_policy, verifier
from mh_attest.enrolment import host_question
from mh_attest.evidence.tpm2 import Tpm2Evidence
from mh_core.evidence import BOUND, Evidence
from mh_core.tpm import constants as c
from mh_core.tpm import eventlog
from mh_core.tpm.quote import LABEL_HOST, LABEL_RELEASE
from tests.fixture.softtpm import Enroller, SoftTpm
from tests.unit.mh_attest.host import COMMAND_LINE, log_of

NONCE = bytes(range(32))


class Case:
    """An honest host that passes; tests change one thing."""

    def __init__(self) -> None:
        self.enroller = Enroller()
        self.tpm = SoftTpm(self.enroller)
        self.log = log_of()
        self.boot(self.log)
        self.host: verifier.KnownHost | None = verifier.KnownHost(
            self.tpm.host_id, "node1", "g", self.tpm.ak.name, 7, 0
        )
        self.policy: host_policy.HostPolicy | None = host_policy.learn(
            "g", self.tpm.pcrs
        )
        self.enrollers = [self.enroller.certificate]
        self.now = datetime.now(UTC)
        self.label = LABEL_HOST
        self.change: Callable[[Evidence], Evidence] = lambda made: made
        self.judgements: dict[bytes, Any] = {}

    def boot(self, log: bytes) -> None:
        self.log = log
        self.tpm.pcrs = dict.fromkeys(range(10), bytes(32))
        self.tpm.pcrs.update(eventlog.replay(eventlog.parse(log)))

    def appraise(self) -> verifier.Appraisal:
        evidence = self.change(
            self.tpm.evidence(self.label, NONCE, self.tpm.bind.name, self.log)
        )
        return verifier.appraise(
            evidence,
            host_question(NONCE),
            driver=Tpm2Evidence(),
            find_host=lambda name: self.host,
            find_policy=lambda group: self.policy,
            enrollers=self.enrollers,
            now=self.now,
            judgements=self.judgements,
        )

    def refused(self, event: str, within: str = "") -> verifier.Appraisal:
        found = self.appraise()
        assert not found.verdict.allowed
        assert found.level == ""
        assert found.event == event
        assert within in found.detail
        return found


@pytest.fixture
def case() -> Case:
    return Case()


def test_an_honest_host_passes(case: Case) -> None:
    found = case.appraise()
    assert found.verdict.allowed
    assert (found.event, found.level) == (verifier.PASSED, "trusted")
    assert found.proof is not None
    assert found.proof.bind.name == case.tpm.bind.name


# 1 ---------------------------------------------------------------------


def test_step_1_unknown_ak(case: Case) -> None:
    case.host = None
    assert case.refused(verifier.STEP_HOST).proof is None


def test_step_1_a_look_up_that_finds_another_host(case: Case) -> None:
    assert case.host is not None
    case.host = replace(case.host, ak_name=bytes(34))
    case.refused(verifier.STEP_HOST)


# 2 ---------------------------------------------------------------------


def test_step_2_ak_that_signs_anything(case: Case) -> None:
    case.tpm.ak_attributes &= ~c.RESTRICTED
    assert case.host is not None
    case.host = replace(case.host, ak_name=case.tpm.ak.name)
    case.refused(verifier.STEP_EVIDENCE, "core.tpm.ak.attributes")


def test_step_2_other_purpose(case: Case) -> None:
    case.label = LABEL_RELEASE
    case.refused(verifier.STEP_EVIDENCE, "core.tpm.quote.extra-data")


def test_step_2_other_enroller(case: Case) -> None:
    case.enrollers = [Enroller().certificate]
    case.refused(verifier.STEP_EVIDENCE, "core.akcert.issuer")


def test_step_2_certificate_ran_out(case: Case) -> None:
    case.now += timedelta(days=8)
    case.refused(verifier.STEP_EVIDENCE, "core.akcert.validity")


def test_step_2_certificate_of_another_host(case: Case) -> None:
    def change(made: Evidence) -> Evidence:
        pem = case.enroller.issue(case.tpm.ak, case.tpm.host_id, "node2")
        return replace(made, ak_certificate=pem)

    case.change = change
    case.refused(verifier.STEP_HOST, "names another host")


def test_step_2_claimed_pcrs_are_not_the_quoted(case: Case) -> None:
    case.change = lambda made: replace(made, pcrs={**made.pcrs, 4: bytes(32)})
    case.refused(verifier.STEP_EVIDENCE, "core.tpm.quote.pcr-digest")


def test_step_2_bind_key_of_another_boot(case: Case) -> None:
    old = case.tpm.certify()
    key = case.tpm.bind
    case.tpm.reset += 1
    case.change = lambda made: replace(
        made,
        bind_public=key.raw,
        bind_attest=old[0],
        bind_signature=old[1],
    )
    case.refused(verifier.STEP_EVIDENCE, "core.evidence.boot")


def test_step_2_malformed_is_refused_not_raised(case: Case) -> None:
    for name in (
        "ak_public bind_public bind_attest bind_signature quote_attest "
        "quote_signature"
    ).split():
        case.change = lambda made, n=name: replace(  # type: ignore[misc]
            made, **{n: b"\0\1\2"}
        )
        case.refused(verifier.STEP_EVIDENCE)


# 3 ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "log",
    [
        b"",
        log_of()[:-1],
        log_of(kernel=b"kernel 2"),
        log_of(COMMAND_LINE + " quiet"),
        eventlog.build([]),
    ],
    ids=["none", "cut", "kernel edited", "command line edited", "empty"],
)
def test_step_3_log_that_does_not_replay(case: Case, log: bytes) -> None:
    def change(made: Evidence) -> Evidence:
        return replace(made, event_log=log)

    case.change = change
    case.refused(verifier.STEP_LOG)


def test_step_3_names_each_pcr(case: Case) -> None:
    case.change = lambda made: replace(made, event_log=log_of("x", b"y"))
    found = case.refused(verifier.STEP_LOG)
    assert [event.detail[:6] for event in found.verdict.events] == [
        "PCR 8:",
        "PCR 9:",
    ]


def test_step_3_label_edited_lowers_the_level(case: Case) -> None:
    """The digest is the event's data's; its label is not in it."""
    edited = case.log.replace(b"kernel_cmdline: ", b"kernel_cmdlune: ")
    case.change = lambda made: replace(made, event_log=edited)
    # PCRs are unchanged, but nothing authenticates a command line now.
    assert case.appraise().level == "boot-only"


# 4 ---------------------------------------------------------------------


def test_step_4_no_policy(case: Case) -> None:
    case.policy = None
    case.refused(verifier.STEP_NO_POLICY)


def test_step_4_every_pcr_that_changed_is_named(case: Case) -> None:
    case.boot(log_of("roothash=" + "55" * 32, b"other"))
    found = case.refused(verifier.STEP_POLICY)
    assert [event.detail[:6] for event in found.verdict.events] == [
        "PCR 8:",
        "PCR 9:",
    ]


@pytest.mark.parametrize("index", BOUND)
def test_step_4_each_pcr_counts(case: Case, index: int) -> None:
    assert case.policy is not None
    pcrs = {**case.policy.pcrs, index: (b"\x09" * 32,)}
    case.policy = host_policy.HostPolicy("g", pcrs)
    case.refused(verifier.STEP_POLICY, f"PCR {index}:")


# 5 ---------------------------------------------------------------------


@pytest.mark.parametrize("seen", [(8, 0), (7, 1), (8, 5)])
def test_step_5_counter_rolled_back(case: Case, seen: tuple[int, int]) -> None:
    assert case.host is not None
    case.host = replace(case.host, reset=seen[0], restart=seen[1])
    case.refused(verifier.STEP_COUNTER, "7/0")


def test_step_5_a_reboot_is_no_roll_back(case: Case) -> None:
    case.tpm.restart = 3
    case.appraise()
    case.tpm.reboot()
    assert case.appraise().verdict.allowed


# 6 ---------------------------------------------------------------------


def test_step_6_boot_only(case: Case) -> None:
    case.boot(log_of("root=/dev/sda1 ro"))
    case.policy = host_policy.learn("g", case.tpm.pcrs)
    found = case.appraise()
    assert found.verdict.allowed
    assert found.level == "boot-only"


# all findings, and the cache --------------------------------------------


def test_all_findings_are_collected(case: Case) -> None:
    assert case.host is not None
    case.host = replace(case.host, reset=9)
    case.boot(log_of(kernel=b"other"))
    case.change = lambda made: replace(made, event_log=log_of())
    found = case.appraise()
    assert [event.id for event in found.verdict.events] == [
        verifier.STEP_LOG,
        verifier.STEP_POLICY,
        verifier.STEP_COUNTER,
    ]


def test_a_judgement_is_reused_and_nothing_else(case: Case) -> None:
    assert case.appraise().verdict.allowed
    assert len(case.judgements) == 1
    assert case.appraise().verdict.allowed
    assert len(case.judgements) == 1
    # the quote is always looked at
    case.label = LABEL_RELEASE
    case.refused(verifier.STEP_EVIDENCE)
    case.label = LABEL_HOST
    # and so are counters
    assert case.host is not None
    case.host = replace(case.host, reset=9)
    case.refused(verifier.STEP_COUNTER)
    case.host = replace(case.host, reset=7)
    # another policy, log or boot is judged anew
    case.policy = None
    case.refused(verifier.STEP_NO_POLICY)
    case.policy = host_policy.learn("g", case.tpm.pcrs)
    case.change = lambda made: replace(made, event_log=b"")
    case.refused(verifier.STEP_LOG)
    case.change = lambda made: made
    case.tpm.reboot()
    assert case.appraise().verdict.allowed
    assert len(case.judgements) == 4
