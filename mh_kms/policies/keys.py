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

CREATE = "mh_kms:keys:create"
LIST = "mh_kms:keys:list"
SHOW = "mh_kms:keys:show"
SET_POLICY = "mh_kms:keys:set_policy"
DELETE = "mh_kms:keys:delete"
DELIVER = "mh_kms:keys:deliver"

RULES = [
    policy.DocumentedRuleDefault(
        CREATE,
        base.OWNER,
        "Upload a key with its release policy.",
        [{"method": "POST", "path": "/v1/keys"}],
    ),
    policy.DocumentedRuleDefault(
        LIST,
        base.READER,
        "List a project's keys, without key material.",
        [{"method": "GET", "path": "/v1/keys"}],
    ),
    policy.DocumentedRuleDefault(
        SHOW,
        base.READER,
        "Show a key's document, without key material.",
        [{"method": "GET", "path": "/v1/keys/{key_id}"}],
    ),
    policy.DocumentedRuleDefault(
        SET_POLICY,
        base.OWNER,
        "Replace a key's release policy.",
        [{"method": "PUT", "path": "/v1/keys/{key_id}/policy"}],
    ),
    policy.DocumentedRuleDefault(
        DELETE,
        base.OWNER,
        "Destroy a key, and so every instance under it.",
        [{"method": "DELETE", "path": "/v1/keys/{key_id}"}],
    ),
    policy.DocumentedRuleDefault(
        DELIVER,
        base.OWNER,
        "Have a key wrapped to a key of one's own.",
        [{"method": "POST", "path": "/v1/keys/{key_id}/deliver"}],
    ),
]
