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
"""The contract of evidence drivers, held against every one of them."""

from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mh_attest.enrolment import host_question
from mh_attest.evidence.base import EvidenceDriver
from mh_core.encoding import b64u
from mh_core.errors import InputError, VerificationError
from mh_core.tpm.quote import LABEL_HOST
from tests.fixture.softtpm import Enroller
from tests.unit.mh_attest.host import Maker, SoftHost

NONCE = bytes(range(32))
ENROLLER = Enroller()
HOST = SoftHost(Maker())
HOST.tpm.enroller = ENROLLER
HOST.ak_certificate = HOST.tpm.certificate()
#: Honest evidence for each kind, to be bent.
HONEST = {"tpm2": HOST.evidence(LABEL_HOST, NONCE, HOST.tpm.bind.name)}

DRIVERS = {
    point.name: point.load()
    for point in metadata.entry_points(group="mh_attest.evidence")
}


@pytest.fixture(params=sorted(DRIVERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def prove(driver: EvidenceDriver, value: Any, nonce: bytes = NONCE) -> Any:
    return driver.prove(
        driver.parse(value),
        host_question(nonce),
        [ENROLLER.certificate],
        datetime.now(UTC),
    )


def test_there_is_one() -> None:
    assert DRIVERS
    assert set(DRIVERS) == set(HONEST)


def test_it_is_a_driver_and_proves_the_honest(name: str) -> None:
    driver = DRIVERS[name]()
    assert isinstance(driver, EvidenceDriver)
    value = HONEST[name]
    proof = prove(driver, value)
    evidence = driver.parse(value)
    assert proof.key_name == driver.key_name(evidence)
    assert driver.log_mismatches(evidence, proof) == []
    assert len(driver.command_lines(evidence)) == 1
    # pure: the same again
    assert prove(driver, value).pcrs == proof.pcrs
    assert driver.log_digest(evidence) == driver.log_digest(evidence)


def test_another_question_or_enroller_proves_nothing(name: str) -> None:
    driver = DRIVERS[name]()
    with pytest.raises(VerificationError):
        prove(driver, HONEST[name], bytes(32))
    with pytest.raises(VerificationError):
        driver.prove(
            driver.parse(HONEST[name]),
            host_question(NONCE),
            [],
            datetime.now(UTC),
        )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", sorted(HONEST))
def test_hostile_evidence_leaves_as_our_error(
    kind: str, data: st.DataObject
) -> None:
    driver = DRIVERS[kind]()
    value = dict(HONEST[kind])
    member = data.draw(st.sampled_from([*sorted(value), "more"]))
    value[member] = data.draw(
        st.none()
        | st.integers()
        | st.text(max_size=40)
        | st.binary(max_size=200).map(b64u)
        | st.dictionaries(st.text(max_size=3), st.text(max_size=70))
        | st.lists(st.integers(), max_size=3)
    )
    try:
        evidence = driver.parse(value)
        driver.key_name(evidence)
        proof = prove(driver, value)
        driver.log_mismatches(evidence, proof)
    except (InputError, VerificationError):
        return
    # Only what no signature covers may be anything: the log, which step 3
    # then holds against the quote.
    assert member == "event_log" or value == HONEST[kind]
