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

"""Paths that a manufacturer's CA would not make."""

import datetime
import struct

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mh_core.tpm import constants as c
from mh_core.tpm import ekcert
from mh_core.tpm.public import Public
from tests.unit.mh_core.tpm import vectors

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
YEAR = datetime.timedelta(days=365)
KEY = ec.derive_private_key(7, ec.SECP256R1())
CA = x509.BasicConstraints(ca=True, path_length=None)


def _ek() -> Public:
    point = KEY.public_key().public_numbers()
    area = struct.pack(">HHIH", c.ALG_ECC, c.ALG_SHA256, 0x300B2, 32)
    area += bytes(32) + struct.pack(">HHHH", c.ALG_AES, 128, c.ALG_CFB, 0x10)
    area += struct.pack(">HHH", c.ECC_P256, 0x10, 32)
    area += point.x.to_bytes(32, "big") + b"\0\x20"
    return Public.parse(area + point.y.to_bytes(32, "big"))


def _make(
    subject: str,
    issuer: str,
    *extensions: tuple[x509.ExtensionType, bool],
    key: ec.EllipticCurvePrivateKey = KEY,
    start: datetime.datetime = NOW - YEAR,
    end: datetime.datetime = NOW + YEAR,
    serial: int = 1,
) -> x509.Certificate:
    def name(text: str) -> x509.Name:
        if not text:
            return x509.Name([])
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = x509.CertificateBuilder(
        name(issuer), name(subject), KEY.public_key(), serial, start, end
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return builder.sign(key, hashes.SHA256())


ROOT = _make("root", "root", (CA, True))


def _run(
    leaf: x509.Certificate,
    chain: list[x509.Certificate],
    roots: list[x509.Certificate] | None = None,
) -> str:
    return vectors.outcome(
        ekcert.verify_ek_certificate,
        leaf,
        _ek(),
        chain,
        [ROOT] if roots is None else roots,
        NOW,
    )


def _usage(*wanted: str) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment "
        "data_encipherment key_agreement key_cert_sign crl_sign "
        "encipher_only decipher_only"
    ).split()
    return x509.KeyUsage(**{name: name in wanted for name in names})


def test_good() -> None:
    forever = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    leaf = _make(
        "",
        "ca",
        (x509.ExtendedKeyUsage([ekcert.EK_USAGE]), False),
        (_usage("key_agreement"), True),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        end=forever,
    )
    ca = _make("ca", "root", (CA, True), (_usage("key_cert_sign"), True))
    assert _run(leaf, [ca]) == "ok"


@pytest.mark.parametrize(
    ("extension", "event"),
    [
        (CA, "usage"),
        (_usage("digital_signature"), "usage"),
        (
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
            "usage",
        ),
        (
            x509.UnrecognizedExtension(
                x509.ObjectIdentifier("1.2.3.4"), b"\5\0"
            ),
            "extension",
        ),
    ],
)
def test_leaf(extension: x509.ExtensionType, event: str) -> None:
    leaf = _make("ek", "root", (extension, True))
    assert _run(leaf, []) == f"core.tpm.ekcert.{event}"


@pytest.mark.parametrize(
    ("extensions", "event"),
    [
        ((), "issuer"),
        ((x509.BasicConstraints(ca=False, path_length=None),), "issuer"),
        ((CA, _usage("digital_signature")), "issuer"),
        (
            (
                CA,
                x509.UnrecognizedExtension(
                    x509.ObjectIdentifier("1.2.3.4"), b"\5\0"
                ),
            ),
            "extension",
        ),
    ],
)
def test_issuer(
    extensions: tuple[x509.ExtensionType, ...], event: str
) -> None:
    ca = _make("ca", "root", *((value, True) for value in extensions))
    assert _run(_make("ek", "ca"), [ca]) == f"core.tpm.ekcert.{event}"


def test_expired() -> None:
    event = "core.tpm.ekcert.validity"
    old = _make("ek", "root", end=NOW - YEAR / 2)
    assert _run(old, []) == event
    ca = _make("ca", "root", (CA, True), end=NOW - YEAR / 2)
    assert _run(_make("ek", "ca"), [ca]) == event
    root = _make("root", "root", (CA, True), end=NOW - YEAR / 2)
    assert _run(_make("ek", "root"), [], [root]) == event


def test_second_path_is_tried() -> None:
    old = _make("ca", "root", (CA, True), end=NOW - YEAR / 2)
    new = _make("ca", "root", (CA, True), serial=2)
    assert _run(_make("ek", "ca"), [old, new]) == "ok"


def _chain(length: int) -> list[x509.Certificate]:
    names = ["root", *(f"ca{i}" for i in range(length))]
    return [_make(names[i + 1], names[i], (CA, True)) for i in range(length)]


def test_path_length() -> None:
    assert _run(_make("ek", "ca2"), _chain(3)) == "ok"
    assert _run(_make("ek", "ca3"), _chain(4)) == "core.tpm.ekcert.chain"
    limited = x509.BasicConstraints(ca=True, path_length=0)
    root = _make("root", "root", (limited, True))
    assert _run(_make("ek", "root"), [], [root]) == "ok"
    assert _run(_make("ek", "ca0"), _chain(1), [root]) == (
        "core.tpm.ekcert.issuer"
    )


def test_certificates_that_issue_each_other() -> None:
    ring = [_make("ca", "ca", (CA, True), serial=i + 1) for i in range(16)]
    assert _run(_make("ek", "ca"), ring) == "core.tpm.ekcert.chain"
    assert _run(_make("ek", "ca"), ring * 2) == "core.tpm.ekcert.parse"


def test_name_without_signature() -> None:
    other = ec.derive_private_key(9, ec.SECP256R1())
    leaf = _make("ek", "root", key=other)
    assert _run(leaf, []) == "core.tpm.ekcert.chain"
