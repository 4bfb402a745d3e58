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
"""AK certificates: the enroller's word that an AK lives in a known TPM.

X.509 (RFC 5280): subject CN = the cloud's name of the host, a URI
subjectAltName ``urn:uuid:<host id>``, extended key usage
tcg-kp-AIKCertificate (TCG EK Credential Profile, section 3.2.16).
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)
from cryptography.x509.oid import ExtensionOID, NameOID, ObjectIdentifier

from mh_core.errors import InputError, VerificationError
from mh_core.tpm.public import Public

AIK_USAGE = ObjectIdentifier("2.23.133.8.3")
#: Extensions that may be critical, because they are read here or do not
#: change what an AK may do.
_KNOWN = (
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
)
# what the library raises, besides ValueError, on certificates it cannot read
_X509_ERRORS = (
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True)
class AkIdentity:
    """Who an AK belongs to, on the enroller's word."""

    host_id: str
    host: str
    enroller: str  # SHA-256 fingerprint of the enroller's certificate, hex


def load_certificate(pem: str) -> x509.Certificate:
    """:raises InputError: ``core.akcert.parse``."""
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except (ValueError, TypeError, x509.InvalidVersion) as exc:
        raise InputError("core.akcert.parse", "not a certificate") from exc


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 over the DER form, hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _spki(key: object) -> bytes:
    return key.public_bytes(  # type: ignore[attr-defined, no-any-return]
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )


def issue_ak_certificate(
    key: ec.EllipticCurvePrivateKey,
    enroller: x509.Certificate,
    ak: Public,
    host_id: str,
    host: str,
    now: datetime,
    lifetime: timedelta,
    serial: int,
) -> str:
    """Certify an AK after credential activation has succeeded; PEM."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        )
        .issuer_name(enroller.subject)
        .public_key(ak.key)
        .serial_number(serial)
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + lifetime)
        .add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier(f"urn:uuid:{host_id}")]
            ),
            critical=False,
        )
        .add_extension(x509.ExtendedKeyUsage([AIK_USAGE]), critical=True)
    )
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(Encoding.PEM).decode()


def verify_ak_certificate(
    pem: str,
    enrollers: Sequence[x509.Certificate],
    ak: Public,
    now: datetime,
) -> AkIdentity:
    """Check an AK certificate against pinned enrollers and the AK itself.

    :raises InputError: ``core.akcert.parse``.
    :raises VerificationError: ``core.akcert.issuer``, ``.validity``,
        ``.key``, ``.usage``, ``.name``.
    """
    certificate = load_certificate(pem)
    issuers = _issuers(certificate, enrollers)
    # A renewed enroller certificate may be pinned beside the old one.
    valid = [one for one in issuers if _valid(one, now)]
    if not valid or not _valid(certificate, now):
        raise VerificationError(
            "core.akcert.validity", "a certificate is not valid now"
        )
    try:
        if _spki(certificate.public_key()) != _spki(ak.key):
            raise VerificationError(
                "core.akcert.key", "the certificate is for another AK"
            )
        extensions = certificate.extensions
    except (ValueError, TypeError, *_X509_ERRORS) as exc:
        raise VerificationError(
            "core.akcert.usage", "not an AK certificate of ours"
        ) from exc
    _check_usage(extensions)
    return AkIdentity(*_names(certificate, extensions), fingerprint(valid[0]))


def _valid(certificate: x509.Certificate, now: datetime) -> bool:
    return (
        certificate.not_valid_before_utc
        <= now
        <= certificate.not_valid_after_utc
    )


def _check_usage(extensions: x509.Extensions) -> None:
    """An AK's certificate certifies an AK and nothing else."""
    event = "core.akcert.usage"
    try:
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        basic = extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound as exc:
        raise VerificationError(event, "not an AK certificate") from exc
    if list(usage.value) != [AIK_USAGE] or basic.value.ca:
        raise VerificationError(event, "not for an AK")
    if any(one.critical and one.oid not in _KNOWN for one in extensions):
        raise VerificationError(event, "a critical extension is not known")


def _names(
    certificate: x509.Certificate, extensions: x509.Extensions
) -> tuple[str, str]:
    """Host id and host."""
    try:
        names = extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value.get_values_for_type(x509.UniformResourceIdentifier)
        hosts = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (x509.ExtensionNotFound, ValueError, TypeError) as exc:
        raise VerificationError("core.akcert.name", "no name") from exc
    if len(names) != 1 or len(hosts) != 1:
        raise VerificationError("core.akcert.name", "one name is expected")
    scheme, _, host_id = names[0].rpartition(":")
    try:
        if scheme != "urn:uuid" or str(uuid.UUID(host_id)) != host_id:
            raise ValueError
    except ValueError as exc:
        raise VerificationError("core.akcert.name", "no host id") from exc
    return host_id, str(hosts[0].value)


def _issuers(
    certificate: x509.Certificate, enrollers: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    found = []
    for enroller in enrollers:
        try:
            certificate.verify_directly_issued_by(enroller)
        except (InvalidSignature, ValueError, TypeError, *_X509_ERRORS):
            continue
        found.append(enroller)
    if not found:
        raise VerificationError(
            "core.akcert.issuer",
            "not issued by an enroller that is trusted here",
        )
    return found
