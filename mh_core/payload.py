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
"""The plaintext of a key release: all the agent believes about a launch."""

from dataclasses import dataclass, field
from typing import Any

from mh_core import jose
from mh_core.encoding import b64u, canonical_json, parse_json
from mh_core.fields import DIGEST, LINE, Fields, text_item
from mh_core.launch_policy import LaunchPolicy
from mh_core.request import NAME, ORIGIN_PATTERN, PURPOSES
from mh_core.secret import Secret

EVENT = "core.payload"


@dataclass(frozen=True)
class ReleasePayload:
    """
    :param dek: the image's key, 32 bytes.
    :param overlay_keys: disk name to the overlay's key, 32 bytes each.
    :param manifest_keys: public JWKs that may have signed the manifest.
    :param manifest_digests: manifests the release policy lists, hex.
    :param kms_origin: the server's own name of itself.
    :param transport_jwk: the server's transport key, for keys made here.
    :param lease: seconds the instance may run before it must ask again;
        0 for no end.
    :param signing_jwk: public key of the server's answers about the lease,
        see :mod:`mh_core.lease`; empty: it gives none.
    :param request_digest: of the request this answers, 32 bytes.
    :param issued_at: seconds since the epoch.
    :param audit: event id and number of the audit record, for people.
    """

    purpose: str
    key_id: str
    dek: Secret
    overlay_keys: dict[str, Secret]
    manifest_keys: tuple[jose.Jwk, ...]
    manifest_digests: tuple[str, ...]
    kms_origin: str
    transport_jwk: jose.Jwk
    lease: int
    request_digest: bytes
    issued_at: int
    audit: str = ""
    launch_policy: LaunchPolicy = field(default_factory=LaunchPolicy)
    signing_jwk: jose.Jwk = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "version": 1,
                "purpose": self.purpose,
                "key_id": self.key_id,
                "dek": b64u(self.dek.reveal()),
                "overlay_keys": {
                    name: b64u(key.reveal())
                    for name, key in self.overlay_keys.items()
                },
                # public members only, whatever the caller has at hand
                "manifest_keys": [
                    jose.public(key) for key in self.manifest_keys
                ],
                "manifest_digests": list(self.manifest_digests),
                "kms_origin": self.kms_origin,
                "transport_jwk": jose.public(self.transport_jwk),
                "lease": self.lease,
                "request_digest": self.request_digest.hex(),
                "issued_at": self.issued_at,
                "audit": self.audit,
                "launch_policy": self.launch_policy.to_dict(),
                "signing_jwk": jose.public(self.signing_jwk)
                if self.signing_jwk
                else {},
            }
        )

    @classmethod
    def parse(cls, plaintext: bytes) -> "ReleasePayload":
        """:raises InputError: ``core.payload``."""
        fields = Fields(parse_json(plaintext, 256 * 1024), EVENT)
        fields.integer("version", 1, 1)
        overlay_keys = {}
        for name, value in fields.object("overlay_keys").items():
            one = Fields({"name": name, "key": value}, EVENT)
            one.text("name", pattern=NAME)
            overlay_keys[name] = Secret(one.b64u("key", 32))
        payload = cls(
            purpose=fields.choice("purpose", PURPOSES),
            key_id=fields.uuid("key_id"),
            dek=Secret(fields.b64u("dek", 32)),
            overlay_keys=overlay_keys,
            manifest_keys=fields.list("manifest_keys", jose.public, 64),
            manifest_digests=fields.list(
                "manifest_digests", text_item(EVENT, 64, DIGEST), 1024
            ),
            kms_origin=fields.text("kms_origin", pattern=ORIGIN_PATTERN),
            transport_jwk=jose.public(fields.object("transport_jwk")),
            lease=fields.integer("lease", 0, 1 << 31),
            request_digest=fields.hex("request_digest", 32),
            issued_at=fields.integer("issued_at", 0, 1 << 40),
            audit=fields.text("audit", maximum=128, pattern=LINE),
            launch_policy=LaunchPolicy.parse(fields.object("launch_policy")),
            signing_jwk=_signing(fields.object("signing_jwk")),
        )
        fields.end()
        return payload


def _signing(value: dict[str, Any]) -> jose.Jwk:
    return jose.public(value) if value else {}
