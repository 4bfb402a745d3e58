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
"""The tenant's key server, as seen by its owner.

Shapes: protocol reference, "Key server".
"""

import hmac
from dataclasses import dataclass
from typing import Any

from mh_client.config import KmsConfig
from mh_client.leases import Tenure
from mh_client.rest import Rest
from mh_core import jose
from mh_core.errors import Conflict, InputError, NotFound, VerificationError
from mh_core.fields import Fields, text_item
from mh_core.request import ORIGIN_PATTERN
from mh_core.secret import Secret

EVENT = "client.kms"
APV_UPLOAD = b"mh/key-upload/v1"
APV_DELIVER = b"mh/key-deliver/v1"


@dataclass(frozen=True)
class Key:
    """A key document; nothing in it is derived from the key itself."""

    id: str
    name: str
    project: str
    created_at: str
    policy: dict[str, Any]
    manifests: tuple[str, ...]
    url: str
    compat_url: str

    @classmethod
    def parse(cls, value: Any, origin: str) -> "Key":
        """:raises InputError: ``client.kms.key``: also where a URL is not
        of this server."""
        fields = Fields(value, EVENT + ".key")
        created: Any = fields.take("created_at", object)
        key = cls(
            id=fields.uuid("id"),
            name=fields.text("name"),
            project=fields.text("project"),
            created_at=str(created),
            policy=fields.object("policy"),
            manifests=fields.list(
                "manifests", text_item(EVENT + ".key", 64), 4096
            ),
            url=fields.text("url", maximum=1024),
            compat_url=fields.text("compat_url", maximum=1024),
        )
        fields.text("thumbprint", default="")
        fields.end()
        if (
            key.url != f"{origin}/v1/keys/{key.id}"
            or key.compat_url
            != f"{origin}/data-encryption-key/request/{key.id}"
        ):
            raise fields.fail("url", "is not a key URL of this server")
        return key


@dataclass(frozen=True)
class Ticket:
    """A launch ticket; single use, and a secret until it is used."""

    secret: Secret
    expires_at: str


