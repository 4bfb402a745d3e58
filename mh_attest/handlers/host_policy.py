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
"""Host policies."""

from typing import Any

import sqlalchemy as sa

from mh_attest import host_policy
from mh_attest.db import host_policies, hosts
from mh_attest.enrolment import learn_policy
from mh_attest.handlers.base import Answer, Call
from mh_attest.host_policy import EVENT, HostPolicy
from mh_attest.listener import HOST_PATTERN
from mh_core.errors import NotFound
from mh_core.fields import Fields


def _group(call: Call) -> str:
    return call.name("group", host_policy.NAME, EVENT + ".group")


def _document(call: Call, policy: HostPolicy) -> dict[str, Any]:
    with call.service.reading() as connection:
        levels = hosts.levels(connection, policy.group)
    return {**policy.document(), "levels": levels}


def show(call: Call) -> Answer:
    group = _group(call)
    with call.service.reading() as connection:
        policy = host_policies.get(connection, group)
    if policy is None:
        raise NotFound(EVENT + ".unknown", "the group has no host policy")
    return 200, _document(call, policy)


def put(call: Call) -> Answer:
    policy = HostPolicy.parse(_group(call), call.body)
    now = call.service.now()

    def change(connection: sa.Connection) -> None:
        host_policies.put(connection, policy, now)
        hosts.expire(connection, policy.group)

    audit = call.service.journal.write(
        {
            "event": EVENT + ".set",
            "group": policy.group,
            "policy": policy.fingerprint(),
            **call.origin.record(),
        },
        change,
    )
    call.audit = audit
    return 200, {**_document(call, policy), "audit": audit}


def learn(call: Call) -> Answer:
    group = _group(call)
    fields = Fields(call.body, EVENT + ".body")
    name = fields.text("host", pattern=HOST_PATTERN)
    fields.end()
    policy, audit = learn_policy(call.service, group, name, call.origin)
    call.audit = audit
    return 200, {**_document(call, policy), "audit": audit}
