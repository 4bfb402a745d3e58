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
"""Verbs about what is plugged into a guest; see :mod:`.attach`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mh_core.fields import Fields

if TYPE_CHECKING:
    from mh_nova.agent.verbs import Context


def attach(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    xml = fields.text("xml", maximum=64 * 1024)
    fields.end()
    event, detail = context.launcher.attach(instance, xml)
    return {"event": event, "detail": detail}


def attached(context: Context, fields: Fields) -> dict[str, Any]:
    instance = fields.uuid("instance")
    ok = fields.boolean("ok")
    fields.end()
    context.launcher.attached(instance, ok)
    return {}


VERBS: dict[str, Callable[[Context, Fields], dict[str, Any]]] = {
    "attach": attach,
    "attached": attached,
}
