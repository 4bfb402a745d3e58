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

from mh_kms.policies import base

LIST = "mh_kms:audit:list"

RULES = [
    policy.DocumentedRuleDefault(
        LIST,
        base.READER,
        "Read the audit records of a key, deleted keys too.",
        [{"method": "GET", "path": "/v1/keys/{key_id}/audit"}],
    ),
]
