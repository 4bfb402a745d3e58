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

"""Endorsement key certificates and their chains (TCG EK Credential Profile).

A small path validation of its own: the profile's certificates have critical
names without a subject and no end, which general validators refuse, and the
roots are the operator's list, never a system's.
"""

import datetime
import hashlib
from collections.abc import Collection, Iterator
from typing import Final

from cryptography import exceptions, x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtensionOID

from mh_core import errors
from mh_core.tpm import public as public_module

#: Certificates of a path, the EK's and the root's included.
MAX_PATH: Final = 5
#: Certificates a host may send; roots an operator may list; signatures
#: verified in looking for a path (certificates may issue each other).
MAX_INTERMEDIATES: Final = 16
MAX_ROOTS: Final = 1024
MAX_SIGNATURES: Final = 64

#: tcg-kp-EKCertificate.
EK_USAGE: Final = x509.ObjectIdentifier("2.23.133.8.1")

_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
# Critical extensions whose meaning is checked here, or cannot widen what
# the certificate is taken for: the EK's name says make and model only.
_UNDERSTOOD: Final = frozenset(
    (
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
    )
)


def _fail(what: str, message: str) -> errors.VerificationError:
    return errors.VerificationError(f"core.tpm.ekcert.{what}", message)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the lower-case hexadecimal SHA-256 of the DER form."""
    der = certificate.public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def load_certificate(data: bytes) -> x509.Certificate:
    """Load one DER or PEM certificate of at most 16 KiB.

    Zero or 0xFF octets after a DER certificate are dropped: a TPM's NV
    index is often longer than the certificate in it.

    Raises InputError ``core.tpm.ekcert.parse``.
    """
    if len(data) > 16384:
        raise errors.InputError(
            "core.tpm.ekcert.parse", "certificate is too long"
        )
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(data)
        if data[:2] == b"\x30\x82":
            end = 4 + int.from_bytes(data[2:4], "big")
            if not data[end:].strip(b"\0") or not data[end:].strip(b"\xff"):
                data = data[:end]
        return x509.load_der_x509_certificate(data)
    except (
        ValueError,
        x509.InvalidVersion,
        exceptions.UnsupportedAlgorithm,
    ):
        raise errors.InputError(
            "core.tpm.ekcert.parse", "not an X.509 certificate"
        ) from None


def _key_der(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER,
        serialization.PublicFormat.SubjectPublicKeyInfo,
    )


def _check_valid(
    certificate: x509.Certificate,
    now: datetime.datetime,
    *,
    listed: bool = False,
) -> None:
    """Validity, signature hash and critical extensions of any of them.

    A listed root's own signature counts for nothing, so its hash may be
    an old one.
    """
    if not (
        certificate.not_valid_before_utc
        <= now
        <= certificate.not_valid_after_utc
    ):
        raise _fail("validity", "certificate is not valid at this time")
    if not listed and not isinstance(
        certificate.signature_hash_algorithm, _HASHES
    ):
        raise _fail("algorithm", "signature hash is not accepted")
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise _fail(
                "extension",
                f"critical extension {extension.oid.dotted_string}",
            )


def _check_leaf(certificate: x509.Certificate) -> None:
    """Usage of an EK certificate, as far as it is stated."""
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise _fail("usage", "EK certificate is a CA's")
        if isinstance(value, x509.ExtendedKeyUsage) and (
            EK_USAGE not in value
        ):
            raise _fail("usage", "certificate is not for an EK")
        if isinstance(value, x509.KeyUsage) and not (
            value.key_encipherment or value.key_agreement
        ):
            raise _fail("usage", "EK may not be used for encryption")


def _check_issuer(certificate: x509.Certificate, below: int) -> None:
    """A CA with at most `below` intermediate CAs beneath it."""
    constraints: x509.BasicConstraints | None = None
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints):
            constraints = value
        if isinstance(value, x509.KeyUsage) and not value.key_cert_sign:
            raise _fail("issuer", "issuer may not sign certificates")
    if constraints is None or not constraints.ca:
        raise _fail("issuer", "issuer is not a CA")
    if constraints.path_length is not None and (
        constraints.path_length < below
    ):
        raise _fail("issuer", "path is longer than the issuer allows")


def _issued_by(
    child: x509.Certificate, issuer: x509.Certificate, budget: Iterator[int]
) -> bool:
    if child.issuer != issuer.subject:
        return False
    if next(budget, None) is None:
        raise _fail("chain", "too many certificates of the same name")
    try:
        child.verify_directly_issued_by(issuer)
    except (
        ValueError,
        TypeError,
        exceptions.InvalidSignature,
        exceptions.UnsupportedAlgorithm,
    ):
        return False
    return True


def _paths(
    child: x509.Certificate,
    intermediates: Collection[x509.Certificate],
    roots: Collection[x509.Certificate],
    budget: Iterator[int],
    path: tuple[x509.Certificate, ...] = (),
) -> Iterator[tuple[x509.Certificate, ...]]:
    """Every signed path from a certificate's issuer up to a root."""
    if len(path) + 1 >= MAX_PATH:
        return
    for root in roots:
        if _issued_by(child, root, budget):
            yield (*path, root)
    for issuer in intermediates:
        if issuer not in path and _issued_by(child, issuer, budget):
            yield from _paths(
                issuer, intermediates, roots, budget, (*path, issuer)
            )


