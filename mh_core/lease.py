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
"""Leases: how long a guest may run, and who holds an instance.

A host that runs a guest asks the key server again before the lease ends; the
answer carries no key.  What it asks is covered by its quote, through
:meth:`LeaseRequest.digest`; the answer is signed by the key that came in the
release whose keys opened the instance's disks.
"""

from dataclasses import dataclass
from typing import Any

from mh_core import jose
from mh_core.encoding import b64u, canonical_json, labelled_digest, parse_json
from mh_core.errors import VerificationError
from mh_core.fields import LINE, Fields
from mh_core.request import ORIGIN_PATTERN

EVENT = "core.lease"
TYP = "mh-lease+jwt"
RENEW = "renew"
#: Names the destination of a live migration; an empty one takes it back.
HANDOVER = "handover"
#: The guest runs elsewhere now, or no more.
LEFT = "left"
#: Overlays, secrets and the agent's record are gone: a receipt.
ERASED = "erased"
PURPOSES = (RENEW, HANDOVER, LEFT, ERASED)
#: Longest lease, seconds.
MAX_LEASE = 1 << 31
_HOST = r"[A-Za-z0-9._\-]{1,255}"
#: Pattern of a lease's id: of the audit record of its release.
LEASE_ID = r"[A-Za-z0-9_#\-]{1,80}"


@dataclass(frozen=True)
class LeaseRequest:
    """What a host says about a lease it was given.

    :param purpose: one of :data:`PURPOSES`.
    :param lease: id, ``audit`` of the release that began it.
    :param host: the host's own name.
    :param to: destination's name (``handover`` only), or empty.
    """

    key_id: str
    kms_origin: str
    purpose: str
    instance: str
    lease: str
    host: str
    to: str = ""

    @classmethod
    def parse(cls, value: Any) -> "LeaseRequest":
        """:raises InputError: ``core.lease``."""
        fields = Fields(value, EVENT)
        request = cls(
            key_id=fields.uuid("key_id"),
            kms_origin=fields.text("kms_origin", pattern=ORIGIN_PATTERN),
            purpose=fields.choice("purpose", PURPOSES),
            instance=fields.uuid("instance"),
            lease=fields.text("lease", pattern=LEASE_ID),
            host=fields.text("host", pattern=_HOST),
            to=fields.text("to", pattern=f"|{_HOST}"),
        )
        fields.end()
        if request.to and request.purpose != HANDOVER:
            raise fields.fail("to", "only a handover has a destination")
        return request

    def to_dict(self) -> dict[str, str]:
        return {
            "key_id": self.key_id,
            "kms_origin": self.kms_origin,
            "purpose": self.purpose,
            "instance": self.instance,
            "lease": self.lease,
            "host": self.host,
            "to": self.to,
        }

    def digest(self) -> bytes:
        """SHA-256 (32 bytes); its label keeps it from being that of a key
        request."""
        parts = (
            self.key_id,
            self.kms_origin,
            self.purpose,
            self.instance,
            self.lease,
            self.host,
            self.to,
        )
        return labelled_digest(
            "mh/lease-request/v1", [part.encode() for part in parts]
        )


@dataclass(frozen=True)
class LeaseGrant:
    """The key server's answer.

    :param request_digest: of the request, 32 bytes.
    :param nonce: that the host proved itself over, 32 bytes: an answer to
        an earlier question is not one to this.
    :param seconds: from the question on; 0 for no end.  Means something
        only where the request was to renew.
    :param audit: of the record.
    """

    request_digest: bytes
    nonce: bytes
    seconds: int
    issued_at: int
    audit: str

    def sign(self, key: jose.Jwk) -> str:
        """Compact JWS, type :data:`TYP`."""
        return jose.sign(
            canonical_json(
                {
                    "version": 1,
                    "request_digest": self.request_digest.hex(),
                    "nonce": b64u(self.nonce),
                    "seconds": self.seconds,
                    "issued_at": self.issued_at,
                    "audit": self.audit,
                }
            ),
            key,
            TYP,
        )

    @classmethod
    def verify(
        cls, token: str, key: jose.Jwk, request_digest: bytes, nonce: bytes
    ) -> "LeaseGrant":
        """
        :param key: public, from the release.
        :raises InputError: ``core.lease``, ``core.jose.token``.
        :raises VerificationError: ``core.jose.signature``,
            ``core.lease.binding``: the answer to another question.
        """
        payload, _kid = jose.verify(token, [key], TYP)
        fields = Fields(parse_json(payload, 4096), EVENT)
        fields.integer("version", 1, 1)
        grant = cls(
            request_digest=fields.hex("request_digest", 32),
            nonce=fields.b64u("nonce", 32),
            seconds=fields.integer("seconds", 0, MAX_LEASE),
            issued_at=fields.integer("issued_at", 0, 1 << 40),
            audit=fields.text("audit", maximum=128, pattern=LINE),
        )
        fields.end()
        if grant.request_digest != request_digest or grant.nonce != nonce:
            raise VerificationError(
                EVENT + ".binding", "the answer to another question"
            )
        return grant
