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
"""Access rules (oslo.policy): which role may call what.

Not to be confused with host policies, which say what a host must measure.
"""

from typing import Any

from mh_attest.policies import (
    appraisal,
    audit,
    base,
    host,
    host_policy,
    trust,
    vm_report,
)


def list_rules() -> list[Any]:
    """Entry point of the oslo.policy sample generator."""
    return [
        rule
        for module in (
            base,
            host,
            host_policy,
            trust,
            appraisal,
            vm_report,
            audit,
        )
        for rule in module.RULES
    ]
