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
"""Snapshot claims: what a host says it made of an instance's disk.

The host's AK quotes :meth:`SnapshotClaims.digest` under ``LABEL_SNAPSHOT``.
That ties the image (by its manifest), the manifest's signing key, which
lives for one snapshot, and the wrapped key to an attested host and to the
release that opened the source.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from mh_core import jose
from mh_core.encoding import canonical_json, labelled_digest
from mh_core.fields import LINE, Fields
from mh_core.request import ORIGIN_PATTERN

EVENT = "core.snapshot"
#: Name of a key release's audit record, ``<chain>#<seq>``.
AUDIT_ID = r"[0-9a-f\-]{36}#[0-9]{1,18}"


@dataclass(frozen=True)
class SnapshotClaims:
    """
    :param key_id: uuid of the new key, chosen by the host.
    :param image: Glance id of the new image.
    :param manifest_digest: SHA-256 (hex) of its manifest's JWS.
    :param signer: public key that signed that manifest, and no other.
    :param jwe_digest: SHA-256 (hex) of the wrapped new key.
    :param source_key_id: key of the instance's own disk.
    :param source_image: image that disk was made from.
    :param source_manifest: SHA-256 (hex) of that image's manifest.
    :param release: audit id of the release for ``snapshot`` that preceded.
    :param taken_at: seconds since the epoch, on the host's clock.
    """

    key_id: str
    image: str
    manifest_digest: str
    signer: jose.Jwk
    jwe_digest: str
    source_key_id: str
    source_image: str
    source_manifest: str
    kms_origin: str
    instance: str
    project: str
    host: str
    release: str
    taken_at: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": 1,
            "key_id": self.key_id,
            "image": self.image,
            "manifest_digest": self.manifest_digest,
            "signer": jose.public(self.signer),
            "jwe_digest": self.jwe_digest,
            "source_key_id": self.source_key_id,
            "source_image": self.source_image,
            "source_manifest": self.source_manifest,
            "kms_origin": self.kms_origin,
            "instance": self.instance,
            "project": self.project,
            "host": self.host,
            "release": self.release,
            "taken_at": self.taken_at,
        }

    @classmethod
    def parse(cls, value: Any) -> "SnapshotClaims":
        """:raises InputError: ``core.snapshot``, ``core.jose.key``."""
        fields = Fields(value, EVENT)
        fields.integer("version", 1, 1)
        claims = cls(
            key_id=fields.uuid("key_id"),
            image=fields.uuid("image"),
            manifest_digest=fields.hex("manifest_digest", 32).hex(),
            signer=jose.public(fields.object("signer")),
            jwe_digest=fields.hex("jwe_digest", 32).hex(),
            source_key_id=fields.uuid("source_key_id"),
            source_image=fields.uuid("source_image"),
            source_manifest=fields.hex("source_manifest", 32).hex(),
            kms_origin=fields.text("kms_origin", pattern=ORIGIN_PATTERN),
            instance=fields.uuid("instance"),
            project=fields.text("project", maximum=64, pattern=LINE),
            host=fields.text("host", pattern=r"[A-Za-z0-9._\-]{1,255}"),
            release=fields.text("release", pattern=AUDIT_ID),
            taken_at=fields.integer("taken_at", 0, 1 << 40),
        )
        fields.end()
        if claims.key_id == claims.source_key_id:
            raise fields.fail("key_id", "is the source's own")
        if claims.signer["kty"] != "EC":
            raise fields.fail("signer", "is not a P-256 key")
        return claims

    def digest(self) -> bytes:
        """32 bytes; the quote's claims, with the bind key's name."""
        return labelled_digest(
            "mh/snapshot-claims/v1", [canonical_json(self.to_dict())]
        )


def key_apv(key_id: str, release: str) -> bytes:
    """``apv`` of the new key's JWE: which key, after which release."""
    return labelled_digest(
        "mh/snapshot-key/v1", [key_id.encode(), release.encode()]
    )


def jwe_digest(jwe: str) -> str:
    """SHA-256 (hex) of a compact JWE."""
    return hashlib.sha256(jwe.encode()).hexdigest()
