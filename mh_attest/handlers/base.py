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
"""What a handler gets and gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mh_attest.service import Origin, Service
from mh_attest.trust import TrustBoard
from mh_core.errors import InputError
from mh_core.fields import Fields

#: HTTP status and JSON document; None for no content.
Answer = tuple[int, dict[str, Any] | None]


@dataclass
class Call:
    """One request, authenticated and parsed.

    :param body: the JSON document, None where there was none.
    :param path: members of the path.
    :param query: members of the query string.
    :param audit: set by the handler: the record of what was decided, which
        the answer carries as ``X-Audit-Id``.
    """

    service: Service
    board: TrustBoard
    origin: Origin
    body: Any = None
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    audit: str = ""

    def name(self, member: str, pattern: str, event: str) -> str:
        """:raises InputError: with ``event``."""
        return Fields({member: self.path[member]}, event).text(
            member, pattern=pattern
        )

    def number(self, member: str, event: str) -> int:
        """:raises InputError: with ``event``."""
        text = self.query.get(member, "0")
        if not text.isascii() or not text.isdigit() or len(text) > 15:
            raise InputError(event, f"{member!r} must be a whole number")
        return int(text)
