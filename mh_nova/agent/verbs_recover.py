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

"""The verbs by which a nova-compute that begins clears up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mh_core.fields import Fields

if TYPE_CHECKING:
    from mh_nova.agent.verbs import Context

#: Instances in one answer; the rest is asked for later.
_MOST = 256


def sweep(context: Context, fields: Fields) -> dict[str, Any]:
    fields.end()
    context.launcher.sweep()
    return {}


def abandoned(context: Context, fields: Fields) -> dict[str, Any]:
    fields.end()
    return {"instances": context.launcher.abandoned()[:_MOST]}


VERBS: dict[str, Callable[[Context, Fields], dict[str, Any]]] = {
    "sweep": sweep,
    "abandoned": abandoned,
}
