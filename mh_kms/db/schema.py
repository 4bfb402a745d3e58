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

"""Tables, as SQLAlchemy and alembic see them."""

from sqlalchemy import (
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

METADATA = MetaData()

#: A row stays after the key's deletion, without key material.
KEYS = Table(
    "keys",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("project", String(64), nullable=False, index=True),
    Column("created_at", Integer, nullable=False),
    Column("deleted_at", Integer),
    # counts every change; a decision made on an older one is void
    Column("revision", Integer, nullable=False),
    Column("policy", Text, nullable=False),
    Column("dek", LargeBinary),
    Column("overlay_root", LargeBinary),
)

MANIFESTS = Table(
    "manifests",
    METADATA,
    Column("key_id", String(36), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("jws", Text, nullable=False),
    Column("launch_policy", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
    PrimaryKeyConstraint("key_id", "digest"),
)

NONCES = Table(
    "nonces",
    METADATA,
    Column("nonce", LargeBinary, primary_key=True),
    Column("key_id", String(36), nullable=False),
    Column("expires_at", Integer, nullable=False, index=True),
)

TICKETS = Table(
    "tickets",
    METADATA,
    Column("hash", LargeBinary, primary_key=True),
    Column("key_id", String(36), nullable=False),
    Column("manifests", Text, nullable=False),
    Column("remaining", Integer, nullable=False),
    Column("expires_at", Integer, nullable=False),
)

#: Instances that a ticket was spent on.
INSTANCES = Table(
    "instances",
    METADATA,
    Column("key_id", String(36), nullable=False),
    Column("instance", String(36), nullable=False),
    Column("manifests", Text, nullable=False),
    Column("ticket", LargeBinary, nullable=False),
    Column("created_at", Integer, nullable=False),
    # the cloud's claim when the ticket was spent
    Column("project", String(64), nullable=False, server_default=""),
    # of the last release: name, and TPM Name (hex) of its AK
    Column("host", String(255), nullable=False, server_default=""),
    Column("ak_name", String(68), nullable=False, server_default=""),
    PrimaryKeyConstraint("key_id", "instance"),
)

#: Who runs, or ran, an instance; ``id`` is the number of the release's audit
#: record.  A row that has ended says why.
LEASES = Table(
    "leases",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("key_id", String(36), nullable=False),
    Column("instance", String(36), nullable=False),
    Column("host", String(255), nullable=False),
    Column("ak_name", String(68), nullable=False),
    Column("project", String(64), nullable=False),
    Column("manifest", String(64), nullable=False),
    Column("image", String(36), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("seconds", Integer, nullable=False),
    Column("granted_at", Integer, nullable=False),
    Column("renewed_at", Integer, nullable=False),
    Column("renewals", Integer, nullable=False, server_default="0"),
    Column("ended_at", Integer),
    Column("why", String(32), nullable=False, server_default=""),
    # a live migration that this holder named, and until when
    Column("handover_to", String(255), nullable=False, server_default=""),
    Column("handover_until", Integer, nullable=False, server_default="0"),
    # the holder that this one takes over from
    Column("parent", String(80), nullable=False, server_default=""),
    Column("erased_at", Integer),
    Index("ix_leases_instance", "key_id", "instance"),
)

#: Instances that their owner allows no host to start, or go on with.
REVOCATIONS = Table(
    "revocations",
    METADATA,
    Column("key_id", String(36), nullable=False),
    Column("instance", String(36), nullable=False),
    Column("created_at", Integer, nullable=False),
    PrimaryKeyConstraint("key_id", "instance"),
)

AUDIT = Table(
    "audit",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("chain", String(36), nullable=False),
    Column("seq", Integer, nullable=False),
    Column("key_id", String(36), nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    # whose routine records it is counted with; empty: it stays for ever
    Column("bucket", String(64), nullable=False, server_default=""),
    UniqueConstraint("chain", "seq"),
    Index("ix_audit_key_id", "key_id", "number"),
    Index("ix_audit_bucket", "bucket", "number"),
    sqlite_autoincrement=True,
)

#: Places of records that went; ``hash`` is that of the last one.
AUDIT_HOLES = Table(
    "audit_holes",
    METADATA,
    Column("chain", String(36), nullable=False),
    Column("first", Integer, nullable=False),
    Column("last", Integer, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    PrimaryKeyConstraint("chain", "first"),
)

TOKENS = Table(
    "tokens",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("project", String(64), nullable=False),
    Column("roles", String(255), nullable=False),
    Column("hash", LargeBinary, nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
    Column("revoked_at", Integer),
)

#: Releases for ``snapshot`` that a new key may follow, once.
SNAPSHOT_GRANTS = Table(
    "snapshot_grants",
    METADATA,
    # audit id of the release
    Column("release", String(64), primary_key=True),
    Column("key_id", String(36), nullable=False, index=True),
    Column("instance", String(36), nullable=False),
    Column("project", String(64), nullable=False),
    Column("image", String(36), nullable=False),
    Column("manifest", String(64), nullable=False),
    Column("ak_name", String(68), nullable=False),
    Column("expires_at", Integer, nullable=False),
    # digest (hex) of the claims that used it; empty: unused
    Column("used_by", String(64), nullable=False, server_default=""),
)

#: What the keys of snapshots come from: the host's proof, for the owner.
SNAPSHOTS = Table(
    "snapshots",
    METADATA,
    Column("key_id", String(36), primary_key=True),
    Column("source_key_id", String(36), nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", Integer, nullable=False),
)

TRANSPORT_KEYS = Table(
    "transport_keys",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("thumbprint", String(64), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", Integer, nullable=False),
)
