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
"""Who calls, and may they?"""

from typing import Any

from oslo_config import cfg
from oslo_policy import policy

from mh_attest.db import tokens
from mh_attest.errors import Unauthorized
from mh_attest.policies import list_rules
from mh_attest.service import Service
from mh_core.errors import Denied, InputError
from mh_core.secret import Secret

EVENT = "attest.auth"


class Gate:
    """Bearer tokens, and access rules on their roles."""

    def __init__(self, conf: cfg.ConfigOpts, service: Service) -> None:
        self._service = service
        self._enforcer: Any = policy.Enforcer(conf)
        self._enforcer.register_defaults(list_rules())
        self._enforcer.load_rules()

    def caller(self, header: str | None) -> tokens.Caller:
        """Whose token an ``Authorization`` header holds.

        :raises Unauthorized: ``attest.auth.token``.
        """
        kind, _space, text = (header or "").partition(" ")
        if kind.lower() != "bearer" or not text or len(text) > 128:
            raise Unauthorized(EVENT + ".token", "a bearer token is needed")
        try:
            digest = tokens.digest(Secret(text.strip().encode()))
        except InputError as exc:
            raise Unauthorized(exc.event, exc.message) from None
        with self._service.reading() as connection:
            found = tokens.find(connection, digest)
        if found is None:
            raise Unauthorized(EVENT + ".token", "the token is not known")
        return found

    def require(self, caller: tokens.Caller, rule: str) -> None:
        """:raises Denied: ``attest.auth.role``."""
        credentials = {"roles": list(caller.roles), "user_id": caller.name}
        if not self._enforcer.enforce(rule, {}, credentials):
            raise Denied(EVENT + ".role", "the token has not the role needed")
