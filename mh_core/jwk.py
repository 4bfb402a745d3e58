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
"""JSON Web Keys (RFC 7517, 7518): the two kinds used here, in one form.

Callers use these through :mod:`mh_core.jose`.
"""

from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from mh_core.encoding import unb64u
from mh_core.errors import InputError

Jwk = dict[str, Any]

#: What must be in a JWK besides ``kty``, and what may be in a private one.
_MEMBERS = {
    "EC": (("crv", "x", "y"), ("d",)),
    "RSA": (("n", "e"), ("d", "p", "q", "dp", "dq", "qi")),
}
#: Bytes of a P-256 number, always written in full.
_P256 = (32, 32)
#: Bytes of a public RSA number, without leading zeros; a longer exponent is
#: work for us and of use to nobody.
_SIZES = {"n": (256, 512), "e": (1, 4)}
#: Order of P-256 (FIPS 186-5).
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def generate_key() -> Jwk:
    """A new P-256 private key as JWK, ``kid`` = its RFC 7638 thumbprint."""
    key = ECKey.generate_key("P-256", private=True)
    out: Jwk = dict(key.as_dict(private=True))
    out["kid"] = key.thumbprint()
    return out


def derive_key(key: Mapping[str, Any], label: bytes) -> Jwk:
    """Another private P-256 key, always the same for a key and a label.

    48 bytes make the bias of the reduction negligible (FIPS 186-5, A.2.1).

    :param key: private P-256 JWK.
    :raises InputError: ``core.jose.key``.
    """
    members = _members(key, private=True)
    if members["kty"] != "EC" or "d" not in members:
        raise InputError("core.jose.key", "a private P-256 key is expected")
    seed = HKDFExpand(SHA256(), 48, label).derive(
        unb64u(members["d"], "core.jose.key")
    )
    number = int.from_bytes(seed) % (_ORDER - 1) + 1
    made = ECKey.import_key(
        ec.derive_private_key(number, ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
    )
    out: Jwk = dict(made.as_dict(private=True))
    out["kid"] = made.thumbprint()
    return out


def public(jwk: Mapping[str, Any]) -> Jwk:
    """The public members of an EC or RSA key, with ``kid``.

    :raises InputError: ``core.jose.key``: not a P-256 or RSA (2048 to 4096
        bits) key, or not its one canonical form.
    """
    out = _members(jwk, private=False)
    out["kid"] = str(_key(out).thumbprint())
    return out


def _members(jwk: Mapping[str, Any], private: bool) -> Jwk:
    """The members of a key, in the one form that RFC 7518 has for them.

    A key that could be written in two ways would have two thumbprints.
    """
    if not isinstance(jwk, Mapping):
        raise InputError("core.jose.key", "a JWK is an object")
    kty = jwk.get("kty")
    if kty not in ("EC", "RSA") or (kty == "EC" and jwk.get("crv") != "P-256"):
        raise InputError("core.jose.key", "a P-256 or RSA key is expected")
    required, optional = _MEMBERS[kty]
    out: Jwk = {"kty": kty}
    for name in required + (optional if private else ()):
        value = jwk.get(name)
        if value is None and name in optional:
            continue
        if not isinstance(value, str) or not 0 < len(value) <= 1024:
            raise InputError("core.jose.key", f"member {name!r} is bad")
        if name != "crv":
            number = unb64u(value, "core.jose.key")
            low, high = _SIZES.get(name, (1, 512)) if kty == "RSA" else _P256
            if not low <= len(number) <= high or (
                name in _SIZES and not number[0]
            ):
                raise InputError("core.jose.key", f"{name!r}: wrong length")
        out[name] = value
    return out


def _key(members: Jwk) -> ECKey | RSAKey:
    try:
        if members["kty"] == "EC":
            return ECKey.import_key(dict(members))
        key = RSAKey.import_key(dict(members))
        if not 2048 <= key.public_key.key_size <= 4096:
            raise InputError("core.jose.key", "RSA keys: 2048 to 4096 bits")
        return key
    except (JoseError, ValueError, TypeError, KeyError) as exc:
        raise InputError("core.jose.key", "not a usable JWK") from exc


def load(jwk: Mapping[str, Any]) -> ECKey | RSAKey:
    """The library's key, private where ``jwk`` is.

    :raises InputError: ``core.jose.key``.
    """
    return _key(_members(jwk, private=True))


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """RFC 7638 thumbprint, SHA-256, base64url.

    :raises InputError: ``core.jose.key``.
    """
    return str(public(jwk)["kid"])
