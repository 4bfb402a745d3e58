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
"""The prover: evidence about this host, and the opening of wrapped keys.

It chooses every byte that is quoted: a label for the purpose, the verifier's
nonce and claims made here.  There is no way to have other bytes signed.
"""

import hashlib
import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from mh_core import jose
from mh_core.akcert import load_certificate
from mh_core.errors import Unavailable, VerificationError
from mh_core.evidence import (
    MAX_EVENT_LOG,
    QUOTED,
    Evidence,
    release_claims,
)
from mh_core.tpm.public import Public
from mh_core.tpm.quote import (
    LABEL_HOST,
    LABEL_MIGRATION,
    LABEL_MIGRATION_KEY,
    LABEL_RELEASE,
    LABEL_SNAPSHOT,
    LABEL_VM,
    extra_data,
)
from mh_nova.agent.evidence import BindKey, Identity
from mh_nova.agent.tpm import Tpm

LOG = logging.getLogger(__name__)
#: Bind keys of this boot that are remembered (one for each PCR state).
_KEPT = 4


class Prover:
    """
    :param tpm: this host's TPM.
    :param state_dir: where the AK certificate is kept; nothing secret.
    :param event_log: path of the TCG event log, or empty.
    """

    def __init__(self, tpm: Tpm, state_dir: str, event_log: str) -> None:
        self._tpm = tpm
        self._certificate = Path(state_dir) / "ak-certificate.pem"
        self._event_log = event_log
        self._lock = threading.Lock()
        self._binds: list[BindKey] = []

    # -- identity --------------------------------------------------------

    def check(self) -> None:
        """:raises Unavailable: the TPM does not answer."""
        self._tpm.check()

    def identity(self) -> Identity:
        return self._tpm.identity()

    def activate(self, credential: bytes, secret: bytes) -> bytes:
        return self._tpm.activate(credential, secret)

    def ak_pem(self) -> str:
        """The AK as SubjectPublicKeyInfo, PEM: the seed's request body."""
        return self._tpm.ak().pem()

    @property
    def ak_certificate(self) -> str | None:
        """PEM, or None before the enrolment."""
        try:
            return self._certificate.read_text()
        except FileNotFoundError:
            return None

    def set_ak_certificate(self, pem: str) -> None:
        """Keep what the enroller issued, if it is for this AK.

        :raises InputError: not a certificate.
        :raises VerificationError: ``agent.prover.certificate``.
        """
        certificate = load_certificate(pem)
        if certificate.public_key() != self._tpm.ak().key:
            raise VerificationError(
                "agent.prover.certificate", "the certificate is of another AK"
            )
        temporary = self._certificate.with_suffix(".new")
        temporary.write_text(pem)
        os.replace(temporary, self._certificate)

    # -- evidence --------------------------------------------------------

    def release_evidence(
        self, nonce: bytes, request_digest: bytes
    ) -> Evidence:
        """For a key server: over its nonce and our own request."""
        return self._evidence(
            LABEL_RELEASE,
            nonce,
            lambda bind: release_claims(request_digest, bind),
        )

    def host_evidence(self, nonce: bytes) -> Evidence:
        """For the attestation server: the state of the host."""
        return self._evidence(LABEL_HOST, nonce, lambda bind: bind.name)

    def snapshot_evidence(
        self, nonce: bytes, claims_digest: bytes
    ) -> Evidence:
        """For a key server: what this host made of a disk."""
        return self._evidence(
            LABEL_SNAPSHOT,
            nonce,
            lambda bind: release_claims(claims_digest, bind),
        )

    def vm_evidence(self, nonce: bytes, claims_digest: bytes) -> Evidence:
        """For a VM report."""
        return self._evidence(LABEL_VM, nonce, lambda bind: claims_digest)

    def migration_key_evidence(self, nonce: bytes, claims: bytes) -> Evidence:
        """For the attestation server: this host holds a migration key."""
        return self._evidence(LABEL_MIGRATION_KEY, nonce, lambda bind: claims)

    def migration_evidence(self, nonce: bytes, claims: bytes) -> Evidence:
        """For the attestation server: this host asks about another."""
        return self._evidence(LABEL_MIGRATION, nonce, lambda bind: claims)

    def _evidence(
        self, label: str, nonce: bytes, claims: Callable[[Public], bytes]
    ) -> Evidence:
        certificate = self.ak_certificate
        if certificate is None:
            raise Unavailable(
                "agent.prover.not-enrolled",
                "the host is not enrolled: openstack trusted host enrol",
            )
        bind = self._bind()
        extra = extra_data(label, nonce, claims(bind.public))
        quote = self._tpm.quote(extra, QUOTED)
        return Evidence(
            ak_certificate=certificate,
            ak_public=self._tpm.ak().raw,
            bind_public=bind.public.raw,
            bind_attest=bind.attest,
            bind_signature=bind.signature,
            quote_attest=quote.attest,
            quote_signature=quote.signature,
            pcrs=quote.pcrs,
            event_log=self._read_event_log(),
        )

    def _bind(self) -> BindKey:
        """The bind key for the state of now; a new one where it changed.

        A new key after a change gives away nothing: whoever wraps to it sees
        the new PCR values in the quote and judges them.
        """
        with self._lock:
            if self._binds and self._tpm.holds(self._binds[-1]):
                return self._binds[-1]
            bind = self._tpm.make_bind()
            self._binds = [*self._binds[1 - _KEPT :], bind]
            LOG.info(
                "agent.prover.bind-key: new bind key %s",
                hashlib.sha256(bind.public.name).hexdigest()[:16],
            )
            return bind

    def _read_event_log(self) -> bytes:
        if not self._event_log:
            return b""
        try:
            fd = os.open(self._event_log, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise Unavailable(
                "agent.prover.event-log", "the event log cannot be read"
            ) from exc
        with os.fdopen(fd, "rb") as log:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Unavailable(
                    "agent.prover.event-log", "the event log is not a file"
                )
            data = log.read(MAX_EVENT_LOG + 1)
        if len(data) > MAX_EVENT_LOG:
            raise Unavailable(
                "agent.prover.event-log", "the event log is too large"
            )
        return data

    # -- keys ------------------------------------------------------------

    def unwrap(self, jwe: str, apv: bytes) -> bytes:
        """Open a JWE made for one of this boot's bind keys.

        :param apv: digest of our own request, recomputed by the caller.
        :raises InputError: not such a token.
        :raises VerificationError: ``core.jose.*``, ``agent.tpm.policy``,
            ``agent.tpm.boot``, ``agent.prover.bind-key``.
        :raises Unavailable: the TPM does not answer.
        """
        kid = jose.recipient(jwe)
        with self._lock:
            known = list(self._binds)
        for bind in known:
            if jose.thumbprint(bind.public.jwk()) == kid:
                return self._open(bind, jwe, apv)
        raise VerificationError(
            "agent.prover.bind-key",
            "wrapped to a bind key that this boot does not have",
        )

    def _open(self, bind: BindKey, jwe: str, apv: bytes) -> bytes:
        if bind.public.jwk()["kty"] == "EC":
            return jose.open_with_z(
                jwe, lambda x, y: self._tpm.zgen(bind, x, y), apv
            )
        encrypted, finish = jose.oaep_parts(jwe, apv)
        return finish(self._tpm.rsa_decrypt(bind, encrypted))
