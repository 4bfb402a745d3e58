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
"""The first schema."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _required(name: str, kind: Any) -> "sa.Column[Any]":
    return sa.Column(name, kind, nullable=False)


def upgrade() -> None:
    op.create_table(
        "hosts",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("name", sa.String(255), nullable=False, unique=True),
        sa.Column("grp", sa.String(64), nullable=False, index=True),
        _required("tags", sa.Text()),
        sa.Column("ek_sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("ak_name", sa.String(68), nullable=False, unique=True),
        sa.Column("ak_spki", sa.String(64), nullable=False, unique=True),
        _required("ak_certificate", sa.Text()),
        _required("listener", sa.String(255)),
        sa.Column("listener_sha256", sa.String(64), nullable=True),
        _required("enrolled_at", sa.BigInteger()),
        _required("level", sa.String(16)),
        _required("event", sa.String(128)),
        _required("appraised_at", sa.BigInteger()),
        _required("expires_at", sa.BigInteger()),
        _required("reset_count", sa.BigInteger()),
        _required("restart_count", sa.BigInteger()),
    )
    op.create_table(
        "host_policies",
        sa.Column("grp", sa.String(64), primary_key=True),
        _required("pcrs", sa.Text()),
        _required("tags", sa.Text()),
        _required("updated_at", sa.BigInteger()),
    )
    op.create_table(
        "tokens",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        _required("roles", sa.String(255)),
        _required("created_at", sa.BigInteger()),
    )
    op.create_table(
        "vm_reports",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("instance", sa.String(36), nullable=False, index=True),
        _required("host", sa.String(255)),
        _required("nonce", sa.String(43)),
        _required("report", sa.Text()),
        _required("claims", sa.Text()),
        _required("evidence", sa.Text()),
        _required("created_at", sa.BigInteger()),
    )
    op.create_table(
        "spent_nonces",
        sa.Column("nonce", sa.String(43), primary_key=True),
        sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        _required("chain", sa.String(36)),
        _required("seq", sa.Integer()),
        _required("record", sa.LargeBinary()),
        _required("hash", sa.LargeBinary()),
        sa.UniqueConstraint("chain", "seq", name="uq_audit_chain_seq"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("chain", sa.String(36), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        _required("jws", sa.Text()),
    )
