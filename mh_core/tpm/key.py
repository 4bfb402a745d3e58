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

"""The key-type specific end of a TPMT_PUBLIC."""

from typing import Final

from cryptography import exceptions
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mh_core import errors
from mh_core.tpm import constants as c
from mh_core.tpm import reader

_RSA_BITS: Final = (1024, 2048, 3072, 4096)
# Written as 0 in a public area (Part 2 section 12.2.3.5).
_DEFAULT_EXPONENT: Final = 65537


def _bad(message: str) -> errors.InputError:
    return errors.InputError("core.tpm.public.key", message)


def read_rsa(r: reader.Reader) -> tuple[int, rsa.RSAPublicKey]:
    """Read TPMS_RSA_PARMS after the scheme, and the modulus.

    Part 2 sections 12.2.3.5 and 11.2.4.5. Returns its bits and the key.

    Raises InputError ``core.tpm.public.key`` or ``core.tpm.reader.*``.
    """
    bits, exponent = r.u16(), r.u32() or _DEFAULT_EXPONENT
    modulus = r.sized(max(_RSA_BITS) // 8)
    if bits not in _RSA_BITS or len(modulus) * 8 != bits:
        raise _bad(f"RSA of {bits} bits, {len(modulus)} octets")
    if not modulus[-1] & 1:
        raise _bad("RSA modulus is even")
    try:
        key = rsa.RSAPublicNumbers(
            exponent, int.from_bytes(modulus, "big")
        ).public_key()
    except (ValueError, exceptions.UnsupportedAlgorithm):
        raise _bad("not an RSA public key") from None
    if key.key_size != bits:
        raise _bad("RSA modulus is shorter than it says")
    return bits, key


def read_ecc(r: reader.Reader) -> tuple[int, int, ec.EllipticCurvePublicKey]:
    """Read TPMS_ECC_PARMS after the scheme, and the point.

    Part 2 sections 12.2.3.6 and 11.2.5.2. Returns TPM_ECC_CURVE, KDF scheme
    and the key.

    Raises InputError ``core.tpm.public.key``, ``core.tpm.curve`` or
    ``core.tpm.reader.*``.
    """
    identifier, kdf = r.u16(), r.u16()
    if kdf != c.ALG_NULL:
        r.u16()
    curve, size = c.curve(identifier), c.CURVE_SIZES[identifier]
    x, y = r.sized(size), r.sized(size)
    try:
        # Checks that the point is on the curve.
        key = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve
        ).public_key()
    except (ValueError, exceptions.UnsupportedAlgorithm):
        raise _bad("point is not on the curve") from None
    return identifier, kdf, key
