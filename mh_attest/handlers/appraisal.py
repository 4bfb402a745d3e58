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
"""Appraisals for relying parties."""

from mh_attest import appraisal
from mh_attest.handlers.base import Answer, Call


def create(call: Call) -> Answer:
    request = appraisal.AppraisalRequest.parse(call.body)
    answer, call.audit = appraisal.appraise(call.service, request, call.origin)
    return 200, answer


def compat(call: Call) -> Answer:
    request = appraisal.CompatRequest.parse(call.body)
    answer, call.audit = appraisal.appraise_compat(
        call.service, request, call.origin
    )
    return 200, answer
