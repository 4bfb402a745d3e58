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

"""One HTTP request, as the handlers see it."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mh_core.encoding import parse_json
from mh_core.errors import InputError
from mh_core.fields import Fields
from mh_kms.db import keys
from mh_kms.db.keys import Key
from mh_kms.db.tokens import Caller
from mh_kms.errors import Unauthenticated
from mh_kms.parts import Parts

EVENT = "kms.api.body"


@dataclass(frozen=True)
class Answer:
    """:param body: JSON object, or None for an empty one (204)."""

    status: int = 200
    body: dict[str, Any] | None = None
    text: str | None = None
    content_type: str = "application/json"


@dataclass
class Call:
    """
    :param params: of the path.
    :param query: of the query string.
    :param origin: of this server, as the request was sent to it.
    """

    parts: Parts
    request_id: str
    path: str
    params: Mapping[str, str]
    query: Mapping[str, str]
    origin: str
    body: bytes = field(repr=False)
    identity: Caller | None = None

    @property
    def caller(self) -> Caller:
        """:raises Unauthenticated: ``kms.auth.token``."""
        if self.identity is None:
            raise Unauthenticated("kms.auth.token", "a valid token is needed")
        return self.identity

    @property
    def key_id(self) -> str:
        """:raises NotFound: ``kms.key.unknown``: it can name no key."""
        text = self.params["key_id"]
        try:
            if str(uuid.UUID(text)) == text:
                return text
        except ValueError:
            pass
        raise keys.unknown()

    def fields(self) -> Fields:
        """:raises InputError: ``kms.api.body``, ``core.json.*``."""
        return Fields(parse_json(self.body), EVENT)

    def empty(self) -> None:
        """:raises InputError: ``kms.api.body``: a body is not expected."""
        if self.body:
            raise InputError(EVENT, "no body is expected")

    def key(self, rule: str, deleted: bool = False) -> Key:
        """The key of the path, where the access rules let the caller.

        :raises NotFound: ``kms.key.unknown``.
        :raises Denied: ``kms.access.denied``.
        """
        find = keys.find if deleted else keys.get
        key = find(self.parts.database, self.key_id)
        self.parts.access.require(self.caller, rule, key.project)
        return key

    def who(self) -> dict[str, str]:
        """What every audit record about an owner's action says."""
        return {"caller": self.caller.name, "request_id": self.request_id}
