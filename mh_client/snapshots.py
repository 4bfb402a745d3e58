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
"""Images that hosts made: snapshots, traced back to an attested host.

The key server has verified all of it before; nothing of that is believed
here beyond what the pinned authority and enroller have signed.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mh_client.attest import Authority
from mh_core import jose
from mh_core import manifest as manifests
from mh_core.encoding import parse_json
from mh_core.errors import VerificationError
from mh_core.evidence import Evidence, release_claims, verify_host
from mh_core.fields import Fields
from mh_core.manifest import Manifest
from mh_core.result import TYP, AttestationResult
from mh_core.snapshot import SnapshotClaims
from mh_core.tpm.public import Public
from mh_core.tpm.quote import LABEL_SNAPSHOT, extra_data

EVENT = "client.snapshot"


@dataclass(frozen=True)
class Provenance:
    """What a snapshot comes from, verified.

    :param host_id: uuid in the AK's certificate.
    :param level: that the authority found the host at.
    :param at: seconds since the epoch, when it said so.
    :param manifest: compact JWS of the snapshot's manifest.
    """

    claims: SnapshotClaims
    host_id: str
    level: str
    issuer: str
    at: int
    manifest: str

    def lines(self) -> list[str]:
        """The chain, link by link, for people."""
        claims = self.claims
        when = datetime.fromtimestamp(self.at, UTC).isoformat(
            timespec="seconds"
        )
        return [
            f"image signed by {claims.signer['kid']}, for this one snapshot",
            f"that key and the image quoted by the AK of {claims.host}",
            f"that AK certified by your enroller ({self.host_id})",
            f"that host {self.level} at {when}, says {self.issuer}",
            f"disk of instance {claims.instance}, opened under key "
            f"{claims.source_key_id} by release {claims.release}",
            f"made from image {claims.source_image}",
        ]


def verify(
    document: Any, key_id: str, *, authority: Authority, kms_origin: str
) -> Provenance:
    """Verify what the key server keeps about the key of a snapshot.

    1. the claims are about this key, at this key server;
    2. the pinned authority judged the host for exactly these claims;
    3. the AK, certified by the pinned enroller, quoted exactly these
       claims, and is that of the host claimed and judged;
    4. the manifest is the one claimed, of the claimed image and key, and
       signed by the claimed key.

    :param document: answer of ``GET /v1/keys/{id}/snapshot``.
    :raises InputError: malformed.
    :raises VerificationError: ``client.snapshot.key|host|manifest``,
        ``core.result.*``, ``core.tpm.*``, ``core.akcert.*``,
        ``core.jose.signature``.
    """
    fields = Fields(document, EVENT + ".document")
    claims = SnapshotClaims.parse(fields.object("claims"))
    nonce = fields.b64u("nonce", 32)
    evidence = Evidence.parse(fields.object("evidence"))
    token = fields.text("result", maximum=65536)
    manifest_token = fields.text("manifest", maximum=jose.MAX_TOKEN)
    fields.end()
    # 1
    if claims.key_id != key_id or claims.kms_origin != kms_origin:
        raise VerificationError(
            EVENT + ".key", "the claims are about another key"
        )
    # 2
    digest = claims.digest()
    bind = Public.parse(evidence.bind_public)
    at = _issued_at(token, authority)
    result = AttestationResult.verify(
        token,
        authority.jwk,
        issuer=authority.issuer,
        audience=kms_origin,
        nonce=nonce,
        request_digest=digest,
        bind_jwk=bind.jwk(),
        # the result has expired since; it was good then
        now=at,
    )
    # 3
    host = verify_host(
        evidence,
        extra=extra_data(LABEL_SNAPSHOT, nonce, release_claims(digest, bind)),
        enrollers=[authority.enroller],
        now=datetime.fromtimestamp(at, UTC),
    )
    if (host.identity.host, host.identity.host_id) != (
        result.host,
        result.host_id,
    ) or claims.host != result.host:
        raise VerificationError(EVENT + ".host", "the AK is another host's")
    # 4
    manifest = Manifest.verify(manifest_token, [claims.signer])
    if (
        manifests.digest(manifest_token) != claims.manifest_digest
        or manifest.image != claims.image
        or manifest.key_id != claims.key_id
    ):
        raise VerificationError(
            EVENT + ".manifest", "the manifest is not the one claimed"
        )
    return Provenance(
        claims,
        result.host_id,
        result.level,
        result.issuer,
        at,
        manifest_token,
    )


def _issued_at(token: str, authority: Authority) -> int:
    payload, _kid = jose.verify(token, [authority.jwk], TYP)
    return int(
        Fields(parse_json(payload, 65536), EVENT + ".result").integer(
            "iat", 1, 1 << 40
        )
    )
