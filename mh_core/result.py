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
"""Attestation results: ES256 JWT with EAT claims (RFC 9711, RFC 7519)."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mh_core import jose
from mh_core.encoding import b64u, canonical_json, parse_json
from mh_core.errors import VerificationError
from mh_core.fields import LINE, Fields

EVENT = "core.result"
TYP = "eat+jwt"
PROFILE = "urn:mystery-hill:host-appraisal:1"
#: Longest life of a result, seconds.
MAX_LIFE = 60
LEVELS = ("trusted", "boot-only")


@dataclass(frozen=True)
class AttestationResult:
    """The authority's word about one host, for one request.

    :param bind_jwk: public bind key the word is about (``cnf.jwk``).
    :param level: one of :data:`LEVELS`.
    :param request_digest: 32 bytes.
    """

    issuer: str
    audience: str
    issued_at: int
    expires_at: int
    nonce: bytes
    request_digest: bytes
    host: str
    host_id: str
    level: str
    bind_jwk: jose.Jwk
    tags: dict[str, str] = field(default_factory=dict)

    def sign(self, key: Mapping[str, Any]) -> str:
        claims = {
            "iss": self.issuer,
            "aud": self.audience,
            "iat": self.issued_at,
            "exp": self.expires_at,
            "eat_nonce": b64u(self.nonce),
            "eat_profile": PROFILE,
            "cnf": {"jwk": jose.public(self.bind_jwk)},
            "mh_request": self.request_digest.hex(),
            "mh_host": self.host,
            "mh_host_id": self.host_id,
            "mh_level": self.level,
            "mh_tags": self.tags,
        }
        return jose.sign(canonical_json(claims), key, TYP)

    @classmethod
    def _parse(cls, payload: bytes) -> "AttestationResult":
        fields = Fields(parse_json(payload, 16384), EVENT + ".claims")
        fields.choice("eat_profile", (PROFILE,))
        cnf = Fields(fields.object("cnf"), EVENT + ".claims")
        tags = {}
        for name, value in fields.object("mh_tags").items():
            one = Fields({"name": name, "value": value}, EVENT + ".claims")
            tags[one.text("name", pattern=LINE)] = one.text("value")
        result = cls(
            issuer=fields.text("iss"),
            audience=fields.text("aud"),
            issued_at=fields.integer("iat", 0, 1 << 40),
            expires_at=fields.integer("exp", 0, 1 << 40),
            nonce=fields.b64u("eat_nonce", 32),
            request_digest=fields.hex("mh_request", 32),
            host=fields.text("mh_host", pattern=LINE),
            host_id=fields.uuid("mh_host_id"),
            level=fields.choice("mh_level", LEVELS),
            bind_jwk=jose.public(cnf.object("jwk")),
            tags=tags,
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
        audience: str,
        nonce: bytes,
        request_digest: bytes,
        bind_jwk: Mapping[str, Any],
        now: int,
    ) -> "AttestationResult":
        """Check a result against everything the caller knows by itself.

        :param now: seconds since the epoch.
        :raises InputError: malformed.
        :raises VerificationError: ``core.jose.signature``,
            ``core.result.issuer|audience|time|nonce|request|bind-key``.
        """
        payload, _kid = jose.verify(token, [key], TYP)
        result = cls._parse(payload)
        if result.issuer != issuer:
            raise VerificationError(EVENT + ".issuer", "another issuer")
        if result.audience != audience:
            raise VerificationError(
                EVENT + ".audience", "made for another key server"
            )
        life = result.expires_at - result.issued_at
        if (
            not 0 < life <= MAX_LIFE
            or not result.issued_at - 30 <= now < result.expires_at
        ):
            raise VerificationError(EVENT + ".time", "expired, or not yet")
        if not hmac.compare_digest(result.nonce, nonce):
            raise VerificationError(EVENT + ".nonce", "another nonce")
        if not hmac.compare_digest(result.request_digest, request_digest):
            raise VerificationError(EVENT + ".request", "another request")
        if result.bind_jwk != jose.public(bind_jwk):
            raise VerificationError(
                EVENT + ".bind-key", "speaks of another bind key"
            )
        return result
