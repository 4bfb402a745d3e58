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

"""TPMS_ATTEST and TPMT_SIGNATURE: what a TPM says, and its signature."""

import dataclasses
import hmac

from cryptography import exceptions
from cryptography.hazmat.primitives.asymmetric import (
    ec,
    padding,
    rsa,
    utils,
)

from mh_core import errors
from mh_core.tpm import constants as c
from mh_core.tpm import public as public_module
from mh_core.tpm import reader

# A Name or qualified Name: algorithm and the longest digest.
_NAME_LIMIT = 2 + 64
# TPM2B_DATA of a qualifyingData (Part 2 section 10.4.3).
_EXTRA_LIMIT = 2 + 64
# Banks in one selection; the verifiers accept exactly one.
_BANK_LIMIT = 16


@dataclasses.dataclass(frozen=True)
class Attest:
    """TPMS_ATTEST of a quote or a certification (Part 2, same name).

    type: ST_QUOTE or ST_CERTIFY.
    qualified_signer: qualified Name of the signing key.
    extra: the caller's qualifyingData.
    clock: milliseconds the TPM ran (Part 2 section 10.11.1). With reset,
        restart and firmware it is obfuscated unless the signing key is in
        the endorsement or platform hierarchy (Part 3 section 18.1).
    reset, restart: TPM Resets, and Restarts or Resumes since.
    safe: no greater clock was ever reported.
    selection: (hash algorithm, bitmap) per bank; empty for a certification.
    digest: over the selected PCRs; empty for a certification.
    name, qualified_name: of the certified object; empty for a quote.
    """

    type: int
    qualified_signer: bytes
    extra: bytes
    clock: int
    reset: int
    restart: int
    safe: bool
    firmware: int
    selection: tuple[tuple[int, bytes], ...] = ()
    digest: bytes = b""
    name: bytes = b""
    qualified_name: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> "Attest":
        """Parse a TPMS_ATTEST; nothing about it is verified.

        Raises InputError ``core.tpm.attest.magic``, ``.type``, ``.safe``,
        ``.selection`` or ``core.tpm.reader.*``.
        """
        r = reader.Reader(data)
        if r.u32() != c.GENERATED:
            raise errors.InputError(
                "core.tpm.attest.magic", "not made by a TPM"
            )
        kind = r.u16()
        if kind not in (c.ST_QUOTE, c.ST_CERTIFY):
            raise errors.InputError(
                "core.tpm.attest.type",
                f"attestation {kind:#06x} is neither quote nor certification",
            )
        signer, extra = r.sized(_NAME_LIMIT), r.sized(_EXTRA_LIMIT)
        clock, reset, restart, safe = r.u64(), r.u32(), r.u32(), r.u8()
        if safe not in (0, 1):
            raise errors.InputError(
                "core.tpm.attest.safe", "TPMI_YES_NO is neither 0 nor 1"
            )
        firmware = r.u64()
        selection: tuple[tuple[int, bytes], ...] = ()
        digest = name = qualified = b""
        if kind == c.ST_QUOTE:
            selection, digest = _selection(r), r.sized(_NAME_LIMIT)
        else:
            name, qualified = r.sized(_NAME_LIMIT), r.sized(_NAME_LIMIT)
        r.end()
        return cls(
            type=kind,
            qualified_signer=signer,
            extra=extra,
            clock=clock,
            reset=reset,
            restart=restart,
            safe=bool(safe),
            firmware=firmware,
            selection=selection,
            digest=digest,
            name=name,
            qualified_name=qualified,
        )


def _selection(r: reader.Reader) -> tuple[tuple[int, bytes], ...]:
    """TPML_PCR_SELECTION (Part 2 section 10.9.7)."""
    count = r.u32()
    if count > _BANK_LIMIT:
        raise errors.InputError(
            "core.tpm.attest.selection", f"{count} PCR banks"
        )
    return tuple((r.u16(), r.take(r.u8())) for _ in range(count))


def verify_signature(
    public: public_module.Public,
    message: bytes,
    signature: bytes,
    *,
    event: str = "core.tpm.signature",
) -> None:
    """Verify a TPMT_SIGNATURE over `message` (Part 2 section 11.3.4).

    Scheme and hash must be those of the key's public area: a signature may
    not choose its own.

    Raises InputError ``core.tpm.reader.*`` or ``core.tpm.hash`` for a
    malformed signature, VerificationError `event` for any other.
    """
    r = reader.Reader(signature)
    scheme, hash_alg = r.u16(), r.u16()
    if scheme != public.scheme or hash_alg != public.scheme_hash:
        raise errors.VerificationError(
            event,
            f"signature scheme {scheme:#06x} with hash {hash_alg:#06x} is "
            "not the key's",
        )
    hash_object = c.hash_algorithm(hash_alg)
    key = public.key
    try:
        if scheme == c.ALG_ECDSA and isinstance(
            key, ec.EllipticCurvePublicKey
        ):
            size = public.bits // 8
            first, second = r.sized(size), r.sized(size)
            r.end()
            encoded = utils.encode_dss_signature(
                int.from_bytes(first, "big"), int.from_bytes(second, "big")
            )
            key.verify(encoded, message, ec.ECDSA(hash_object))
        elif scheme in (c.ALG_RSASSA, c.ALG_RSAPSS) and isinstance(
            key, rsa.RSAPublicKey
        ):
            value = r.sized(public.bits // 8)
            r.end()
            # The salt is as long as fits or as the digest, by the TPM's age
            # (Part 1 annex B).
            pad: padding.AsymmetricPadding = (
                padding.PKCS1v15()
                if scheme == c.ALG_RSASSA
                else padding.PSS(padding.MGF1(hash_object), padding.PSS.AUTO)
            )
            key.verify(value, message, pad, hash_object)
        else:
            raise errors.VerificationError(event, "not a signing key")
    except (
        exceptions.InvalidSignature,
        exceptions.UnsupportedAlgorithm,
        ValueError,
    ):
        raise errors.VerificationError(
            event, "signature does not verify"
        ) from None


def check_primary(
    attest: Attest, certified: public_module.Public, hierarchy: int
) -> None:
    """Check that a certified key is a primary key of a hierarchy.

    `attest` is what :func:`mh_core.tpm.quote.verify_certify` returned for
    `certified`. A primary key of RH_NULL is gone after a TPM Reset, as that
    hierarchy's seed is (Part 1, "Hierarchies"); the qualified Name, which
    the AK signed, shows the hierarchy.

    Raises VerificationError ``core.tpm.certify.hierarchy``.
    """
    expected = certified.qualified_name(
        public_module.hierarchy_name(hierarchy)
    )
    if not hmac.compare_digest(attest.qualified_name, expected):
        raise errors.VerificationError(
            "core.tpm.certify.hierarchy",
            f"not a primary key of hierarchy {hierarchy:#010x}",
        )
