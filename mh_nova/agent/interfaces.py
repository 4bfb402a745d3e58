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
"""What the launch side needs from the TPM side, and the other way round."""

from collections.abc import Callable
from typing import Any, Protocol

from mh_core.evidence import Evidence
from mh_core.request import KeyRequest

#: The request that waits for an answer from this key URL, or None.
Pending = Callable[[str], KeyRequest | None]


class Prover(Protocol):
    """Speaks for this host's TPM.

    It never quotes what a caller chose: each kind of evidence has a label
    of its own, and takes only a nonce and a digest.
    """

    @property
    def ak_certificate(self) -> str | None:
        """PEM, once the host is enrolled."""

    def ak_pem(self) -> str:
        """The AK's public key, PEM."""

    def check(self) -> None:
        """:raises MHError: the TPM does not answer."""

    def release_evidence(
        self, nonce: bytes, request_digest: bytes
    ) -> Evidence:
        """Evidence under ``LABEL_RELEASE``."""

    def snapshot_evidence(
        self, nonce: bytes, claims_digest: bytes
    ) -> Evidence:
        """Evidence under ``LABEL_SNAPSHOT``."""

    def host_evidence(self, nonce: bytes) -> Evidence:
        """Evidence under ``LABEL_HOST``."""

    def vm_evidence(self, nonce: bytes, claims_digest: bytes) -> Evidence:
        """Evidence under ``LABEL_VM``."""

    def migration_key_evidence(self, nonce: bytes, claims: bytes) -> Evidence:
        """Evidence under ``LABEL_MIGRATION_KEY``."""

    def migration_evidence(self, nonce: bytes, claims: bytes) -> Evidence:
        """Evidence under ``LABEL_MIGRATION``."""

    def unwrap(self, jwe: str, apv: bytes) -> bytes:
        """Open a JWE to this boot's bind key.

        :raises VerificationError: it does not open.
        :raises Unavailable: the TPM does not answer.
        """


class Handover(Protocol):
    """Leases, as far as a live migration concerns them."""

    def handover(self, instance: str, to: str) -> None:
        """Name the destination at the key server, before that asks for the
        instance's keys; empty takes it back.

        :raises MHError: of the key server.
        """

    def left(self, instance: str) -> None:
        """The guest runs elsewhere now.

        :raises MHError: of the key server.
        """


class Listener(Protocol):
    """HTTPS listener of the trust agent."""

    def __init__(self, conf: Any, prover: Any, pending: Pending) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...
