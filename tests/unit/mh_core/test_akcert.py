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

"""AK certificates: openssl's, our own, and mutilated ones."""

import base64
import itertools
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    load_pem_public_key,
)
from hypothesis import strategies as st

from mh_core import akcert
from mh_core.errors import VerificationError
from mh_core.tpm import build
from mh_core.tpm import constants as c
from mh_core.tpm.public import Public
from tests.fixture.softtpm import Enroller, SoftTpm
from tests.unit.mh_core import vectors
from tests.unit.mh_core.vectors import Case, given, outcome

NOW = datetime.now(UTC)
ENROLLER = Enroller()
TPM = SoftTpm(ENROLLER)
PEM = TPM.certificate()


def _ak(pem: str) -> Public:
    key = load_pem_public_key(pem.encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return Public.parse(build.ecc_public_area(key, c.AK_ATTRIBUTES))


@vectors.parameters("core/akcert")
def test_certificate(case: Case) -> None:
    enrollers = [akcert.load_certificate(pem) for pem in case["enrollers"]]

    def run() -> None:
        found = akcert.verify_ak_certificate(
            case["certificate"],
            enrollers,
            _ak(case["ak"]),
            datetime.fromisoformat(case["now"]),
        )
        assert found.host == case["host"]
        assert found.host_id == case["host_id"]
        assert found.enroller in map(akcert.fingerprint, enrollers)

    assert outcome(run) == case["expect"]


def test_one_that_we_issued() -> None:
    found = akcert.verify_ak_certificate(
        PEM, [Enroller("other").certificate, ENROLLER.certificate], TPM.ak, NOW
    )
    assert found == akcert.AkIdentity(
        TPM.host_id, "node1", akcert.fingerprint(ENROLLER.certificate)
    )


def test_an_enroller_of_the_same_name_is_another() -> None:
    found = outcome(
        akcert.verify_ak_certificate,
        PEM,
        [Enroller().certificate],
        TPM.ak,
        NOW,
    )
    assert found == "core.akcert.issuer"


@pytest.mark.parametrize(
    ("moment", "expect"),
    [
        (timedelta(minutes=-6), "core.akcert.validity"),
        (timedelta(minutes=-4), "ok"),
        (timedelta(days=6, hours=23), "ok"),
        (timedelta(days=7, seconds=2), "core.akcert.validity"),
    ],
    ids=str,
)
def test_validity_is_that_of_the_moment(
    moment: timedelta, expect: str
) -> None:
    pem = ENROLLER.issue(TPM.ak, TPM.host_id, "node1", NOW)
    found = outcome(
        akcert.verify_ak_certificate,
        pem,
        [ENROLLER.certificate],
        TPM.ak,
        NOW + moment,
    )
    assert found == expect


def test_the_certificate_of_another_hosts_ak() -> None:
    found = outcome(
        akcert.verify_ak_certificate,
        PEM,
        [ENROLLER.certificate],
        SoftTpm(ENROLLER).ak,
        NOW,
    )
    assert found == "core.akcert.key"


def test_only_the_first_certificate_counts() -> None:
    foreign = SoftTpm(Enroller("other")).certificate()
    for pems in itertools.permutations((PEM, foreign)):
        found = outcome(
            akcert.verify_ak_certificate,
            "".join(pems),
            [ENROLLER.certificate],
            TPM.ak,
            NOW,
        )
        assert found == ("ok" if pems[0] == PEM else "core.akcert.issuer")


def _armoured(der: bytes) -> str:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"


DER = x509.load_pem_x509_certificate(PEM.encode()).public_bytes(Encoding.DER)


def _refused(pem: str) -> None:
    with pytest.raises(VerificationError):
        akcert.verify_ak_certificate(pem, [ENROLLER.certificate], TPM.ak, NOW)


def test_a_version_that_does_not_exist() -> None:
    """The library has an error of its own for it, of no family."""
    position = DER.index(bytes.fromhex("a003020102")) + 4
    der = DER[:position] + b"\x05" + DER[position + 1 :]
    assert outcome(akcert.load_certificate, _armoured(der)) == (
        "core.akcert.parse"
    )


@pytest.mark.filterwarnings(
    "ignore::cryptography.utils.CryptographyDeprecationWarning"
)
def test_any_bit_turned_over() -> None:
    # what is signed, and the signature; every third bit keeps it short
    for bit in range(0, len(DER) * 8, 3):
        der = bytearray(DER)
        der[bit // 8] ^= 1 << bit % 8
        found = outcome(
            akcert.verify_ak_certificate,
            _armoured(bytes(der)),
            [ENROLLER.certificate],
            TPM.ak,
            NOW,
        )
        if found == "ok":
            # e.g. the count of unused bits before the signature
            turned = x509.load_der_x509_certificate(bytes(der))
            honest = x509.load_der_x509_certificate(DER)
            assert turned.tbs_certificate_bytes == honest.tbs_certificate_bytes
            assert turned.signature == honest.signature
            continue
        assert found in ("core.akcert.parse", "core.akcert.issuer")


@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_any_text(text: str) -> None:
    for pem in (text, PEM[:-30] + text, text + PEM[30:]):
        found = outcome(akcert.load_certificate, pem)
        assert found in ("ok", "core.akcert.parse")


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    for der in (data, DER[: -len(data) or None] + data, data + DER):
        found = outcome(akcert.load_certificate, _armoured(der))
        assert found in ("ok", "core.akcert.parse")
