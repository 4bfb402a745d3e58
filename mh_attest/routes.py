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
"""The whole REST interface: path, method, handler, access rule.

A rule of None: nobody is asked who they are (hosts prove it by evidence).
"""

from collections.abc import Callable

from mh_attest.handlers import (
    appraisal,
    audit,
    host,
    host_policy,
    migration,
    root,
    trust,
    vm_report,
)
from mh_attest.handlers.base import Answer, Call
from mh_attest.policies import appraisal as may_appraise
from mh_attest.policies import audit as may_audit
from mh_attest.policies import host as may_host
from mh_attest.policies import host_policy as may_policy
from mh_attest.policies import trust as may_trust
from mh_attest.policies import vm_report as may_report

Handler = Callable[[Call], Answer]
Route = tuple[Handler, str | None]

ROUTES: dict[str, dict[str, Route]] = {
    "/v1": {"GET": (root.show, None)},
    "/healthcheck": {"GET": (root.healthcheck, None)},
    "/v1/hosts": {
        "GET": (host.index, may_host.LIST),
        "POST": (host.enrol, may_host.ENROL),
    },
    "/v1/hosts/trust": {"POST": (trust.ask, may_trust.ASK)},
    "/v1/hosts/{host}": {
        "GET": (host.show, may_host.SHOW),
        "DELETE": (host.delete, may_host.DELETE),
    },
    "/v1/host-policies/{group}": {
        "GET": (host_policy.show, may_policy.SHOW),
        "PUT": (host_policy.put, may_policy.SET),
    },
    "/v1/host-policies/{group}/learn": {
        "POST": (host_policy.learn, may_policy.LEARN),
    },
    "/v1/appraisals": {"POST": (appraisal.create, may_appraise.APPRAISE)},
    "/v1/compat/appraisals": {
        "POST": (appraisal.compat, may_appraise.COMPAT),
    },
    "/v1/nonces": {"POST": (vm_report.give_nonce, None)},
    "/v1/vm-reports": {"POST": (vm_report.create, None)},
    "/v1/vm-reports/{instance}": {
        "GET": (vm_report.index, may_report.LIST),
    },
    "/v1/migration-certificates": {"POST": (migration.certificate, None)},
    "/v1/migrations": {"POST": (migration.create, None)},
    "/v1/audit": {"GET": (audit.index, may_audit.LIST)},
}
#: Query members by path; others are refused.
QUERY = {"/v1/audit": ("after",)}
