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
"""Statements on enrolled hosts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from mh_attest.db.tables import hosts
from mh_core.encoding import canonical_json
from mh_core.errors import Conflict

#: What a trust question may be answered.
UNKNOWN = "unknown"
UNTRUSTED = "untrusted"


@dataclass(frozen=True)
class Host:
    """One row of ``hosts``; see the table for the meanings."""

    id: str
    name: str
    grp: str
    tags: dict[str, str]
    ek_sha256: str
    ak_name: str
    ak_spki: str
    ak_certificate: str
    listener: str
    listener_sha256: str | None
    enrolled_at: int
    level: str
    event: str
    appraised_at: int
    expires_at: int
    reset_count: int
    restart_count: int

    def document(self) -> dict[str, Any]:
        """The host document of the REST interface."""
        return {
            "host": self.name,
            "host_id": self.id,
            "group": self.grp,
            "tags": self.tags,
            "ek_sha256": self.ek_sha256,
            "ak_name": self.ak_name,
            "ak_certificate": self.ak_certificate,
            "listener": self.listener,
            "enrolled_at": self.enrolled_at,
            "level": self.level,
            "event": self.event,
            "appraised_at": self.appraised_at,
            "reset_count": self.reset_count,
        }


def _host(row: Any) -> Host:
    values = dict(row._mapping)
    values["tags"] = json.loads(values["tags"])
    return Host(**values)


def _values(host: Host) -> dict[str, Any]:
    return {**vars(host), "tags": canonical_json(host.tags).decode()}


def _by(column: Any) -> Any:
    # Made once: building an expression costs more than running it.
    return sa.select(hosts).where(column == sa.bindparam("value"))


_BY_NAME = _by(hosts.c.name)
_BY_AK_NAME = _by(hosts.c.ak_name)
_BY_AK_SPKI = _by(hosts.c.ak_spki)


def _one(connection: sa.Connection, query: Any, value: str) -> Host | None:
    row = connection.execute(query, {"value": value}).first()
    return None if row is None else _host(row)


def by_name(connection: sa.Connection, name: str) -> Host | None:
    return _one(connection, _BY_NAME, name)


def by_ak_name(connection: sa.Connection, ak_name: bytes) -> Host | None:
    return _one(connection, _BY_AK_NAME, ak_name.hex())


def by_ak_spki(connection: sa.Connection, digest: str) -> Host | None:
    return _one(connection, _BY_AK_SPKI, digest)


def by_names(
    connection: sa.Connection, names: Sequence[str]
) -> dict[str, Host]:
    found: dict[str, Host] = {}
    # SQLite once took no more than 999 parameters.
    for start in range(0, len(names), 500):
        some = names[start : start + 500]
        rows = connection.execute(
            sa.select(hosts).where(hosts.c.name.in_(some))
        )
        for row in rows:
            host = _host(row)
            found[host.name] = host
    return found


def every(connection: sa.Connection) -> list[Host]:
    rows = connection.execute(sa.select(hosts).order_by(hosts.c.name))
    return [_host(row) for row in rows]


def levels(connection: sa.Connection, group: str) -> list[str]:
    """Levels that the hosts of a group have now, sorted."""
    rows = connection.execute(
        sa.select(hosts.c.level).where(hosts.c.grp == group).distinct()
    )
    return sorted(str(row[0]) for row in rows)


def clash(connection: sa.Connection, host: Host) -> None:
    """Refuse a host that shares an identity with another one.

    :raises Conflict: ``attest.enrol.conflict``.
    """
    rows = connection.execute(
        sa.select(hosts).where(
            sa.or_(
                hosts.c.name == host.name,
                hosts.c.id == host.id,
                hosts.c.ek_sha256 == host.ek_sha256,
                hosts.c.ak_name == host.ak_name,
            )
        )
    )
    for row in rows:
        other = _host(row)
        if other.name != host.name:
            raise Conflict(
                "attest.enrol.conflict",
                "this TPM or host id is enrolled as another host",
            )
        if (other.id, other.ek_sha256, other.ak_name) != (
            host.id,
            host.ek_sha256,
            host.ak_name,
        ):
            raise Conflict(
                "attest.enrol.conflict",
                "the host is enrolled with another EK, AK or host id; "
                "delete it first",
            )


def put(connection: sa.Connection, host: Host) -> None:
    """Store a host, or a known one's renewed enrolment.

    :raises Conflict: ``attest.enrol.conflict``.
    """
    clash(connection, host)
    changed = connection.execute(
        sa.update(hosts).where(hosts.c.id == host.id).values(_values(host))
    )
    if changed.rowcount == 0:
        connection.execute(sa.insert(hosts).values(_values(host)))


def delete(connection: sa.Connection, name: str) -> bool:
    done = connection.execute(sa.delete(hosts).where(hosts.c.name == name))
    return done.rowcount == 1


def set_state(
    connection: sa.Connection,
    host_id: str,
    level: str,
    event: str,
    now: int,
    expires_at: int,
) -> None:
    """Keep an answer; a host deleted meanwhile stays deleted.

    An answer older than the one there does not replace it.
    """
    connection.execute(
        sa.update(hosts)
        .where(hosts.c.id == host_id, hosts.c.appraised_at <= now)
        .values(
            level=level,
            event=event,
            appraised_at=now,
            expires_at=expires_at,
        )
    )


def set_counters(
    connection: sa.Connection, host_id: str, reset: int, restart: int
) -> None:
    """Raise the counters seen; never lowers them.

    A host that restarted has lost the state that was judged.
    """
    connection.execute(
        sa.update(hosts)
        .where(
            hosts.c.id == host_id,
            sa.or_(
                hosts.c.reset_count < reset,
                sa.and_(
                    hosts.c.reset_count == reset,
                    hosts.c.restart_count < restart,
                ),
            ),
        )
        .values(reset_count=reset, restart_count=restart, expires_at=0)
    )


def expire(connection: sa.Connection, group: str) -> None:
    """Make every host of a group be judged anew."""
    connection.execute(
        sa.update(hosts).where(hosts.c.grp == group).values(expires_at=0)
    )
