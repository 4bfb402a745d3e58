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

"""The server's own keys: one that clients wrap keys to on their way here,
and one that signs what this server says about leases."""

from dataclasses import dataclass

from mh_core import jose
from mh_core.encoding import canonical_json, parse_json
from mh_core.errors import Unavailable
from mh_core.lease import LeaseGrant
from mh_core.secret import Secret
from mh_kms.db.connection import Database
from mh_kms.key_stores.base import TRANSPORT, KeyStore
from mh_kms.ledger import Ledger

_LABEL = b"mh/kms-signing-key/v1"


@dataclass(frozen=True)
class TransportKey:
    """``secret`` holds the private JWK as JSON, ``signer`` the other one.

    :param signing: public key of the signatures, derived from the transport
        key: no key serves two algorithms, and none more is stored.
    """

    public: jose.Jwk
    secret: Secret
    signing: jose.Jwk
    signer: Secret

    @property
    def thumbprint(self) -> str:
        return str(self.public["kid"])

    def unwrap(self, token: str, apv: bytes) -> Secret:
        """:raises InputError: ``core.jose.token``.
        :raises VerificationError: ``core.jose.unwrap``, ``core.jose.apv``."""
        key = parse_json(self.secret.reveal())
        return Secret(jose.unwrap(token, key, apv))

    def sign(self, grant: LeaseGrant) -> str:
        """Compact JWS; nothing but answers about leases is signed."""
        return grant.sign(parse_json(self.signer.reveal()))


def create(ledger: Ledger, key_store: KeyStore) -> None:
    """Make the transport key where there is none yet."""
    key = jose.generate_key()
    name = jose.thumbprint(key)
    sealed = key_store.seal(name, TRANSPORT, Secret(canonical_json(key)))
    with ledger.transaction() as entry:
        if entry.connection.execute("select 1 from transport_keys").fetchone():
            return
        entry.connection.execute(
            "insert into transport_keys (id, thumbprint, sealed, created_at)"
            " values (?, ?, ?, ?)",
            (name[:36], name, sealed, entry.now),
        )
        entry.record("kms.transport-key.created", "", thumbprint=name)


def load(database: Database, key_store: KeyStore) -> TransportKey:
    """The newest one.

    That it opens also shows that the key store's key is the right one.

    :raises Unavailable: ``kms.transport-key``.
    :raises VerificationError: ``kms.key-store.sealed``.
    """
    row = database.fetch(
        "select thumbprint, sealed from transport_keys"
        " order by created_at desc limit 1"
    )
    if row is None:
        raise Unavailable(
            "kms.transport-key", "no transport key: mh-kms-manage db sync"
        )
    secret = key_store.open(row[0], TRANSPORT, row[1])
    key = parse_json(secret.reveal())
    signer = jose.derive_key(key, _LABEL)
    return TransportKey(
        jose.public(key),
        secret,
        jose.public(signer),
        Secret(canonical_json(signer)),
    )
