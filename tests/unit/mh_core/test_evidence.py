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

"""Host evidence: each of the four steps refuses by its event id."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import strategies as st

from mh_core.encoding import canonical_json, parse_json
from mh_core.evidence import (
    BOUND,
    MAX_EVENT_LOG,
    QUOTED,
    Evidence,
    VerifiedHost,
    release_claims,
    verify_host,
)
from mh_core.tpm import build
from mh_core.tpm import constants as c
from mh_core.tpm.policy import pcr_digest, pcr_selection, policy_pcr
from mh_core.tpm.public import Public
from mh_core.tpm.quote import (
    LABEL_BIND,
    LABEL_HOST,
    LABEL_RELEASE,
    LABEL_VM,
    extra_data,
)
from tests.fixture.softtpm import Enroller, SoftTpm, key_request
from tests.unit.mh_core.vectors import given, outcome

NOW = datetime.now(UTC)
NONCE = b"n" * 32
REQUEST = key_request(
    "4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10", "https://kms.test"
)
ENROLLER = Enroller()


class Host:
    """A host, its honest evidence, and what the verifier expects."""

    def __init__(self, **changes: Any) -> None:
        self.tpm = SoftTpm(ENROLLER, **changes)
        self.evidence = self.tpm.release_evidence(NONCE, REQUEST)
        self.expected: dict[str, Any] = {
            "extra": extra_data(
                LABEL_RELEASE,
                NONCE,
                release_claims(REQUEST.digest(), self.tpm.bind),
            ),
            "enrollers": [ENROLLER.certificate],
            "now": NOW,
        }

    def verify(self, **changes: Any) -> VerifiedHost:
        evidence = dataclasses.replace(self.evidence, **changes)
        return verify_host(evidence, **self.expected)

    def outcome(self, **changes: Any) -> str:
        return outcome(self.verify, **changes)


@pytest.fixture
def host() -> Host:
    return Host()


def test_an_honest_host(host: Host) -> None:
    found = host.verify()
    assert found.identity.host == "node1"
    assert found.identity.host_id == host.tpm.host_id
    assert found.ak.name == host.tpm.ak.name
    assert found.bind.name == host.tpm.bind.name
    assert found.pcrs == host.tpm.pcrs
    assert found.quote.reset == host.tpm.reset


# -- 1: the AK ---------------------------------------------------------------


@pytest.mark.parametrize(
    "attributes",
    [
        c.AK_ATTRIBUTES & ~c.RESTRICTED,
        c.AK_ATTRIBUTES & ~c.SIGN,
        c.AK_ATTRIBUTES & ~c.FIXED_TPM,
        c.AK_ATTRIBUTES & ~c.FIXED_PARENT,
        c.AK_ATTRIBUTES & ~c.SENSITIVE_DATA_ORIGIN,
        c.AK_ATTRIBUTES | c.DECRYPT,
        c.AK_ATTRIBUTES | 1 << 31,
        0,
    ],
    ids=hex,
)
def test_1_an_ak_that_signs_anything(attributes: int) -> None:
    host = Host(ak_attributes=attributes)
    assert host.outcome() == "core.tpm.ak.attributes"


def test_1_a_bind_key_as_ak(host: Host) -> None:
    found = host.outcome(ak_public=host.evidence.bind_public)
    assert found == "core.tpm.ak.attributes"


def test_1_an_ak_that_is_none(host: Host) -> None:
    for area in (b"", b"\0", host.tpm.ak.raw[:-1], host.tpm.ak.raw + b"\0"):
        assert host.outcome(ak_public=area).startswith("core.tpm.")


# -- 2: its certificate ------------------------------------------------------


def test_2_another_enroller(host: Host) -> None:
    host.expected["enrollers"] = [Enroller().certificate]
    assert host.outcome() == "core.akcert.issuer"
    host.expected["enrollers"] = []
    assert host.outcome() == "core.akcert.issuer"


def test_2_another_hosts_certificate(host: Host) -> None:
    theirs = Host(host="node2").evidence.ak_certificate
    assert host.outcome(ak_certificate=theirs) == "core.akcert.key"


def test_2_an_old_certificate(host: Host) -> None:
    host.expected["now"] = NOW + timedelta(days=8)
    assert host.outcome() == "core.akcert.validity"


def test_2_no_certificate(host: Host) -> None:
    assert host.outcome(ak_certificate="") == "core.akcert.parse"


def test_2_another_hosts_ak_under_ones_own_quote(host: Host) -> None:
    """The thief has the victim's certificate and AK, not the AK's key."""
    thief, victim = Host(), host
    found = thief.outcome(
        ak_certificate=victim.evidence.ak_certificate,
        ak_public=victim.evidence.ak_public,
    )
    assert found == "core.tpm.quote.signature"


# -- 3: the quote ------------------------------------------------------------


def test_3_another_nonce(host: Host) -> None:
    evidence = host.tpm.release_evidence(b"m" * 32, REQUEST)
    assert outcome(verify_host, evidence, **host.expected) == (
        "core.tpm.quote.extra-data"
    )


@pytest.mark.parametrize("label", [LABEL_HOST, LABEL_VM, LABEL_BIND])
def test_3_a_quote_made_for_another_purpose(host: Host, label: str) -> None:
    evidence = host.tpm.release_evidence(NONCE, REQUEST, label)
    assert outcome(verify_host, evidence, **host.expected) == (
        "core.tpm.quote.extra-data"
    )


def test_3_a_quote_over_another_request(host: Host) -> None:
    request = dataclasses.replace(REQUEST, purpose="snapshot")
    evidence = host.tpm.release_evidence(NONCE, request)
    assert outcome(verify_host, evidence, **host.expected) == (
        "core.tpm.quote.extra-data"
    )


def test_3_a_quote_over_another_bind_key(host: Host) -> None:
    other = SoftTpm(ENROLLER, ak_key=host.tpm.ak_key)
    evidence = other.release_evidence(NONCE, REQUEST)
    assert outcome(verify_host, evidence, **host.expected) == (
        "core.tpm.quote.extra-data"
    )


def test_3_pcr_values_that_were_not_quoted(host: Host) -> None:
    for index in QUOTED:
        pcrs = {**host.evidence.pcrs, index: bytes(32)}
        assert host.outcome(pcrs=pcrs) == "core.tpm.quote.pcr-digest"


def test_3_fewer_or_more_pcrs(host: Host) -> None:
    pcrs = dict(host.evidence.pcrs)
    assert host.outcome(pcrs={}).startswith("core.tpm.")
    assert host.outcome(pcrs={**pcrs, 10: bytes(32)}).startswith("core.tpm.")
    del pcrs[7]
    assert host.outcome(pcrs=pcrs).startswith("core.tpm.")
    host.expected["selection"] = QUOTED[:-1]
    assert host.outcome().startswith("core.tpm.quote.")


def test_3_another_selection_than_asked_for(host: Host) -> None:
    """A host that quotes PCRs of its own choice, all of them as sent."""
    chosen = {index: bytes(32) for index in (16, 23)}
    body = build.quote_body(pcr_selection(chosen), pcr_digest(chosen))
    attest = build.attest(c.ST_QUOTE, host.expected["extra"], body)
    found = host.outcome(
        quote_attest=attest,
        quote_signature=build.ecdsa_signature(host.tpm.ak_key, attest),
        pcrs=chosen,
    )
    assert found == "core.tpm.quote.selection"


def test_3_a_signature_of_another_key(host: Host) -> None:
    attest = host.evidence.quote_attest
    key = ec.generate_private_key(ec.SECP256R1())
    signature = build.ecdsa_signature(key, attest)
    found = host.outcome(quote_signature=signature)
    assert found == "core.tpm.quote.signature"


def test_3_a_certification_is_no_quote(host: Host) -> None:
    found = host.outcome(
        quote_attest=host.evidence.bind_attest,
        quote_signature=host.evidence.bind_signature,
    )
    assert found.startswith("core.tpm.")


# -- 4: the bind key ---------------------------------------------------------


def test_4_a_bind_key_that_was_not_certified(host: Host) -> None:
    software = SoftTpm(ENROLLER)
    found = host.outcome(bind_public=software.bind.raw)
    assert found.startswith("core.tpm.certify.")


def test_4_certified_by_another_tpm(host: Host) -> None:
    other = Host()
    found = host.outcome(
        bind_public=other.evidence.bind_public,
        bind_attest=other.evidence.bind_attest,
        bind_signature=other.evidence.bind_signature,
    )
    assert found.startswith("core.tpm.certify.")


def test_4_a_quote_is_no_certification(host: Host) -> None:
    found = host.outcome(
        bind_attest=host.evidence.quote_attest,
        bind_signature=host.evidence.quote_signature,
    )
    assert found.startswith("core.tpm.")


def test_4_a_bind_key_of_another_boot(host: Host) -> None:
    host.tpm.reset += 1
    attest, signature = host.tpm.quote(host.expected["extra"])
    found = host.outcome(quote_attest=attest, quote_signature=signature)
    assert found == "core.evidence.boot"
    host.tpm.reset -= 2
    attest, signature = host.tpm.quote(host.expected["extra"])
    found = host.outcome(quote_attest=attest, quote_signature=signature)
    assert found == "core.evidence.boot"


@pytest.mark.parametrize("hierarchy", [c.RH_ENDORSEMENT, c.RH_OWNER], ids=hex)
def test_4_a_bind_key_that_outlives_the_boot(
    host: Host, hierarchy: int
) -> None:
    bind = host.tpm.bind
    attest = build.attest(
        c.ST_CERTIFY,
        extra_data(LABEL_BIND, b"", host.tpm.ak.name),
        build.certify_body(
            bind.name, bind.qualified_name(hierarchy.to_bytes(4, "big"))
        ),
        reset=host.tpm.reset,
    )
    signature = build.ecdsa_signature(host.tpm.ak_key, attest)
    found = host.outcome(bind_attest=attest, bind_signature=signature)
    assert found == "core.tpm.certify.hierarchy"


@pytest.mark.parametrize(
    "attributes",
    [
        c.BIND_ATTRIBUTES | c.USER_WITH_AUTH,
        c.BIND_ATTRIBUTES | c.SIGN,
        c.BIND_ATTRIBUTES | c.RESTRICTED,
        c.BIND_ATTRIBUTES & ~c.FIXED_TPM,
        c.BIND_ATTRIBUTES & ~c.FIXED_PARENT,
        c.BIND_ATTRIBUTES & ~c.SENSITIVE_DATA_ORIGIN,
    ],
    ids=hex,
)
def test_4_a_bind_key_that_can_be_used_otherwise(attributes: int) -> None:
    host = Host(bind_attributes=attributes)
    assert host.outcome() == "core.tpm.bind.attributes"


class Loose(SoftTpm):
    """Holds its bind key to other PCRs, or values, than it must."""

    policy: Callable[[dict[int, bytes]], bytes]

    @property
    def bind(self) -> Public:
        return Public.parse(
            build.ecc_public_area(
                self.bind_key.public_key(),
                self.bind_attributes,
                policy=type(self).policy(self.pcrs),
                scheme=c.ALG_ECDH,
            )
        )


@pytest.mark.parametrize(
    "policy",
    [
        lambda pcrs: policy_pcr({i: pcrs[i] for i in BOUND[1:]}),
        lambda pcrs: policy_pcr({i: bytes(32) for i in BOUND}),
        lambda pcrs: bytes(32),
        lambda pcrs: b"",
    ],
    ids=["fewer", "other-values", "zero", "none"],
)
def test_4_a_bind_key_held_to_something_else(
    host: Host, policy: Callable[[dict[int, bytes]], bytes]
) -> None:
    kind = type("Tpm", (Loose,), {"policy": staticmethod(policy)})
    host.tpm = kind(ENROLLER)
    host.evidence = host.tpm.release_evidence(NONCE, REQUEST)
    host.expected["extra"] = extra_data(
        LABEL_RELEASE,
        NONCE,
        release_claims(REQUEST.digest(), host.tpm.bind),
    )
    assert host.outcome() == "core.tpm.bind.policy"


@pytest.mark.parametrize("bound", [(), (23,), (*BOUND, 16)], ids=str)
def test_4_a_caller_who_binds_to_what_was_not_quoted(
    host: Host, bound: tuple[int, ...]
) -> None:
    host.expected["bound"] = bound
    assert host.outcome() == "core.evidence.bound"


# -- as sent -----------------------------------------------------------------

GOOD = Host().evidence
DOCUMENT = GOOD.to_dict()


def test_what_is_written_is_read() -> None:
    evidence = dataclasses.replace(GOOD, event_log=b"\0" * 100)
    document = parse_json(canonical_json(evidence.to_dict()))
    assert Evidence.parse(document) == evidence
    assert Evidence.parse(document).to_dict() == document


@pytest.mark.parametrize("name", sorted(DOCUMENT))
@pytest.mark.parametrize(
    "value",
    [None, 1, True, [], {"x": ""}, "\u00e9", "\ud800", "=", "A" * 12_000_000],
    ids=lambda value: str(value)[:6].encode("ascii", "replace").decode(),
)
def test_a_member_that_is_wrong(name: str, value: Any) -> None:
    found = outcome(Evidence.parse, {**DOCUMENT, name: value})
    if name == "ak_certificate" and value in ("\u00e9", "="):
        assert found == "ok"
        broken = Evidence.parse({**DOCUMENT, name: value})
        assert Host().outcome(ak_certificate=broken.ak_certificate) == (
            "core.akcert.parse"
        )
    else:
        assert found == "core.evidence"


@pytest.mark.parametrize("name", sorted(DOCUMENT))
def test_a_member_that_is_missing(name: str) -> None:
    without = {key: value for key, value in DOCUMENT.items() if key != name}
    assert outcome(Evidence.parse, without) == "core.evidence"


def test_a_member_that_is_not_known() -> None:
    assert outcome(Evidence.parse, {**DOCUMENT, "x": 1}) == "core.evidence"


@pytest.mark.parametrize(
    "pcrs",
    [
        {"24": "00" * 32},
        {"-1": "00" * 32},
        {"00": "00" * 32},
        {" 1": "00" * 32},
        {"\u0661": "00" * 32},
        {"x": "00" * 32},
        {"0": "00" * 31},
        {"0": "00" * 48},
        {"0": "AB" * 32},
        {"0": 0},
        {"0": None},
        {"0": ["00" * 32]},
    ],
    ids=repr,
)
def test_pcrs_that_are_none(pcrs: Any) -> None:
    found = outcome(Evidence.parse, {**DOCUMENT, "pcrs": pcrs})
    assert found == "core.evidence"


def test_the_longest_event_log() -> None:
    most = dataclasses.replace(GOOD, event_log=bytes(MAX_EVENT_LOG))
    assert Evidence.parse(most.to_dict()) == most
    longer = dataclasses.replace(GOOD, event_log=bytes(MAX_EVENT_LOG + 9))
    assert outcome(Evidence.parse, longer.to_dict()) == "core.evidence"


@given(
    st.sampled_from(
        [name for name in sorted(DOCUMENT) if "public" in name]
        + [name for name in sorted(DOCUMENT) if "attest" in name]
        + [name for name in sorted(DOCUMENT) if "signature" in name]
    ),
    st.integers(0, 2000),
    st.binary(max_size=4),
)
def test_any_bytes_are_refused_by_name(
    name: str, position: int, data: bytes
) -> None:
    host = HONEST
    whole = getattr(host.evidence, name)
    position %= len(whole) + 1
    changed = whole[:position] + data + whole[position + len(data) :]
    found = host.outcome(**{name: changed})
    if changed == whole:
        assert found == "ok"
    else:
        assert found.startswith(("core.tpm.", "core.akcert.", "core.evidence"))


HONEST = Host()
