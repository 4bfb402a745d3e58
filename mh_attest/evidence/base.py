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
"""The contract of an evidence driver (namespace ``mh_attest.evidence``)."""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509

from mh_core.akcert import AkIdentity
from mh_core.tpm.public import Public


@dataclass(frozen=True)
class Question:
    """What the evidence must be an answer to.

    :param label: purpose, one of ``mh_core.tpm.quote.LABEL_*``.
    :param nonce: 32 bytes, chosen by whoever asks.
    :param claims: the claims the quote covers, given the bind key.
    """

    label: str
    nonce: bytes
    claims: Callable[[Public], bytes]


@dataclass(frozen=True)
class Proof:
    """What an evidence proved.

    :param key_name: Name of the attestation key that signed it.
    :param bind: the key of this boot that keys are wrapped to.
    :param pcrs: quoted PCR index to value (32 bytes).
    :param reset: resets of the TPM; ``restart``: restarts since.
    :param safe: the TPM never reported a greater clock.
    """

    identity: AkIdentity
    key_name: bytes
    bind: Public
    pcrs: Mapping[int, bytes]
    reset: int
    restart: int
    safe: bool


class EvidenceDriver(abc.ABC):
    """Reads and checks one kind of evidence.

    Security contract:

    * pure: no I/O, no clock, no state; the same input gives the same answer;
    * evidence is hostile: what is malformed or proves nothing leaves as
      :class:`mh_core.errors.InputError` or ``VerificationError``, never as
      another exception, and never as a return value;
    * :meth:`prove` believes nothing that is not covered by the signature of
      a hardware key that an enroller in ``enrollers`` certified, over
      exactly the given question;
    * :meth:`log_mismatches` and :meth:`command_lines` tell what the *proven*
      measurements say; a command line is returned only where the log's
      digest covers it.
    """

    @abc.abstractmethod
    def parse(self, value: Any) -> Any:
        """Read the JSON form.

        :raises InputError: not an evidence of this kind.
        """

    @abc.abstractmethod
    def key_name(self, evidence: Any) -> bytes:
        """Name of the key it claims to be signed by; unverified.

        :raises InputError: there is none.
        """

    @abc.abstractmethod
    def prove(
        self,
        evidence: Any,
        question: Question,
        enrollers: Sequence[x509.Certificate],
        now: datetime,
    ) -> Proof:
        """Check everything that cryptography can check.

        :raises InputError: malformed structures.
        :raises VerificationError: it does not prove what it must.
        """

    @abc.abstractmethod
    def log_mismatches(
        self, evidence: Any, proof: Proof
    ) -> list[tuple[int, str]]:
        """(PCR, why) where the event log does not explain the quote.

        :raises MHError: the log cannot be read.
        """

    @abc.abstractmethod
    def command_lines(self, evidence: Any) -> tuple[str, ...]:
        """Kernel command lines that the event log authenticates.

        Called only where :meth:`log_mismatches` found none.
        """

    @abc.abstractmethod
    def log_digest(self, evidence: Any) -> bytes:
        """SHA-256 of the event log: with equal digest, equal judgement."""
