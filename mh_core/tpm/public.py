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

"""TPMT_PUBLIC: a key's public area, its Name, and what it may be."""

import base64
import dataclasses
import hmac
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mh_core import errors
from mh_core.tpm import constants as c
from mh_core.tpm import key as key_module
from mh_core.tpm import reader

_HASHED_SCHEMES: Final = frozenset(
    (c.ALG_RSASSA, c.ALG_RSAPSS, c.ALG_OAEP, c.ALG_ECDSA, c.ALG_ECDH)
)
# Attributes are checked against allow-lists: a bit not named here is a
# property this module cannot reason about.
_RESIDENT: Final = c.FIXED_TPM | c.FIXED_PARENT | c.SENSITIVE_DATA_ORIGIN
_AK_NEED: Final = _RESIDENT | c.RESTRICTED | c.SIGN
# How its own authorisation works is the host's business: the TPM signs only
# what it made itself, whoever asks.
_AK_MAY: Final = c.USER_WITH_AUTH | c.ADMIN_WITH_POLICY | c.NO_DA | c.ST_CLEAR
_BIND_NEED: Final = _RESIDENT | c.DECRYPT
_BIND_MAY: Final = c.NO_DA | c.ST_CLEAR
_EK_NEED: Final = _RESIDENT | c.RESTRICTED | c.DECRYPT
_EK_MAY: Final = c.USER_WITH_AUTH | c.ADMIN_WITH_POLICY | c.NO_DA


def _bad(what: str, message: str) -> errors.InputError:
    return errors.InputError(f"core.tpm.public.{what}", message)


def _b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode("ascii")


