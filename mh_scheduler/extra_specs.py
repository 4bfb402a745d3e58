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
"""Validator of ``trust:trusted_host`` (``nova.api.extra_spec_validators``).

Once registered, Nova refuses any other name in the namespace ``trust:``, so
a misspelt flavor is refused when it is made (API microversion 2.86 on).
"""

from nova.api.validation.extra_specs import base

from mh_scheduler.names import EXTRA_SPEC, WANTED


def register() -> list[base.ExtraSpecValidator]:
    return [
        base.ExtraSpecValidator(
            name=EXTRA_SPEC,
            description=(
                "Launch only on hosts that the trust attestation server "
                "finds in this state."
            ),
            value={
                "type": str,
                "description": "Trust state of the host",
                "enum": list(WANTED),
            },
        )
    ]
