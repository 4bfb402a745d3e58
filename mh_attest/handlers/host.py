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
"""Enrolled hosts."""

import sqlalchemy as sa

from mh_attest.db import hosts
from mh_attest.enrol import EnrolmentRequest
from mh_attest.enrolment import enrol_host
from mh_attest.handlers.base import Answer, Call
from mh_attest.listener import HOST_PATTERN
from mh_core.errors import NotFound

EVENT = "attest.host"


def enrol(call: Call) -> Answer:
    request = EnrolmentRequest.parse(call.body)
    host, audit = enrol_host(call.service, request, call.origin)
    call.audit = audit
    return 201, {**host.document(), "audit": audit}


def index(call: Call) -> Answer:
    with call.service.reading() as connection:
        found = hosts.every(connection)
    return 200, {"hosts": [host.document() for host in found]}


def show(call: Call) -> Answer:
    name = call.name("host", HOST_PATTERN, EVENT + ".name")
    with call.service.reading() as connection:
        host = hosts.by_name(connection, name)
    if host is None:
        raise NotFound(EVENT + ".unknown", "no such host is enrolled")
    return 200, host.document()


def delete(call: Call) -> Answer:
    name = call.name("host", HOST_PATTERN, EVENT + ".name")

    def change(connection: sa.Connection) -> None:
        if not hosts.delete(connection, name):
            raise NotFound(EVENT + ".unknown", "no such host is enrolled")

    call.audit = call.service.journal.write(
        {"event": EVENT + ".deleted", "host": name, **call.origin.record()},
        change,
    )
    return 204, None
