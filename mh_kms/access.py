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

"""Who may do what: access rules (oslo.policy) over tokens."""

import re

from oslo_config import cfg
from oslo_policy import policy as oslo_policy

from mh_core.errors import Denied, NotFound
from mh_kms import policies
from mh_kms.db import tokens
from mh_kms.db.connection import Database
from mh_kms.db.tokens import Caller
from mh_kms.errors import Unauthenticated

_BEARER = re.compile(r"[Bb]earer ([A-Za-z0-9._~+/=\-]{1,255})")


def authenticate(database: Database, header: str | None) -> Caller:
    """Who sent this ``Authorization`` header (RFC 6750, section 2.1).

    :raises Unauthenticated: ``kms.auth.token``.
    """
    found = _BEARER.fullmatch(header or "")
    caller = tokens.find(database, found[1].encode()) if found else None
    if caller is None:
        raise Unauthenticated("kms.auth.token", "a valid token is needed")
    return caller


class Access:
    """oslo.policy's enforcer with this server's rules and errors."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._enforcer = oslo_policy.Enforcer(conf)
        self._enforcer.register_defaults(policies.list_rules())
        self._enforcer.load_rules()

    def allowed(self, caller: Caller, rule: str, project: str) -> bool:
        return bool(
            self._enforcer.authorize(
                rule,
                {"project_id": project},
                {"roles": list(caller.roles), "project_id": caller.project},
                do_raise=False,
            )
        )

    def require(self, caller: Caller, rule: str, project: str) -> None:
        """:raises NotFound: ``kms.key.unknown``: a key of a project of which
        the caller may know nothing.
        :raises Denied: ``kms.access.denied``."""
        if self.allowed(caller, rule, project):
            return
        if caller.project != project and not self.allowed(
            caller, policies.VISIBLE, project
        ):
            raise NotFound("kms.key.unknown", "there is no such key")
        raise Denied("kms.access.denied", f"the rule {rule} does not allow it")
