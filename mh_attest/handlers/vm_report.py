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
"""VM reports and their nonces."""

from mh_attest import migration, nonce, vm_report
from mh_attest.db import vm_reports
from mh_attest.handlers.base import Answer, Call
from mh_core.encoding import b64u
from mh_core.fields import Fields


def give_nonce(call: Call) -> Answer:
    fields = Fields(call.body, "attest.nonce.body")
    purpose = fields.choice(
        "purpose",
        (vm_report.PURPOSE, migration.KEY_PURPOSE, migration.PURPOSE),
    )
    fields.end()
    service = call.service
    made = nonce.issue(
        service.authority.nonce_key, purpose, service.now(), service.random
    )
    return 200, {"nonce": b64u(made), "expires_in": nonce.LIFE}


def create(call: Call) -> Answer:
    request = vm_report.ReportRequest.parse(call.body)
    answer = vm_report.report(call.service, request, call.origin)
    call.audit = answer["audit"]
    return 200, answer


def index(call: Call) -> Answer:
    instance = Fields(dict(call.path), vm_report.EVENT + ".instance").uuid(
        "instance"
    )
    with call.service.reading() as connection:
        found = vm_reports.of_instance(connection, instance)
    return 200, {"reports": found}
