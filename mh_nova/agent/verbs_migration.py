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
"""The verbs around a live migration: the reading of each request."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mh_core.fields import Fields
from mh_core.migration import HOST

if TYPE_CHECKING:
    from mh_nova.agent.verbs import Context

#: Instances of a kind in one answer; the rest is asked for later.
_MOST = 256


def migration(context: Context, fields: Fields) -> dict[str, Any]:
    fields.end()
    found = context.launcher.migration()
    return {"expires_at": found.expires_at}


def migrate_offer(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    destination = fields.text("destination", pattern=f"|{HOST}")
    fields.end()
    context.launcher.migrate_offer(instance, destination)
    return {}


def migrate_left(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    fields.end()
    context.launcher.migrate_left(instance)
    return {}


def migrate_out(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    destination = fields.text("destination", pattern=HOST)
    fields.end()
    return context.launcher.migrate_out(instance, destination)


def migrate_in(context: Context, fields: Fields) -> dict[str, Any]:
    """Asked by libvirt's hook about every guest that comes in."""
    instance = fields.uuid("instance")
    xml = fields.text("xml", maximum=1024 * 1024)
    fields.end()
    if not context.ours.why(instance) and not context.ours.named(
        instance, xml
    ):
        return {"ours": False, "event": "", "detail": ""}
    event, detail = context.launcher.migrate_in(instance, xml)
    return {"ours": True, "event": event, "detail": detail}


def unfinished(context: Context, fields: Fields) -> dict[str, Any]:
    fields.end()
    incoming, offered = context.launcher.unfinished()
    return {"incoming": incoming[:_MOST], "offered": offered[:_MOST]}


VERBS: dict[str, Callable[[Context, Fields], dict[str, Any]]] = {
    "migration": migration,
    "migrate-offer": migrate_offer,
    "migrate-left": migrate_left,
    "migrate-out": migrate_out,
    "migrate-in": migrate_in,
    "unfinished": unfinished,
}
