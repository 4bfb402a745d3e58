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

SHOW = "mh_kms:instances:show"
REVOKE = "mh_kms:instances:revoke"
_PATH = "/v1/keys/{key_id}/instances/{instance}"

RULES = [
    policy.DocumentedRuleDefault(
        SHOW,
        base.READER,
        "Show which host runs an instance, and until when it may.",
        [{"method": "GET", "path": _PATH}],
    ),
    policy.DocumentedRuleDefault(
        REVOKE,
        base.OWNER,
        "Forbid every host an instance, or allow it again.",
        [{"method": "PUT", "path": _PATH}],
    ),
]
