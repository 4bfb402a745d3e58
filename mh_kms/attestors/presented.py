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

"""An attestor that has its answer already (bare-AK form)."""

from mh_core.errors import Unavailable
from mh_kms.attestors.base import Attestor, Pending, Question
from mh_kms.release_policy import Authority


class PresentedResult(Attestor):
    """Answers for the one authority that has judged already.

    If the result is about anything else than the question, the caller's
    verification refuses it.
    """

    def __init__(self, authority: Authority, result: str) -> None:
        self._authority = authority
        self._result = result

    def appraise(self, authority: Authority, question: Question) -> str:
        if authority != self._authority:
            raise Unavailable("kms.authority.silent", "was not asked")
        return self._result

    def fetch(
        self,
        authority: Authority,
        nonce: bytes,
        audience: str,
        key_url: str,
        ak_pem: str,
    ) -> Pending:
        raise Unavailable("kms.authority.silent", "is not asked twice")
