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
"""What the agent asks and tells a key server about leases."""

from mh_core.errors import Denied, InputError, VerificationError
from mh_core.lease import LeaseGrant, LeaseRequest
from mh_nova.agent.kms import KmsClient
from mh_nova.agent.lease_store import LeaseRecord

EVENT = "agent.lease"


class LeaseClient:
    """One question and its signed answer."""

    def __init__(self, kms: KmsClient) -> None:
        self._kms = kms

    def ask(
        self, record: LeaseRecord, purpose: str, to: str = ""
    ) -> LeaseGrant:
        """
        :param purpose: of ``mh_core.lease.PURPOSES``.
        :raises Denied: ``agent.kms.*``, ``agent.lease.answer``.
        :raises Unavailable: ``agent.kms.unavailable``.
        :raises MHError: of the prover.
        """
        # always the native form, whichever the launch used
        url = self._kms.check_url(
            f"{record.origin}/v1/keys/{record.key_id}",
            record.key_id,
            record.compat,
        )
        request = LeaseRequest(
            key_id=record.key_id,
            kms_origin=record.origin,
            purpose=purpose,
            instance=record.instance,
            lease=record.lease,
            host=record.host,
            to=to,
        )
        token, nonce = self._kms.ask_lease(
            url, request.to_dict(), request.digest()
        )
        try:
            return LeaseGrant.verify(
                token, record.jwk, request.digest(), nonce
            )
        except (InputError, VerificationError) as exc:
            raise Denied(
                EVENT + ".answer",
                f"not an answer of the key server's ({exc.event})",
            ) from exc
