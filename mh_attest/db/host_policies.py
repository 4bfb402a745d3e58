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
"""Statements on host policies."""

import json

import sqlalchemy as sa

from mh_attest.db.tables import host_policies
from mh_attest.host_policy import HostPolicy
from mh_core.encoding import canonical_json

_BY_GROUP = sa.select(host_policies).where(
    host_policies.c.grp == sa.bindparam("value")
)


def get(connection: sa.Connection, group: str) -> HostPolicy | None:
    row = connection.execute(_BY_GROUP, {"value": group}).first()
    if row is None:
        return None
    return HostPolicy(
        group=group,
        pcrs={
            int(index): tuple(bytes.fromhex(value) for value in values)
            for index, values in json.loads(row.pcrs).items()
        },
        tags=json.loads(row.tags),
    )


def put(connection: sa.Connection, policy: HostPolicy, now: int) -> None:
    document = policy.document()
    values = {
        "pcrs": canonical_json(document["pcrs"]).decode(),
        "tags": canonical_json(policy.tags).decode(),
        "updated_at": now,
    }
    changed = connection.execute(
        sa.update(host_policies)
        .where(host_policies.c.grp == policy.group)
        .values(values)
    )
    if changed.rowcount == 0:
        connection.execute(
            sa.insert(host_policies).values(grp=policy.group, **values)
        )
