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
"""Host evidence: what a host sends to prove its state, and its checking.

:func:`verify_host` is the cryptographic half of every trust decision about
a host; the key server and the attestation server both run it themselves.
Whether the PCR values are *good* is the attestation server's judgement.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509

from mh_core.akcert import AkIdentity, verify_ak_certificate
from mh_core.encoding import b64u
from mh_core.errors import InputError, VerificationError
from mh_core.fields import Fields
from mh_core.tpm.attest import Attest, check_primary
from mh_core.tpm.constants import RH_NULL
from mh_core.tpm.policy import policy_pcr
from mh_core.tpm.public import Public, check_ak, check_bind
from mh_core.tpm.quote import (
    LABEL_BIND,
    extra_data,
    verify_certify,
    verify_quote,
)

EVENT = "core.evidence"
#: PCRs in every quote.
QUOTED = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
#: PCRs that the bind key's policy holds it to.
BOUND = (0, 2, 4, 7, 8, 9)
MAX_EVENT_LOG = 1024 * 1024


@dataclass(frozen=True)
class Evidence:
    """As sent: nothing in it is believed before :func:`verify_host`.

    :param ak_certificate: PEM, issued by an enroller.
    :param ak_public: TPMT_PUBLIC.
    :param bind_public: TPMT_PUBLIC of this boot's bind key.
    :param bind_attest: TPMS_ATTEST of TPM2_Certify(bind, AK).
    :param quote_attest: TPMS_ATTEST of TPM2_Quote.
    :param pcrs: PCR index to SHA-256 value (32 bytes).
    :param event_log: TCG crypto-agile log, may be empty.
    """

    ak_certificate: str
    ak_public: bytes
    bind_public: bytes
    bind_attest: bytes
    bind_signature: bytes
    quote_attest: bytes
    quote_signature: bytes
    pcrs: dict[int, bytes]
    event_log: bytes = b""

    @classmethod
    def parse(cls, value: Any) -> "Evidence":
        """:raises InputError: ``core.evidence``."""
        fields = Fields(value, EVENT)
        pcrs: dict[int, bytes] = {}
        for name, text in fields.object("pcrs").items():
            if name not in _PCR_NAMES or not isinstance(text, str):
                raise InputError(EVENT, "pcrs: not a PCR number")
            one = Fields({"value": text}, EVENT)
            pcrs[int(name)] = one.hex("value", 32)
        evidence = cls(
            ak_certificate=fields.text("ak_certificate", maximum=8192),
            ak_public=fields.b64u("ak_public", maximum=1024),
            bind_public=fields.b64u("bind_public", maximum=1024),
            bind_attest=fields.b64u("bind_attest", maximum=1024),
            bind_signature=fields.b64u("bind_signature", maximum=1024),
            quote_attest=fields.b64u("quote_attest", maximum=1024),
            quote_signature=fields.b64u("quote_signature", maximum=1024),
            pcrs=pcrs,
            event_log=fields.b64u("event_log", maximum=MAX_EVENT_LOG),
        )
        fields.end()
        return evidence

    def to_dict(self) -> dict[str, Any]:
        return {
            "ak_certificate": self.ak_certificate,
            "ak_public": b64u(self.ak_public),
            "bind_public": b64u(self.bind_public),
            "bind_attest": b64u(self.bind_attest),
            "bind_signature": b64u(self.bind_signature),
            "quote_attest": b64u(self.quote_attest),
            "quote_signature": b64u(self.quote_signature),
            "pcrs": {str(i): v.hex() for i, v in sorted(self.pcrs.items())},
            "event_log": b64u(self.event_log),
        }


_PCR_NAMES = frozenset(str(i) for i in range(24))


@dataclass(frozen=True)
class VerifiedHost:
    """What the evidence proves about the host and its keys, now."""

    identity: AkIdentity
    ak: Public
    bind: Public
    quote: Attest
    pcrs: dict[int, bytes]


def release_claims(request_digest: bytes, bind: Public) -> bytes:
    """Claims under a release quote: request digest, then bind key name."""
    return request_digest + bind.name


def verify_host(
    evidence: Evidence,
    *,
    extra: bytes,
    enrollers: Sequence[x509.Certificate],
    now: datetime,
    selection: Collection[int] = QUOTED,
    bound: Collection[int] = BOUND,
) -> VerifiedHost:
    """Check everything about the evidence that cryptography can check.

    1. the AK is a restricted signing key made in a TPM;
    2. its certificate was issued by an enroller that the caller pins;
    3. the quote is the AK's, over ``extra`` and exactly ``selection``, and
       its digest is that of the PCR values sent;
    4. the bind key was made in the same TPM (certified by the AK), in the
       same boot as the quote, dies with it (a primary of the NULL
       hierarchy), and is held to the PCR values of the quote.

    :param extra: expected extraData, see ``mh_core.tpm.quote.extra_data``.
    :param now: aware datetime.
    :raises InputError: malformed structures.
    :raises VerificationError: ``core.tpm.*``, ``core.akcert.*``,
        ``core.evidence.boot``, ``core.evidence.bound``.
    """
    # 1
    ak = Public.parse(evidence.ak_public)
    check_ak(ak)
    # 2
    identity = verify_ak_certificate(
        evidence.ak_certificate, enrollers, ak, now
    )
    # 3
    quote = verify_quote(
        ak,
        evidence.quote_attest,
        evidence.quote_signature,
        extra,
        evidence.pcrs,
        selection,
    )
    # 4
    bind = Public.parse(evidence.bind_public)
    certify = verify_certify(
        ak,
        evidence.bind_attest,
        evidence.bind_signature,
        extra_data(LABEL_BIND, b"", ak.name),
        bind,
    )
    if certify.reset != quote.reset:
        raise VerificationError(
            EVENT + ".boot", "the bind key is of another boot of the host"
        )
    check_primary(certify, bind, RH_NULL)
    if not bound or not set(bound) <= set(evidence.pcrs):
        raise VerificationError(
            EVENT + ".bound", "the bind key is held to PCRs not quoted"
        )
    check_bind(bind, policy_pcr({i: evidence.pcrs[i] for i in bound}))
    return VerifiedHost(identity, ak, bind, quote, dict(evidence.pcrs))
