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
"""The tables.  Times are whole seconds since the epoch, UTC."""

import sqlalchemy as sa

metadata = sa.MetaData()

#: An enrolled host.  ``id`` is the host id in its AK certificate; a row that
#: is gone is a host that nobody vouches for any more.
hosts = sa.Table(
    "hosts",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("grp", sa.String(64), nullable=False, index=True),
    sa.Column("tags", sa.Text, nullable=False),
    # SHA-256 of the EK certificate's DER: one TPM, one host.
    sa.Column("ek_sha256", sa.String(64), nullable=False, unique=True),
    # TPM Name of the AK; what an evidence is looked up by.
    sa.Column("ak_name", sa.String(68), nullable=False, unique=True),
    # SHA-256 of the AK's SubjectPublicKeyInfo, for the bare-AK request.
    sa.Column("ak_spki", sa.String(64), nullable=False, unique=True),
    sa.Column("ak_certificate", sa.Text, nullable=False),
    # Origin of the trust agent's listener, and its pin if there is one.
    sa.Column("listener", sa.String(255), nullable=False),
    sa.Column("listener_sha256", sa.String(64), nullable=True),
    sa.Column("enrolled_at", sa.BigInteger, nullable=False),
    # The last answer to a question of this server's own.
    sa.Column("level", sa.String(16), nullable=False),
    sa.Column("event", sa.String(128), nullable=False),
    sa.Column("appraised_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    # Highest counters in any verified quote of the AK.
    sa.Column("reset_count", sa.BigInteger, nullable=False),
    sa.Column("restart_count", sa.BigInteger, nullable=False),
)

#: Reference PCR values of a group of hosts.
host_policies = sa.Table(
    "host_policies",
    metadata,
    sa.Column("grp", sa.String(64), primary_key=True),
    sa.Column("pcrs", sa.Text, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)

#: Callers.  A token is 32 random bytes, so its SHA-256 needs no salt.
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("roles", sa.String(255), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

vm_reports = sa.Table(
    "vm_reports",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("instance", sa.String(36), nullable=False, index=True),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("nonce", sa.String(43), nullable=False),
    sa.Column("report", sa.Text, nullable=False),
    sa.Column("claims", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

#: Nonces that were used before they expired: the key says "once".
spent_nonces = sa.Table(
    "spent_nonces",
    metadata,
    sa.Column("nonce", sa.String(43), primary_key=True),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
)

#: Chained audit records; ``seq`` counts within a chain, from 1.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("chain", sa.String(36), nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("chain", "seq", name="uq_audit_chain_seq"),
)

#: Signed heads of the chains: what was there cannot be cut off unseen.
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("chain", sa.String(36), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("jws", sa.Text, nullable=False),
)
