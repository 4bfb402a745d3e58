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

"""Who runs an instance, and whom the owner forbids it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("key_id", sa.String(36), nullable=False),
        sa.Column("instance", sa.String(36), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("ak_name", sa.String(68), nullable=False),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("manifest", sa.String(64), nullable=False),
        sa.Column("image", sa.String(36), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("seconds", sa.Integer, nullable=False),
        sa.Column("granted_at", sa.Integer, nullable=False),
        sa.Column("renewed_at", sa.Integer, nullable=False),
        sa.Column("renewals", sa.Integer, nullable=False, server_default="0"),
        sa.Column("ended_at", sa.Integer),
        sa.Column("why", sa.String(32), nullable=False, server_default=""),
        sa.Column(
            "handover_to", sa.String(255), nullable=False, server_default=""
        ),
        sa.Column(
            "handover_until", sa.Integer, nullable=False, server_default="0"
        ),
        sa.Column("parent", sa.String(80), nullable=False, server_default=""),
        sa.Column("erased_at", sa.Integer),
    )
    op.create_index("ix_leases_instance", "leases", ["key_id", "instance"])
    op.create_table(
        "revocations",
        sa.Column("key_id", sa.String(36), nullable=False),
        sa.Column("instance", sa.String(36), nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "instance"),
    )
