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

from oslo_policy import policy

OWNER = "rule:mh_kms:project_owner"
READER = "rule:mh_kms:project_reader"
#: Whoever fails this is told that the key does not exist.
VISIBLE = "mh_kms:visible"

RULES = [
    policy.RuleDefault(
        "mh_kms:project_owner",
        "role:owner and project_id:%(project_id)s",
        "Owner of the project that the key belongs to.",
    ),
    policy.RuleDefault(
        "mh_kms:project_reader",
        "role:admin or ((role:owner or role:auditor)"
        " and project_id:%(project_id)s)",
        "May read about keys, never a key: owner and auditor of the"
        " project, administrator of the server.",
    ),
    policy.RuleDefault(
        VISIBLE,
        READER,
        "May know that a key exists; to others it is not found.",
    ),
]
