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

"""Numbers of the TPM 2.0 Library, Part 2.

Only those this project accepts or must name to refuse.
"""

import hashlib
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from mh_core import errors

# TPM_ALG_ID, Part 2 section 6.3.
ALG_RSA: Final = 0x0001
ALG_SHA1: Final = 0x0004
ALG_AES: Final = 0x0006
ALG_SHA256: Final = 0x000B
ALG_SHA384: Final = 0x000C
ALG_SHA512: Final = 0x000D
ALG_NULL: Final = 0x0010
ALG_RSASSA: Final = 0x0014
ALG_RSAES: Final = 0x0015
ALG_RSAPSS: Final = 0x0016
ALG_OAEP: Final = 0x0017
ALG_ECDSA: Final = 0x0018
ALG_ECDH: Final = 0x0019
ALG_ECC: Final = 0x0023
ALG_CFB: Final = 0x0043

# TPM_ECC_CURVE, Part 2 section 6.4.
ECC_P256: Final = 0x0003
ECC_P384: Final = 0x0004

# TPM_GENERATED_VALUE and TPM_ST, Part 2 sections 6.2 and 6.9.
GENERATED: Final = 0xFF544347
ST_CERTIFY: Final = 0x8017
ST_QUOTE: Final = 0x8018

# TPM_CC, Part 2 section 6.5.2: they enter the policy digest.
CC_POLICY_AUTHORIZE: Final = 0x0000016A
CC_POLICY_PCR: Final = 0x0000017F

# TPM_RH, Part 2 section 7.4: the "name" of a hierarchy is its handle.
RH_OWNER: Final = 0x40000001
RH_NULL: Final = 0x40000007
RH_ENDORSEMENT: Final = 0x4000000B

# TPMA_OBJECT, Part 2 section 8.3.
FIXED_TPM: Final = 1 << 1
ST_CLEAR: Final = 1 << 2
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
USER_WITH_AUTH: Final = 1 << 6
ADMIN_WITH_POLICY: Final = 1 << 7
NO_DA: Final = 1 << 10
ENCRYPTED_DUPLICATION: Final = 1 << 11
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN: Final = 1 << 18

#: What the agent gives its attestation key and its bind key.
AK_ATTRIBUTES: Final = (
    FIXED_TPM
    | FIXED_PARENT
    | SENSITIVE_DATA_ORIGIN
    | USER_WITH_AUTH
    | NO_DA
    | RESTRICTED
    | SIGN
)
BIND_ATTRIBUTES: Final = (
    FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | NO_DA | DECRYPT
)

#: PCR 0..23 (PC Client Platform TPM Profile): three octets of bitmap.
PCR_COUNT: Final = 24
PCR_SELECT_SIZE: Final = 3
SHA256_SIZE: Final = 32

#: Octets of a digest, of the algorithms used to name objects.
DIGEST_SIZES: Final = {ALG_SHA256: 32, ALG_SHA384: 48, ALG_SHA512: 64}

#: Octets of a coordinate.
CURVE_SIZES: Final = {ECC_P256: 32, ECC_P384: 48}


def hash_name(alg: int) -> str:
    """Return the hashlib name of a TPM_ALG_ID.

    Raises InputError ``core.tpm.hash`` for one that is not accepted; SHA-1
    never is.
    """
    if alg not in DIGEST_SIZES:
        raise errors.InputError(
            "core.tpm.hash", f"hash algorithm {alg:#06x} is not accepted"
        )
    return f"sha{DIGEST_SIZES[alg] * 8}"


def digest(alg: int, *parts: bytes) -> bytes:
    """Hash the parts, concatenated, with a TPM_ALG_ID.

    Raises InputError ``core.tpm.hash``.
    """
    return hashlib.new(hash_name(alg), b"".join(parts)).digest()


def hash_algorithm(alg: int) -> hashes.HashAlgorithm:
    """Return the cryptography object of a TPM_ALG_ID.

    Raises InputError ``core.tpm.hash``.
    """
    hash_name(alg)
    if alg == ALG_SHA256:
        return hashes.SHA256()
    return hashes.SHA384() if alg == ALG_SHA384 else hashes.SHA512()


def curve(identifier: int) -> ec.EllipticCurve:
    """Return the curve of a TPM_ECC_CURVE.

    Raises InputError ``core.tpm.curve``.
    """
    if identifier not in CURVE_SIZES:
        raise errors.InputError(
            "core.tpm.curve", f"curve {identifier:#06x} is not accepted"
        )
    return ec.SECP256R1() if identifier == ECC_P256 else ec.SECP384R1()