class Kms:
    """:param config: where it is, and the pinned transport key."""

    def __init__(self, config: KmsConfig) -> None:
        self._rest = Rest(config.endpoint, "key server")
        self._pin = config.transport_thumbprint
        self._info: tuple[str, jose.Jwk] | None = None

    # -- identity --------------------------------------------------------

    def _identity(self) -> tuple[str, jose.Jwk]:
        if self._info is None:
            answer = self._rest.call("GET", "/v1", auth=False)
            fields = Fields(answer, EVENT + ".identity")
            origin = fields.text("origin", pattern=ORIGIN_PATTERN)
            jwk = jose.public(fields.object("transport_jwk"))
            fields.text("version", default="")
            fields.end()
            if not hmac.compare_digest(jose.thumbprint(jwk), self._pin):
                raise VerificationError(
                    EVENT + ".transport-key",
                    "the key server has another transport key than the one "
                    f"pinned (transport_thumbprint): {jwk['kid']}; send it "
                    "no key before you know why",
                )
            self._info = origin, jwk
        return self._info

    def origin(self) -> str:
        """The server's name of itself, under the pinned identity."""
        return self._identity()[0]

    def transport_key(self) -> jose.Jwk:
        """:raises VerificationError: ``client.kms.transport-key``."""
        return self._identity()[1]

    # -- keys ------------------------------------------------------------

    def create_key(
        self, name: str, dek: Secret, policy: dict[str, Any]
    ) -> Key:
        """Wrap a key to the pinned transport key and post it.

        :raises VerificationError: ``client.kms.policy``: the server did not
            keep the policy it was given.
        """
        jwe = jose.wrap(dek.reveal(), self.transport_key(), APV_UPLOAD)
        body = {"name": name, "jwe": jwe, "policy": policy}
        key = self._key(self._rest.call("POST", "/v1/keys", body))
        return self._kept(key, policy)

    def _key(self, answer: Any) -> Key:
        return Key.parse(answer, self.origin())

    def _kept(self, key: Key, policy: dict[str, Any]) -> Key:
        if key.policy != policy:
            raise VerificationError(
                EVENT + ".policy",
                f"the key server did not keep the release policy of {key.id}",
            )
        return key

    def keys(self) -> tuple[Key, ...]:
        fields = Fields(self._rest.call("GET", "/v1/keys"), EVENT + ".keys")
        found = fields.list("keys", self._key, 100_000)
        fields.end()
        return found

    def key(self, key_id: str) -> Key:
        """:raises NotFound: the server's event."""
        key = self._key(self._rest.call("GET", f"/v1/keys/{key_id}"))
        if key.id != key_id:
            raise InputError(EVENT + ".key", "another key than asked for")
        return key

    def find(self, name: str) -> Key:
        """A key by id, or by a name that is used once.

        :raises NotFound: ``client.kms.find``.
        :raises Conflict: ``client.kms.find``.
        """
        found = [k for k in self.keys() if name in (k.id, k.name)]
        found = [k for k in found if k.id == name] or found
        if not found:
            raise NotFound(EVENT + ".find", f"no key {name!r}")
        if len(found) > 1:
            raise Conflict(
                EVENT + ".find", f"several keys named {name!r}; use the id"
            )
        return found[0]

    def set_policy(self, key_id: str, policy: dict[str, Any]) -> Key:
        answer = self._rest.call("PUT", f"/v1/keys/{key_id}/policy", policy)
        return self._kept(self._key(answer), policy)

    def delete(self, key_id: str) -> None:
        self._rest.call("DELETE", f"/v1/keys/{key_id}")

    def deliver(self, key_id: str) -> Secret:
        """The key itself, through a key pair that lives for this call.

        :raises VerificationError: ``core.jose.*``.
        :raises InputError: ``client.kms.deliver``: not 32 bytes.
        """
        own = jose.generate_key()
        answer = self._rest.call(
            "POST", f"/v1/keys/{key_id}/deliver", {"jwk": jose.public(own)}
        )
        fields = Fields(answer, EVENT + ".deliver")
        jwe = fields.text("jwe", maximum=65536)
        fields.end()
        dek = Secret(jose.unwrap(jwe, own, APV_DELIVER))
        if len(dek.reveal()) != 32:
            raise InputError(EVENT + ".deliver", "the key is not 32 bytes")
        return dek

    def snapshot(self, key_id: str) -> Any:
        """What the key of a snapshot comes from; nothing is verified yet.

        :raises NotFound: ``kms.snapshot.unknown``.
        """
        return self._rest.call("GET", f"/v1/keys/{key_id}/snapshot")

    # -- manifests, tickets, audit ---------------------------------------

    def add_manifest(self, key_id: str, manifest: str) -> str:
        """Digest (hex) under which policies know it."""
        answer = self._rest.call(
            "POST", f"/v1/keys/{key_id}/manifests", {"manifest": manifest}
        )
        fields = Fields(answer, EVENT + ".manifest")
        digest = fields.hex("digest", 32).hex()
        fields.end()
        return digest

    def delete_manifest(self, key_id: str, digest: str) -> None:
        self._rest.call("DELETE", f"/v1/keys/{key_id}/manifests/{digest}")

    def ticket(
        self, key_id: str, digests: list[str], count: int = 1, ttl: int = 600
    ) -> Ticket:
        """:param ttl: seconds."""
        answer = self._rest.call(
            "POST",
            f"/v1/keys/{key_id}/tickets",
            {"manifest_digests": digests, "count": count, "ttl": ttl},
        )
        fields = Fields(answer, EVENT + ".ticket")
        text = fields.text("ticket", pattern=r"[A-Za-z0-9_\-]{16,64}")
        expires: Any = fields.take("expires_at", object)
        fields.end()
        return Ticket(Secret(text.encode()), str(expires))

    def tenure(self, key_id: str, instance: str) -> Tenure:
        """Which hosts run an instance, and until when they may."""
        path = f"/v1/keys/{key_id}/instances/{instance}"
        return Tenure.parse(self._rest.call("GET", path))

    def revoke(self, key_id: str, instance: str, revoked: bool) -> Tenure:
        """End every lease of an instance and allow no other, or undo it.

        :raises VerificationError: ``client.kms.revoke``: the server did not
            do so.
        """
        path = f"/v1/keys/{key_id}/instances/{instance}"
        answer = self._rest.call("PUT", path, {"revoked": revoked})
        tenure = Tenure.parse(answer)
        if (tenure.instance, tenure.revoked) != (instance, revoked):
            raise VerificationError(
                EVENT + ".revoke", "the key server answers something else"
            )
        return tenure

    def audit(self, key_id: str, after: int = 0) -> list[dict[str, Any]]:
        """Records of one key behind number ``after``, newest last."""
        found: list[dict[str, Any]] = []
        while page := self._audit_page(key_id, after):
            found += page
            last = page[-1].get("seq")
            if not isinstance(last, int) or last <= after:
                raise InputError(EVENT + ".audit", "records out of order")
            after = last
        return found

    def _audit_page(self, key_id: str, after: int) -> list[dict[str, Any]]:
        answer = self._rest.call(
            "GET", f"/v1/keys/{key_id}/audit", params={"after": str(after)}
        )
        fields = Fields(answer, EVENT + ".audit")
        records = fields.take("records", list)
        fields.end()
        if not all(isinstance(record, dict) for record in records):
            raise InputError(EVENT + ".audit", "not a list of records")
        return list(records)
