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
"""VM report: the claims an AK quote covers about one launched instance."""

from dataclasses import dataclass, field
from typing import Any

from mh_core.encoding import canonical_json, labelled_digest
from mh_core.fields import LINE, Fields

EVENT = "core.vm-report"
TYP = "mh-vm-report+jwt"
#: Most verdicts of one report.
MAX_VERDICTS = 4160


@dataclass(frozen=True)
class VmClaims:
    """
    :param manifest_digest: SHA-256 (hex) of the manifest's JWS.
    :param domain_digest: SHA-256 (hex) of the final domain XML.
    :param request_digest: hex, of the key request that opened the disk.
    :param measured: measurer name to its verdict, e.g. ``ciphertext: ok``,
        and ``<measurer>:<module>`` to that of a module.
    :param started_at: seconds since the epoch, on the host's clock.
    """

    instance: str
    project: str
    image: str
    key_id: str
    kms_origin: str
    host: str
    purpose: str
    manifest_digest: str
    domain_digest: str
    request_digest: str
    started_at: int
    measured: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "instance": self.instance,
            "project": self.project,
            "image": self.image,
            "key_id": self.key_id,
            "kms_origin": self.kms_origin,
            "host": self.host,
            "purpose": self.purpose,
            "manifest_digest": self.manifest_digest,
            "domain_digest": self.domain_digest,
            "request_digest": self.request_digest,
            "started_at": self.started_at,
            "measured": self.measured,
        }

    @classmethod
    def parse(cls, value: Any) -> "VmClaims":
        """:raises InputError: ``core.vm-report``."""
        fields = Fields(value, EVENT)
        measured = fields.object("measured")
        if len(measured) > MAX_VERDICTS:
            raise fields.fail("measured", "too many")
        for name, verdict in measured.items():
            one = Fields({"name": name, "verdict": verdict}, EVENT)
            one.text("name", maximum=4400, pattern=LINE)
            one.text("verdict", maximum=255, pattern=LINE)
        claims = cls(
            instance=fields.uuid("instance"),
            project=fields.text("project", maximum=64, pattern=LINE),
            image=fields.uuid("image"),
            key_id=fields.uuid("key_id"),
            kms_origin=fields.text("kms_origin", pattern=LINE),
            host=fields.text("host", pattern=LINE),
            purpose=fields.text("purpose", maximum=32, pattern=LINE),
            manifest_digest=fields.hex("manifest_digest", 32).hex(),
            domain_digest=fields.hex("domain_digest", 32).hex(),
            request_digest=fields.hex("request_digest", 32).hex(),
            started_at=fields.integer("started_at", 0, 1 << 40),
            measured=measured,
        )
        fields.end()
        return claims

    def digest(self) -> bytes:
        """32 bytes; the quote's claims under ``LABEL_VM``."""
        return labelled_digest(
            "mh/vm-claims/v1", [canonical_json(self.to_dict())]
        )
