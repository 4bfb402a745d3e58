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

from mh_core.errors import InputError
from mh_kms import ledger
from mh_kms.api.call import Answer, Call
from mh_kms.policies import audit as rules

#: Records in one answer; ``after`` brings the next.
PAGE = 1000


def index(call: Call) -> Answer:
    """Records about a key, also about one that was destroyed."""
    key = call.key(rules.LIST, deleted=True)
    unknown = set(call.query) - {"after"}
    after = call.query.get("after", "0")
    if unknown or not after.isascii() or not after.isdigit():
        raise InputError("kms.api.query", "only after=<seq> is known here")
    if len(after) > 15:
        raise InputError("kms.api.query", "after is too large")
    found = ledger.records(call.parts.database, key.id, int(after), PAGE)
    return Answer(body={"records": found})
