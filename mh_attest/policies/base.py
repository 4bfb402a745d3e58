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
"""Roles that the other access rules are made of."""

from oslo_policy import policy

OPERATOR = "rule:operator"
READER = "rule:reader"
RELYING = "rule:relying"

RULES = [
    policy.RuleDefault(
        "operator", "role:operator", description="Enrols hosts, sets policy."
    ),
    policy.RuleDefault(
        "reader",
        "role:reader or role:operator",
        description="Asks for states and reports, e.g. a scheduler.",
    ),
    policy.RuleDefault(
        "relying",
        "role:relying",
        description="Has hosts appraised: a key server.",
    ),
]


def documented(
    name: str, rule: str, what: str, method: str, path: str
) -> policy.DocumentedRuleDefault:
    return policy.DocumentedRuleDefault(
        name=name,
        check_str=rule,
        description=what,
        operations=[{"method": method, "path": path}],
    )
