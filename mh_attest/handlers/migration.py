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
"""Live migration: certificates, and the word about a destination."""

from mh_attest import migration, migration_ca
from mh_attest.handlers.base import Answer, Call


def certificate(call: Call) -> Answer:
    request = migration_ca.CertificateRequest.parse(call.body)
    answer = migration_ca.certify(call.service, request, call.origin)
    call.audit = str(answer.pop("audit"))
    return 200, answer


def create(call: Call) -> Answer:
    request = migration.Ask.parse(call.body)
    answer, call.audit = migration.vouch(call.service, request, call.origin)
    return 200, answer
