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

"""Releases for snapshots, and what the keys that followed come from."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "snapshot_grants",
        sa.Column("release", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(36), nullable=False, index=True),
        sa.Column("instance", sa.String(36), nullable=False),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("image", sa.String(36), nullable=False),
        sa.Column("manifest", sa.String(64), nullable=False),
        sa.Column("ak_name", sa.String(68), nullable=False),
        sa.Column("expires_at", sa.Integer, nullable=False),
        sa.Column("used_by", sa.String(64), nullable=False, server_default=""),
    )
    op.create_table(
        "snapshots",
        sa.Column("key_id", sa.String(36), primary_key=True),
        sa.Column("source_key_id", sa.String(36), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
    )