def verify_ek_certificate(
    certificate: x509.Certificate,
    ek: public_module.Public,
    intermediates: Collection[x509.Certificate],
    roots: Collection[x509.Certificate],
    now: datetime.datetime,
) -> str:
    """Check that a manufacturer the operator lists vouches for this EK.

    intermediates: from the host, untrusted; roots: the operator's list.
    now: aware datetime. Certificates without an end say 9999-12-31.

    Returns the certificate's fingerprint, to be compared with the host's
    entry in the inventory. That the host can use the EK is shown by
    credential activation, not here. Revocation is not looked at: it needs
    a network.

    Raises VerificationError ``core.tpm.ekcert.`` ``key``, ``validity``,
    ``algorithm``, ``extension``, ``usage``, ``issuer``, ``chain`` or
    ``core.tpm.ek.attributes``; InputError ``core.tpm.ekcert.parse`` or
    ``core.tpm.ekcert.now``.
    """
    if now.tzinfo is None:
        raise errors.InputError("core.tpm.ekcert.now", "naive time")
    if len(intermediates) > MAX_INTERMEDIATES or len(roots) > MAX_ROOTS:
        raise errors.InputError(
            "core.tpm.ekcert.parse", "too many certificates"
        )
    public_module.check_ek(ek)
    try:
        return _verify(certificate, ek, intermediates, roots, now)
    except (
        ValueError,
        TypeError,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        x509.InvalidVersion,
        exceptions.UnsupportedAlgorithm,
    ):
        # Certificates are parsed lazily: bad extensions show up here.
        raise errors.InputError(
            "core.tpm.ekcert.parse", "a certificate is malformed"
        ) from None


def _verify(
    certificate: x509.Certificate,
    ek: public_module.Public,
    intermediates: Collection[x509.Certificate],
    roots: Collection[x509.Certificate],
    now: datetime.datetime,
) -> str:
    spki = ek.key.public_bytes(
        serialization.Encoding.DER,
        serialization.PublicFormat.SubjectPublicKeyInfo,
    )
    if _key_der(certificate) != spki:
        raise _fail("key", "certificate is for another key")
    _check_valid(certificate, now)
    _check_leaf(certificate)
    failure = _fail("chain", "no path to a root in the operator's list")
    budget = iter(range(MAX_SIGNATURES))
    for path in _paths(certificate, intermediates, roots, budget):
        try:
            for below, issuer in enumerate(path):
                _check_valid(issuer, now, listed=issuer is path[-1])
                _check_issuer(issuer, below)
        except errors.VerificationError as exc:
            failure = exc
            continue
        return fingerprint(certificate)
    raise failure
