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

"""TPM2_MakeCredential in software (Part 1, "Credential Protection").

Only the TPM that holds the endorsement key *and* a key of the given Name
can recover the credential: that is what ties an AK to an EK certificate.
"""

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from cryptography import exceptions
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from mh_core import errors
from mh_core.tpm import constants as c
from mh_core.tpm import public as public_module
from mh_core.tpm import reader

_IDENTITY: Final = b"IDENTITY"
_CURVE_ORDERS: Final = {
    c.ECC_P256: (
        0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    ),
    c.ECC_P384: int(
        "ffffffffffffffffffffffffffffffffffffffffffffffff"
        "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
        16,
    ),
}


def kdfa(
    hash_alg: int, key: bytes, label: bytes, u: bytes, v: bytes, bits: int
) -> bytes:
    """Return `bits` bits from KDFa (Part 1; SP 800-108 in counter mode).

    label: without its terminating zero octet, which is added.
    bits: a multiple of eight.

    Raises InputError ``core.tpm.hash``.
    """
    name, out, counter = c.hash_name(hash_alg), b"", 0
    while len(out) * 8 < bits:
        counter += 1
        out += hmac.new(
            key,
            reader.pack("I", counter)
            + label
            + b"\0"
            + u
            + v
            + reader.pack("I", bits),
            name,
        ).digest()
    return out[: bits // 8]


def kdfe(
    hash_alg: int, z: bytes, label: bytes, u: bytes, v: bytes, bits: int
) -> bytes:
    """Return `bits` bits from KDFe (Part 1; SP 800-56A, concatenation).

    z, u, v: x coordinates of the product, the ephemeral and the static key,
    each as long as the curve's field.

    Raises InputError ``core.tpm.hash``.
    """
    name, out, counter = c.hash_name(hash_alg), b"", 0
    while len(out) * 8 < bits:
        counter += 1
        out += hashlib.new(
            name, reader.pack("I", counter) + z + label + b"\0" + u + v
        ).digest()
    return out[: bits // 8]


def _draw(random: Callable[[int], bytes], size: int) -> bytes:
    value = random(size)
    if len(value) != size:
        raise errors.InputError(
            "core.tpm.credential.random", "random source is short"
        )
    return value


def _rsa_seed(
    ek: public_module.Public,
    key: rsa.RSAPublicKey,
    random: Callable[[int], bytes],
) -> tuple[bytes, bytes]:
    """A random seed, OAEP with the EK's nameAlg (Part 1 annex B)."""
    seed = _draw(random, c.DIGEST_SIZES[ek.name_alg])
    hash_object = c.hash_algorithm(ek.name_alg)
    encrypted = key.encrypt(
        seed,
        padding.OAEP(
            padding.MGF1(hash_object), hash_object, _IDENTITY + b"\0"
        ),
    )
    return seed, encrypted


def _ecc_seed(
    ek: public_module.Public,
    key: ec.EllipticCurvePublicKey,
    random: Callable[[int], bytes],
) -> tuple[bytes, bytes]:
    """One-pass ECDH with an ephemeral key (Part 1 annex C)."""
    curve = c.ECC_P256 if ek.curve is None else ek.curve
    size = c.CURVE_SIZES[curve]
    # Eight octets more than the order leave no bias worth naming
    # (FIPS 186-5 annex A.2.1).
    scalar = int.from_bytes(_draw(random, size + 8), "big")
    ephemeral = ec.derive_private_key(
        scalar % (_CURVE_ORDERS[curve] - 1) + 1, c.curve(curve)
    )
    ours = ephemeral.public_key().public_numbers()
    x, y = ours.x.to_bytes(size, "big"), ours.y.to_bytes(size, "big")
    seed = kdfe(
        ek.name_alg,
        ephemeral.exchange(ec.ECDH(), key),
        _IDENTITY,
        x,
        key.public_numbers().x.to_bytes(size, "big"),
        c.DIGEST_SIZES[ek.name_alg] * 8,
    )
    return seed, reader.sized(x) + reader.sized(y)


def make_credential(
    ek: public_module.Public,
    credential: bytes,
    name: bytes,
    random: Callable[[int], bytes],
) -> tuple[bytes, bytes]:
    """Wrap a credential for the key called `name` beside this EK.

    ek: RSA-2048, P-256 or P-384 endorsement key (larger RSA works too).
    credential: 1 octet up to the length of a digest of the EK's nameAlg.
    name: the AK's Name, 34 octets for SHA-256.
    random: a cryptographic random source, ``os.urandom`` outside tests.
        With an ECC key it decides the whole output; OAEP draws its own
        octets besides.

    Returns the contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, as
    TPM2_ActivateCredential takes them (Part 3).

    Raises VerificationError ``core.tpm.ek.attributes``; InputError
    ``core.tpm.credential.size``, ``.random`` or ``.key``.
    """
    public_module.check_ek(ek)
    size = c.DIGEST_SIZES[ek.name_alg]
    if not 1 <= len(credential) <= size or not name:
        raise errors.InputError(
            "core.tpm.credential.size",
            f"credential of {len(credential)} octets, 1 to {size} allowed",
        )
    try:
        if isinstance(ek.key, rsa.RSAPublicKey):
            seed, secret = _rsa_seed(ek, ek.key, random)
        else:
            seed, secret = _ecc_seed(ek, ek.key, random)
    except (ValueError, exceptions.UnsupportedAlgorithm):
        raise errors.InputError(
            "core.tpm.credential.key", "cannot encrypt to this key"
        ) from None
    symmetric = kdfa(ek.name_alg, seed, b"STORAGE", name, b"", ek.sym_bits)
    # A zero IV is what the specification says: the key is used once.
    encryptor = Cipher(algorithms.AES(symmetric), CFB(bytes(16))).encryptor()
    identity = encryptor.update(reader.sized(credential))
    identity += encryptor.finalize()
    integrity = hmac.new(
        kdfa(ek.name_alg, seed, b"INTEGRITY", b"", b"", size * 8),
        identity + name,
        c.hash_name(ek.name_alg),
    ).digest()
    return reader.sized(integrity) + identity, secret
