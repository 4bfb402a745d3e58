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

"""Writes the structures the parsers read, for keys held in software.

For the policy authority's Name, for vectors and for tests. A signature of a
software key over an attestation proves nothing to anybody: credential
activation is what tells the two apart.
"""

from collections.abc import Collection

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from mh_core import errors
from mh_core.tpm import constants as c
from mh_core.tpm import reader


def ecc_public_area(
    key: ec.EllipticCurvePublicKey,
    attributes: int = c.SIGN | c.USER_WITH_AUTH,
    *,
    policy: bytes = b"",
    scheme: int = c.ALG_ECDSA,
    scheme_hash: int = c.ALG_SHA256,
) -> bytes:
    """Return the TPMT_PUBLIC of a P-256 key, nameAlg SHA-256.

    The default is what TPM2_LoadExternal takes for a verification key, so
    a policy authority's Name needs no TPM.

    Raises InputError ``core.tpm.curve`` or ``core.tpm.pack``.
    """
    point = key.public_numbers()
    if not isinstance(key.curve, ec.SECP256R1):
        raise errors.InputError("core.tpm.curve", "not a P-256 key")
    head = reader.pack("HHI", c.ALG_ECC, c.ALG_SHA256, attributes)
    head += reader.sized(policy) + reader.pack("HH", c.ALG_NULL, scheme)
    if scheme != c.ALG_NULL:
        head += reader.pack("H", scheme_hash)
    return (
        head
        + reader.pack("HH", c.ECC_P256, c.ALG_NULL)
        + reader.sized(point.x.to_bytes(32, "big"))
        + reader.sized(point.y.to_bytes(32, "big"))
    )


def attest(
    kind: int,
    extra: bytes,
    body: bytes,
    *,
    signer: bytes = b"",
    clock: int = 0,
    reset: int = 0,
    restart: int = 0,
    safe: bool = True,
    firmware: int = 0,
) -> bytes:
    """Return a TPMS_ATTEST with a body from the two functions below.

    Raises InputError ``core.tpm.pack``.
    """
    return (
        reader.pack("IH", c.GENERATED, kind)
        + reader.sized(signer)
        + reader.sized(extra)
        + reader.pack("QIIBQ", clock, reset, restart, int(safe), firmware)
        + body
    )


def quote_body(selection: bytes, digest: bytes) -> bytes:
    """Return TPMS_QUOTE_INFO: a TPML_PCR_SELECTION and the PCR digest."""
    return selection + reader.sized(digest)


def certify_body(name: bytes, qualified_name: bytes) -> bytes:
    """Return TPMS_CERTIFY_INFO."""
    return reader.sized(name) + reader.sized(qualified_name)


def ecdsa_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Sign with a P-256 key and SHA-256; return a TPMT_SIGNATURE.

    Raises InputError ``core.tpm.pack`` for a key of a longer curve.
    """
    first, second = utils.decode_dss_signature(
        key.sign(message, ec.ECDSA(hashes.SHA256()))
    )
    size = (key.curve.key_size + 7) // 8
    return (
        reader.pack("HH", c.ALG_ECDSA, c.ALG_SHA256)
        + reader.sized(first.to_bytes(size, "big"))
        + reader.sized(second.to_bytes(size, "big"))
    )


def selection(banks: Collection[tuple[int, bytes]]) -> bytes:
    """Return TPML_PCR_SELECTION of (hash algorithm, bitmap) pairs.

    Raises InputError ``core.tpm.pack``.
    """
    return reader.pack("I", len(banks)) + b"".join(
        reader.pack("HB", alg, len(bitmap)) + bitmap for alg, bitmap in banks
    )
