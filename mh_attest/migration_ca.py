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
"""The migration CA: which TLS key belongs to which appraised host.

Its key issues certificates for live migration and nothing else; a key
server pins the enroller's, so this one can vouch for no AK.
"""

import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mh_attest import nonce as nonce_module
from mh_attest.authority import Authority
from mh_attest.db import hosts, vm_reports
from mh_attest.evidence.base import Question
from mh_attest.service import Origin, Service, require
from mh_core import jose
from mh_core.encoding import b64u
from mh_core.errors import Denied, InputError, MHError
from mh_core.fields import Fields
from mh_core.jwk import load
from mh_core.migration import HOST, key_claims, pinned_name, public_key
from mh_core.tpm.public import Public
from mh_core.tpm.quote import LABEL_MIGRATION_KEY

EVENT = "attest.migration-certificate"
STEP_NONCE = EVENT + ".nonce"
STEP_HOST = EVENT + ".host"
STEP_LEVEL = EVENT + ".level"
ISSUED = EVENT + ".issued"
#: Nonce purpose.
PURPOSE = "migration-key"
#: A clock that is behind by so much still takes a new certificate.
SKEW = timedelta(seconds=30)
_DNS = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
    r"(\.[A-Za-z0-9]([A-Za-z0-9\-]{0,61}[A-Za-z0-9])?)*\Z"
)


@dataclass(frozen=True)
class CertificateRequest:
    """Body of ``POST /v1/migration-certificates``."""

    nonce: bytes
    host: str
    jwk: jose.Jwk
    evidence: dict[str, Any]

    @classmethod
    def parse(cls, value: Any) -> "CertificateRequest":
        """:raises InputError: ``attest.migration-certificate.body``."""
        fields = Fields(value, EVENT + ".body")
        request = cls(
            nonce=fields.b64u("nonce", 32),
            host=fields.text("host", pattern=HOST),
            jwk=public_key(fields.object("jwk")),
            evidence=fields.object("evidence"),
        )
        fields.end()
        return request


def key_question(nonce: bytes, host: str, jwk: jose.Jwk) -> Question:
    """Does this host hold this migration key, and how is it now?"""
    digest = key_claims(host, jwk)

    def claims(_bind: Public) -> bytes:
        return digest

    return Question(LABEL_MIGRATION_KEY, nonce, claims)


def names(host: hosts.Host, jwk: jose.Jwk) -> list[x509.GeneralName]:
    """The key's own name; the host's, and that of its listener.

    The last two are what nova expects of plain guests; both are the
    operator's words at enrolment, never the host's.
    """
    found: list[x509.GeneralName] = [x509.DNSName(pinned_name(jwk))]
    texts = dict.fromkeys([host.name, urlsplit(host.listener).hostname or ""])
    for text in texts:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(text)))
        except ValueError:
            if _DNS.match(text):
                found.append(x509.DNSName(text))
    return found


def issue(
    authority: Authority,
    host: hosts.Host,
    jwk: jose.Jwk,
    now: datetime,
    life: timedelta,
) -> x509.Certificate:
    """One certificate, for both ends of a migration."""
    usage = dict.fromkeys(
        (
            "digital_signature content_commitment key_encipherment "
            "data_encipherment key_agreement key_cert_sign crl_sign "
            "encipher_only decipher_only"
        ).split(),
        False,
    )
    return (
        x509.CertificateBuilder()
        # a CN has at most 64 characters; names are compared by the SAN
        .subject_name(
            x509.Name(
                [x509.NameAttribute(NameOID.COMMON_NAME, host.name[:64])]
            )
        )
        .issuer_name(authority.migration_ca.subject)
        .public_key(_public(jwk))
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(
            x509.KeyUsage(**{**usage, "digital_signature": True}),
            critical=True,
        )
        .add_extension(
            x509.ExtendedKeyUsage(
                [
                    ExtendedKeyUsageOID.SERVER_AUTH,
                    ExtendedKeyUsageOID.CLIENT_AUTH,
                ]
            ),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName(names(host, jwk)), critical=False
        )
        .sign(authority.migration_key, hashes.SHA256())
    )


def _public(jwk: jose.Jwk) -> ec.EllipticCurvePublicKey:
    key = load(jwk).public_key
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InputError(EVENT + ".body", "migration keys are P-256 keys")
    return key


def certify(
    service: Service, request: CertificateRequest, origin: Origin
) -> dict[str, Any]:
    """``{"certificate", "ca", "expires_at", "audit"}`` for a host's key.

    1. the nonce was given out here, for this, within its life;
    2. the host passes the appraisal, its quote covering this key;
    3. it is the host that the request names, and has a level that is
       enough;
    4. the nonce is spent and the record written, at once;
    5. the certificate.

    :raises Denied: ``attest.migration-certificate.*``,
        ``attest.appraise.*``.
    """
    text = b64u(request.nonce)
    facts: dict[str, Any] = {
        "purpose": PURPOSE,
        "nonce": text,
        "key": jose.thumbprint(request.jwk),
    }
    # 1: who shows no AK we know leaves no record, as with VM reports
    expires = nonce_module.check(
        service.authority.nonce_key,
        PURPOSE,
        request.nonce,
        service.now(),
        STEP_NONCE,
    )
    asked_at = expires - nonce_module.LIFE
    evidence = service.driver.parse(request.evidence)
    # 2
    appraisal = service.appraise(
        evidence, key_question(request.nonce, request.host, request.jwk)
    )
    found = appraisal.host
    if not appraisal.verdict.allowed or found is None:
        audit = ""
        if found is not None:
            audit = service.keep(appraisal, origin, facts, asked_at)
        require(appraisal, audit)
        raise Denied(EVENT + ".internal", "no verdict")
    facts["host"] = found.name

    def refuse(error: MHError) -> MHError:
        return service.refuse(error, EVENT, origin, facts)

    # 3
    with service.reading() as connection:
        host = hosts.by_name(connection, found.name)
    if found.name != request.host or host is None:
        raise refuse(Denied(STEP_HOST, "the request names another host"))
    if appraisal.level not in service.conf.migration.levels:
        raise refuse(
            Denied(STEP_LEVEL, f"level {appraisal.level} is not enough")
        )
    # 5, made before 4 so that what is recorded is what is answered
    now = datetime.fromtimestamp(service.clock(), UTC)
    life = timedelta(seconds=service.conf.migration.certificate_life)
    certificate = issue(service.authority, host, request.jwk, now, life)

    # 4
    def spend(connection: sa.Connection) -> None:
        vm_reports.spend(connection, text, service.now(), expires, STEP_NONCE)

    try:
        audit = service.keep(
            appraisal,
            origin,
            {
                **facts,
                "event": ISSUED,
                "decision": EVENT,
                "serial": f"{certificate.serial_number:x}",
            },
            asked_at,
            spend,
        )
    except Denied as exc:
        raise refuse(exc) from exc
    return {
        "certificate": _pem(certificate),
        "ca": _pem(service.authority.migration_ca),
        "expires_at": int(certificate.not_valid_after_utc.timestamp()),
        "audit": audit,
    }


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")
