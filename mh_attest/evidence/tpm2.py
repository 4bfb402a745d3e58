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
"""TPM 2.0 evidence: quote, certified bind key, TCG event log."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from cryptography import x509

from mh_attest.evidence.base import EvidenceDriver, Proof, Question
from mh_core.evidence import Evidence, verify_host
from mh_core.tpm import eventlog
from mh_core.tpm.public import Public
from mh_core.tpm.quote import extra_data


class Tpm2Evidence(EvidenceDriver):
    """The evidence of ``mh_core.evidence``."""

    def parse(self, value: Any) -> Evidence:
        return Evidence.parse(value)

    def key_name(self, evidence: Evidence) -> bytes:
        return Public.parse(evidence.ak_public).name

    def prove(
        self,
        evidence: Evidence,
        question: Question,
        enrollers: Sequence[x509.Certificate],
        now: datetime,
    ) -> Proof:
        # The claims may name the bind key; verify_host then shows that the
        # AK certified that very key.
        bind = Public.parse(evidence.bind_public)
        found = verify_host(
            evidence,
            extra=extra_data(
                question.label, question.nonce, question.claims(bind)
            ),
            enrollers=enrollers,
            now=now,
        )
        return Proof(
            identity=found.identity,
            key_name=found.ak.name,
            bind=found.bind,
            pcrs=found.pcrs,
            reset=found.quote.reset,
            restart=found.quote.restart,
            safe=found.quote.safe,
        )

    def log_mismatches(
        self, evidence: Evidence, proof: Proof
    ) -> list[tuple[int, str]]:
        replayed = eventlog.replay(eventlog.parse(evidence.event_log))
        found = []
        for index, value in sorted(proof.pcrs.items()):
            # A PCR that the log does not name was never extended, if the
            # log is complete.
            expected = replayed.get(index, bytes(32))
            if expected != value:
                found.append(
                    (
                        index,
                        f"the log gives {expected.hex()}, "
                        f"the quote {value.hex()}",
                    )
                )
        return found

    def command_lines(self, evidence: Evidence) -> tuple[str, ...]:
        return eventlog.command_lines(eventlog.parse(evidence.event_log))

    def log_digest(self, evidence: Evidence) -> bytes:
        return hashlib.sha256(evidence.event_log).digest()
