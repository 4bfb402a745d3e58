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

"""What an attestor is."""

import abc
from dataclasses import dataclass

from mh_core.evidence import Evidence
from mh_core.request import KeyRequest
from mh_kms.release_policy import Authority


@dataclass(frozen=True)
class Question:
    """What the authority is asked to judge.

    :param nonce: 32 bytes.
    :param audience: this server's origin.
    :param request_digest: 32 bytes; of the snapshot's claims for the
        purpose ``snapshot``.
    :param purpose: ``release`` or ``snapshot``: the label of the quote.
    """

    nonce: bytes
    audience: str
    request_digest: bytes
    evidence: Evidence
    purpose: str = "release"


@dataclass(frozen=True)
class Pending:
    """What an authority fetched from a host for the bare-AK form.

    :param result: compact JWT, not verified.
    """

    result: str
    request: KeyRequest
    evidence: Evidence


class Attestor(abc.ABC):
    """Brings questions to attestation authorities, and answers back.

    Security contract:

    * an attestor is a messenger: nothing it returns is believed before
      ``release_key`` has verified it (signature, issuer, audience, nonce,
      request, bind key, time), so the worst it can do is refuse service;
    * it contacts only origins that the server's operator has listed,
      whatever a release policy says: no redirects, no proxies from the
      environment, TLS with a checked certificate, bounded answers;
    * it waits a bounded time; silence is :class:`Unavailable`;
    * an authority's "no" is :class:`VerificationError` with the
      authority's event id; malformed answers are :class:`InputError`;
    * credentials never appear in an exception or a log;
    * safe to use from several threads.
    """

    @abc.abstractmethod
    def appraise(self, authority: Authority, question: Question) -> str:
        """Ask for a judgement; the attestation result, not verified.

        :raises VerificationError: the authority refused.
        :raises Unavailable: ``kms.authority.*``.
        :raises InputError: ``kms.authority.answer``.
        """

    @abc.abstractmethod
    def fetch(
        self,
        authority: Authority,
        nonce: bytes,
        audience: str,
        key_url: str,
        ak_pem: str,
    ) -> Pending:
        """Have the authority ask the AK's host for its pending launch.

        :raises VerificationError: refused, or nothing is pending.
        :raises Unavailable: ``kms.authority.*``.
        :raises InputError: ``kms.authority.answer``, ``core.*``.
        """
