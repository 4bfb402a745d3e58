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

from mh_kms.policy_checks.base import Facts, PolicyCheck


class ProjectCheck(PolicyCheck):
    """The cloud says that the launch is of a project listed."""

    name = "project"

    def check(self, facts: Facts) -> None:
        if facts.request.project not in facts.policy.projects:
            raise self.denied("the project is not one that the policy lists")