@dataclasses.dataclass(frozen=True)
class Public:
    """An RSA or ECC public area (Part 2 section 12.2.4).

    raw: the TPMT_PUBLIC, without the size that makes it a TPM2B.
    type, name_alg, scheme, scheme_hash: TPM_ALG_ID; scheme_hash is None
        where the scheme has none.
    attributes: TPMA_OBJECT bits.
    policy: authPolicy, empty or one digest of name_alg.
    sym_alg, sym_bits, sym_mode: of a storage key or EK; ALG_NULL, 0, 0 else.
    bits: RSA modulus or curve size.
    curve: TPM_ECC_CURVE, None for RSA.
    kdf: TPM_ALG_ID of the ECC key's KDF scheme, ALG_NULL in practice.
    """

    raw: bytes
    type: int
    name_alg: int
    attributes: int
    policy: bytes
    sym_alg: int
    sym_bits: int
    sym_mode: int
    scheme: int
    scheme_hash: int | None
    bits: int
    curve: int | None
    kdf: int
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey

    @classmethod
    def parse(cls, tpmt: bytes) -> "Public":
        """Parse a TPMT_PUBLIC.

        Raises InputError ``core.tpm.public.*``, ``core.tpm.reader.*``,
        ``core.tpm.curve`` or ``core.tpm.hash``.
        """
        r = reader.Reader(tpmt)
        kind, name_alg, attributes = r.u16(), r.u16(), r.u32()
        if kind not in (c.ALG_RSA, c.ALG_ECC):
            raise _bad("type", f"object type {kind:#06x} is not a key")
        c.hash_name(name_alg)
        policy = r.sized()
        if len(policy) not in (0, c.DIGEST_SIZES[name_alg]):
            raise _bad("policy", "authPolicy has the wrong length")
        sym_alg, sym_bits, sym_mode = r.u16(), 0, 0
        if sym_alg == c.ALG_AES:
            sym_bits, sym_mode = r.u16(), r.u16()
            if sym_bits not in (128, 192, 256) or sym_mode != c.ALG_CFB:
                raise _bad("symmetric", "only AES-128/192/256 CFB")
        elif sym_alg != c.ALG_NULL:
            raise _bad("symmetric", f"algorithm {sym_alg:#06x}")
        scheme, scheme_hash = r.u16(), None
        if scheme in _HASHED_SCHEMES:
            scheme_hash = r.u16()
        elif scheme not in (c.ALG_NULL, c.ALG_RSAES):
            raise _bad("scheme", f"scheme {scheme:#06x}")
        curve, kdf = None, c.ALG_NULL
        key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
        if kind == c.ALG_RSA:
            bits, key = key_module.read_rsa(r)
        else:
            curve, kdf, key = key_module.read_ecc(r)
            bits = c.CURVE_SIZES[curve] * 8
        r.end()
        return cls(
            raw=bytes(tpmt),
            type=kind,
            name_alg=name_alg,
            attributes=attributes,
            policy=policy,
            sym_alg=sym_alg,
            sym_bits=sym_bits,
            sym_mode=sym_mode,
            scheme=scheme,
            scheme_hash=scheme_hash,
            bits=bits,
            curve=curve,
            kdf=kdf,
            key=key,
        )

    @property
    def name(self) -> bytes:
        """The object's Name: nameAlg, digest (Part 1, "Names")."""
        return reader.pack("H", self.name_alg) + c.digest(
            self.name_alg, self.raw
        )

    def qualified_name(self, parent: bytes) -> bytes:
        """Qualified Name under a parent (Part 1, "Qualified Names").

        `parent` is the parent's own qualified Name; of a primary key it is
        the hierarchy's handle: see :func:`hierarchy_name`.
        """
        return reader.pack("H", self.name_alg) + c.digest(
            self.name_alg, parent, self.name
        )

    def pem(self) -> str:
        """The key as SubjectPublicKeyInfo in PEM (RFC 5280, RFC 7468)."""
        return self.key.public_bytes(
            serialization.Encoding.PEM,
            serialization.PublicFormat.SubjectPublicKeyInfo,
        ).decode("ascii")

    def jwk(self) -> dict[str, str]:
        """The key as JSON Web Key members (RFC 7518 section 6)."""
        if isinstance(self.key, rsa.RSAPublicKey):
            n = self.key.public_numbers()
            return {
                "kty": "RSA",
                "n": _b64(n.n.to_bytes(self.bits // 8, "big")),
                "e": _b64(n.e.to_bytes((n.e.bit_length() + 7) // 8, "big")),
            }
        point, size = self.key.public_numbers(), self.bits // 8
        return {
            "kty": "EC",
            "crv": f"P-{self.bits}",
            "x": _b64(point.x.to_bytes(size, "big")),
            "y": _b64(point.y.to_bytes(size, "big")),
        }


def hierarchy_name(handle: int) -> bytes:
    """The qualified Name of a hierarchy: its handle (Part 1, "Names")."""
    return reader.pack("I", handle)


def _attributes(public: Public, need: int, may: int, event: str) -> None:
    missing = need & ~public.attributes
    surplus = public.attributes & ~(need | may)
    if missing or surplus:
        raise errors.VerificationError(
            event,
            f"attributes {public.attributes:#010x}: missing {missing:#x}, "
            f"not allowed {surplus:#x}",
        )


def _scheme(
    public: Public, rsa: tuple[int, ...], ecc: int, event: str
) -> None:
    """SHA-256 all over; RSA from 2048 bits, or P-256."""
    if public.type == c.ALG_RSA:
        good = public.scheme in rsa and public.bits >= 2048
    else:
        good = (
            public.scheme == ecc
            and public.curve == c.ECC_P256
            and public.kdf == c.ALG_NULL
        )
    if (
        not good
        or public.scheme_hash != c.ALG_SHA256
        or public.name_alg != c.ALG_SHA256
        or public.sym_alg != c.ALG_NULL
    ):
        raise errors.VerificationError(
            event,
            f"type {public.type:#06x} of {public.bits} bits with scheme "
            f"{public.scheme:#06x}, hash {public.scheme_hash}, name "
            f"algorithm {public.name_alg:#06x} is not accepted",
        )


def check_ak(public: Public) -> None:
    """Check that a key can only sign what the TPM itself made.

    Restricted signing key, never outside this TPM: P-256 ECDSA, or RSA of
    at least 2048 bits with RSASSA or RSAPSS, SHA-256 throughout. A
    restricted key refuses data that begins with TPM_GENERATED_VALUE, so its
    signature over an attestation means a TPM made it (Part 1,
    "Restricted Signing Keys").

    That the TPM is genuine is what credential activation shows.

    Raises VerificationError ``core.tpm.ak.attributes``.
    """
    event = "core.tpm.ak.attributes"
    _attributes(public, _AK_NEED, _AK_MAY, event)
    _scheme(public, (c.ALG_RSASSA, c.ALG_RSAPSS), c.ALG_ECDSA, event)


def check_bind(public: Public, policy: bytes) -> None:
    """Check that a key decrypts only in its TPM and only under `policy`.

    P-256 ECDH or RSA-2048 (or longer) OAEP, SHA-256. No userWithAuth, so a
    password does not replace the policy; fixedTPM and fixedParent, so it
    cannot be duplicated; not restricted, else it would be a storage key.

    policy: the 32 octets this verifier computed for itself.

    Raises VerificationError ``core.tpm.bind.attributes`` or
    ``core.tpm.bind.policy``.
    """
    event = "core.tpm.bind.attributes"
    _attributes(public, _BIND_NEED, _BIND_MAY, event)
    _scheme(public, (c.ALG_OAEP,), c.ALG_ECDH, event)
    # An empty policy would equal an empty expectation.
    if len(policy) != c.SHA256_SIZE or not hmac.compare_digest(
        public.policy, policy
    ):
        raise errors.VerificationError(
            "core.tpm.bind.policy", "authPolicy is not the one computed"
        )


def check_ek(public: Public) -> None:
    """Check that a key is an endorsement key by its template.

    Restricted decryption key with an AES symmetric algorithm and no scheme
    (TCG EK Credential Profile, annex B): RSA from 2048 bits, P-256, P-384.

    Raises VerificationError ``core.tpm.ek.attributes``.
    """
    event = "core.tpm.ek.attributes"
    _attributes(public, _EK_NEED, _EK_MAY, event)
    if (
        public.sym_alg != c.ALG_AES
        or public.scheme != c.ALG_NULL
        or (public.type == c.ALG_RSA and public.bits < 2048)
    ):
        raise errors.VerificationError(event, "not an EK template")
