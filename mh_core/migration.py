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
"""Live migration: who asks, which TLS key is on which host, who says so.

A host's migration key is a P-256 key that its agent made for this boot.  Its
identity is its RFC 7638 thumbprint: the certificate carries it as a name of
its own (:func:`pinned_name`), so that a source which expects exactly that
name talks to exactly that key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mh_core import jose
from mh_core.encoding import (
    b64u,
    canonical_json,
    labelled_digest,
    parse_json,
    unb64u,
)
from mh_core.errors import InputError, VerificationError
from mh_core.fields import LINE, Fields
from mh_core.result import LEVELS

EVENT = "core.migration"
TYP = "mh-migration+jwt"
PROFILE = "urn:mystery-hill:migration:1"
#: Longest life of a result, seconds.
MAX_LIFE = 60
HOST = r"[A-Za-z0-9._\-]{1,255}"


def public_key(value: Any) -> jose.Jwk:
    """The public members of a migration key.

    :raises InputError: ``core.migration.key``, ``core.jose.key``.
    """
    jwk = jose.public(value)
    if jwk["kty"] != "EC":
        raise InputError(EVENT + ".key", "migration keys are P-256 keys")
    return jwk


def key_claims(host: str, jwk: Mapping[str, Any]) -> bytes:
    """32 bytes: this host holds this key.

    The claims of a quote under ``LABEL_MIGRATION_KEY``.
    """
    return labelled_digest(
        "mh/migration-key/v1", [host.encode(), _thumbprint(jwk)]
    )


def _thumbprint(jwk: Mapping[str, Any]) -> bytes:
    return unb64u(jose.thumbprint(jwk))


def pinned_name(jwk: Mapping[str, Any]) -> str:
    """The DNS name that only the certificates of this key have.

    In two labels, because one has at most 63 octets; below ``.invalid``
    (RFC 2606), because nobody else can have a certificate for that.
    """
    text = _thumbprint(jwk).hex()
    return f"{text[:32]}.{text[32:]}.migration.invalid"


@dataclass(frozen=True)
class MigrationRequest:
    """A source asks about a destination.

    :param source: the cloud's name of the host that asks.
    :param challenge: 32 random bytes of the source's own; comes back in the
        result.
    """

    instance: str
    source: str
    destination: str
    challenge: bytes

    @classmethod
    def parse(cls, value: Any) -> "MigrationRequest":
        """:raises InputError: ``core.migration``."""
        fields = Fields(value, EVENT)
        request = cls(
            instance=fields.uuid("instance"),
            source=fields.text("source", pattern=HOST),
            destination=fields.text("destination", pattern=HOST),
            challenge=fields.b64u("challenge", 32),
        )
        fields.end()
        return request

    def to_dict(self) -> dict[str, str]:
        return {
            "instance": self.instance,
            "source": self.source,
            "destination": self.destination,
            "challenge": b64u(self.challenge),
        }

    def digest(self) -> bytes:
        """32 bytes; the quote's claims under ``LABEL_MIGRATION``."""
        return labelled_digest(
            "mh/migration/v1",
            [
                self.instance.encode(),
                self.source.encode(),
                self.destination.encode(),
                self.challenge,
            ],
        )


@dataclass(frozen=True)
class MigrationResult:
    """The authority's word: this host, appraised now, holds this key.

    :param audience: the source, which asked.
    :param challenge: the source's own 32 bytes.
    :param host: the destination; ``host_id`` its uuid.
    :param tls_jwk: its public migration key (``cnf.jwk``).
    :param ca_sha256: SHA-256 (32 bytes) of the DER form of the CA that
        certifies migration keys: whoever pins the authority needs no other
        word for it.
    """

    issuer: str
    audience: str
    issued_at: int
    expires_at: int
    challenge: bytes
    instance: str
    host: str
    host_id: str
    level: str
    tls_jwk: jose.Jwk
    ca_sha256: bytes

    def sign(self, key: Mapping[str, Any]) -> str:
        """Compact JWS by the authority's result key."""
        claims = {
            "iss": self.issuer,
            "aud": self.audience,
            "iat": self.issued_at,
            "exp": self.expires_at,
            "eat_nonce": b64u(self.challenge),
            "eat_profile": PROFILE,
            "cnf": {"jwk": public_key(self.tls_jwk)},
            "mh_instance": self.instance,
            "mh_host": self.host,
            "mh_host_id": self.host_id,
            "mh_level": self.level,
            "mh_ca": self.ca_sha256.hex(),
        }
        return jose.sign(canonical_json(claims), key, TYP)

    @classmethod
    def _parse(cls, payload: bytes) -> "MigrationResult":
        event = EVENT + ".claims"
        fields = Fields(parse_json(payload, 16384), event)
        fields.choice("eat_profile", (PROFILE,))
        cnf = Fields(fields.object("cnf"), event)
        result = cls(
            issuer=fields.text("iss"),
            audience=fields.text("aud"),
            issued_at=fields.integer("iat", 0, 1 << 40),
            expires_at=fields.integer("exp", 0, 1 << 40),
            challenge=fields.b64u("eat_nonce", 32),
            instance=fields.uuid("mh_instance"),
            host=fields.text("mh_host", pattern=LINE),
            host_id=fields.uuid("mh_host_id"),
            level=fields.choice("mh_level", LEVELS),
            tls_jwk=public_key(cnf.object("jwk")),
            ca_sha256=fields.hex("mh_ca", 32),
        )
        cnf.end()
        fields.end()
        return result

    @classmethod
    def verify(
        cls,
        token: str,
        key: Mapping[str, Any],
        *,
        issuer: str,
        request: MigrationRequest,
        levels: tuple[str, ...],
        now: int,
    ) -> "MigrationResult":
        """Check a result against everything the source knows by itself.

        :param key: the authority's public key, as the operator pinned it.
        :param levels: that are enough.
        :param now: seconds since the epoch.
        :raises InputError: malformed.
        :raises VerificationError: ``core.jose.signature``,
            ``core.migration.issuer|audience|time|challenge|instance|host|
            level``.
        """
        payload, _kid = jose.verify(token, [key], TYP)
        result = cls._parse(payload)
        life = result.expires_at - result.issued_at
        in_time = (
            0 < life <= MAX_LIFE
            and result.issued_at - 30 <= now < result.expires_at
        )
        for passed, event, why in (
            (result.issuer == issuer, EVENT + ".issuer", "another issuer"),
            (
                result.audience == request.source,
                EVENT + ".audience",
                "made for another host",
            ),
            (in_time, EVENT + ".time", "expired, or not yet"),
            (
                result.challenge == request.challenge,
                EVENT + ".challenge",
                "an answer to another question",
            ),
            (
                result.instance == request.instance,
                EVENT + ".instance",
                "about another instance",
            ),
            (
                result.host == request.destination,
                EVENT + ".host",
                "about another destination",
            ),
            (
                result.level in levels,
                EVENT + ".level",
                f"the destination's level is {result.level}",
            ),
        ):
            if not passed:
                raise VerificationError(event, why)
        return result
