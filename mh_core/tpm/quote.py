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

"""Quotes and certifications, bound to a purpose, a nonce and claims."""

import hashlib
import hmac
from collections.abc import Collection, Mapping
from typing import Final

from mh_core import errors
from mh_core.tpm import attest as attest_module
from mh_core.tpm import constants as c
from mh_core.tpm import policy, reader
from mh_core.tpm import public as public_module

#: One label per purpose, so that an answer to one question is none to
#: another.
LABEL_RELEASE: Final = "mh/quote/release/v1"
LABEL_HOST: Final = "mh/quote/host/v1"
LABEL_VM: Final = "mh/quote/vm/v1"
LABEL_SNAPSHOT: Final = "mh/quote/snapshot/v1"
LABEL_MIGRATION_KEY: Final = "mh/quote/migration-key/v1"
LABEL_MIGRATION: Final = "mh/quote/migration/v1"
LABEL_BIND: Final = "mh/certify/bind/v1"


def extra_data(label: str, nonce: bytes, claims: bytes) -> bytes:
    """Return the 32 octets of qualifyingData for a quote or certification.

    SHA-256 over label (UTF-8), nonce and claims, each with its length
    before it as four octets, big-endian, so no two triples encode alike.
    The agent quotes only such digests, never octets a caller chose.

    Raises InputError ``core.tpm.extra-data`` for an empty label or one that
    has no UTF-8 form.
    """
    try:
        encoded = label.encode("utf-8")
    except UnicodeError:
        encoded = b""
    if not encoded:
        raise errors.InputError("core.tpm.extra-data", "not a label")
    return hashlib.sha256(
        b"".join(
            reader.pack("I", len(part)) + part
            for part in (encoded, nonce, claims)
        )
    ).digest()


def _verify(
    ak: public_module.Public,
    attest: bytes,
    signature: bytes,
    extra: bytes,
    kind: int,
    event: str,
) -> attest_module.Attest:
    """Key, signature, type and extraData: the same for both kinds."""
    # A key that signs anything would sign an attestation nobody made.
    public_module.check_ak(ak)
    attest_module.verify_signature(
        ak, attest, signature, event=f"{event}.signature"
    )
    parsed = attest_module.Attest.parse(attest)
    if parsed.type != kind:
        raise errors.VerificationError(
            f"{event}.type", f"attestation has type {parsed.type:#06x}"
        )
    # An empty expectation would accept an attestation bound to nothing.
    if len(extra) != c.SHA256_SIZE or not hmac.compare_digest(
        parsed.extra, extra
    ):
        raise errors.VerificationError(
            f"{event}.extra-data", "extraData is not the one computed"
        )
    return parsed


def verify_quote(
    ak: public_module.Public,
    attest: bytes,
    signature: bytes,
    extra: bytes,
    pcrs: Mapping[int, bytes],
    selection: Collection[int],
) -> attest_module.Attest:
    """Verify that the AK's TPM has just these PCR values.

    attest: TPMS_ATTEST; signature: TPMT_SIGNATURE (Part 3 section 18.4).
    extra: from :func:`extra_data`, computed by this verifier.
    pcrs: values the host claims, {index: 32 octets}, SHA-256 bank.
    selection: indices this verifier wants, exactly.

    Returns the attestation; whether the values are good, and whether reset
    and restart are the expected ones, is the caller's decision. That the AK
    belongs to a genuine TPM is not shown here.

    Raises VerificationError ``core.tpm.ak.attributes`` or
    ``core.tpm.quote.`` ``signature``, ``type``, ``extra-data``,
    ``selection``, ``pcr-digest``; InputError ``core.tpm.pcr.*``,
    ``core.tpm.attest.*`` or ``core.tpm.reader.*``.
    """
    parsed = _verify(
        ak, attest, signature, extra, c.ST_QUOTE, "core.tpm.quote"
    )
    wanted = ((c.ALG_SHA256, policy.pcr_bitmap(selection)),)
    if (
        not selection
        or parsed.selection != wanted
        or set(pcrs) != set(selection)
    ):
        raise errors.VerificationError(
            "core.tpm.quote.selection",
            "the quote does not cover exactly the PCRs asked for, SHA-256",
        )
    # The digest is made with the hash of the signing scheme (Part 3 section
    # 18.4); check_ak has seen that this is SHA-256.
    if not hmac.compare_digest(parsed.digest, policy.pcr_digest(pcrs)):
        raise errors.VerificationError(
            "core.tpm.quote.pcr-digest",
            "the PCR values are not the ones quoted",
        )
    return parsed


def verify_certify(
    ak: public_module.Public,
    attest: bytes,
    signature: bytes,
    extra: bytes,
    certified: public_module.Public,
) -> attest_module.Attest:
    """Verify that the AK's TPM holds the key with this public area.

    attest: TPMS_ATTEST; signature: TPMT_SIGNATURE (Part 3 section 18.2).
    extra: from :func:`extra_data`, computed by this verifier.

    Says nothing about what the key may do: see
    :func:`mh_core.tpm.public.check_bind`; nor about its hierarchy: see
    :func:`mh_core.tpm.attest.check_primary`.

    Raises VerificationError ``core.tpm.ak.attributes`` or
    ``core.tpm.certify.`` ``signature``, ``type``, ``extra-data``,
    ``name``; InputError ``core.tpm.attest.*`` or ``core.tpm.reader.*``.
    """
    parsed = _verify(
        ak, attest, signature, extra, c.ST_CERTIFY, "core.tpm.certify"
    )
    if not hmac.compare_digest(parsed.name, certified.name):
        raise errors.VerificationError(
            "core.tpm.certify.name", "another key was certified"
        )
    return parsed
