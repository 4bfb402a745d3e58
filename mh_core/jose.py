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
"""JOSE: the few algorithms used here, each in one place.

Tokens are JWS/JWT with ES256 (RFC 7515, 7519); keys travel in JWE with
``ECDH-ES+A256KW`` or ``RSA-OAEP-256`` and ``A256GCM`` (RFC 7516, 7518).
joserfc does the work; only :func:`open_with_z` is ours, because the ECDH
step of an incoming JWE happens inside a TPM.
"""

import hmac
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap,
)
from joserfc import jwe, jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from mh_core.encoding import b64u, lp, parse_json, unb64u
from mh_core.errors import InputError, VerificationError
from mh_core.fields import Fields

Jwk = dict[str, Any]

_ECDH = "ECDH-ES+A256KW"
_OAEP = "RSA-OAEP-256"
_ENC = "A256GCM"
#: Longest compact token read, characters.
MAX_TOKEN = 256 * 1024


def generate_key() -> Jwk:
    """A new P-256 private key as JWK, ``kid`` = its RFC 7638 thumbprint."""
    key = ECKey.generate_key("P-256", private=True)
    out: Jwk = dict(key.as_dict(private=True))
    out["kid"] = key.thumbprint()
    return out


def public(jwk: Mapping[str, Any]) -> Jwk:
    """The public members of an EC or RSA key, with ``kid``.

    :raises InputError: not a P-256 or RSA (2048 to 4096 bits) key.
    """
    kty = jwk.get("kty")
    names = {"EC": ("crv", "x", "y"), "RSA": ("n", "e")}.get(
        kty if isinstance(kty, str) else ""
    )
    if names is None or (kty == "EC" and jwk.get("crv") != "P-256"):
        raise InputError("core.jose.key", "a P-256 or RSA key is expected")
    out: Jwk = {"kty": kty}
    for name in names:
        value = jwk.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= 1024:
            raise InputError("core.jose.key", f"member {name!r} is bad")
        out[name] = value
    out["kid"] = thumbprint(out)
    return out


def _import(jwk: Mapping[str, Any]) -> ECKey | RSAKey:
    try:
        if jwk.get("kty") == "EC":
            return ECKey.import_key(dict(jwk))
        key = RSAKey.import_key(dict(jwk))
        if not 2048 <= key.public_key.key_size <= 4096:
            raise InputError("core.jose.key", "RSA keys: 2048 to 4096 bits")
        return key
    except (JoseError, ValueError, TypeError, KeyError) as exc:
        raise InputError("core.jose.key", "not a usable JWK") from exc


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """RFC 7638 thumbprint, SHA-256, base64url."""
    return str(_import(jwk).thumbprint())


# -- signatures ----------------------------------------------------------


def sign(payload: bytes, key: Mapping[str, Any], typ: str) -> str:
    """Compact JWS, ES256; ``typ`` keeps one kind from passing for another."""
    header = {"alg": "ES256", "typ": typ, "kid": thumbprint(key)}
    return jws.serialize_compact(header, payload, _import(key), ["ES256"])


def verify(
    token: str, keys: Iterable[Mapping[str, Any]], typ: str
) -> tuple[bytes, str]:
    """Payload and ``kid`` of a JWS signed by one of ``keys``.

    :raises InputError: ``core.jose.token``: not such a token.
    :raises VerificationError: ``core.jose.signature``: no key fits.
    """
    header = _header(token, 3)
    if header.get("alg") != "ES256" or header.get("typ") != typ:
        raise InputError("core.jose.token", "another kind of token")
    if set(header) != {"alg", "typ", "kid"}:
        raise InputError("core.jose.token", "header members not known here")
    for key in keys:
        if thumbprint(key) != header["kid"]:
            continue
        try:
            found = jws.deserialize_compact(token, _import(key), ["ES256"])
        except (JoseError, ValueError, TypeError) as exc:
            raise VerificationError(
                "core.jose.signature", "the signature does not verify"
            ) from exc
        return bytes(found.payload), str(header["kid"])
    raise VerificationError(
        "core.jose.signature", "signed by a key that is not trusted here"
    )


def _header(token: str, parts: int) -> dict[str, Any]:
    if len(token) > MAX_TOKEN or token.count(".") != parts - 1:
        raise InputError("core.jose.token", "not a compact token")
    head = unb64u(token.split(".", 1)[0], "core.jose.token")
    header = parse_json(head, 4096)
    if not isinstance(header, dict):
        raise InputError("core.jose.token", "not a compact token")
    return header


# -- encryption ----------------------------------------------------------


def wrap(
    plaintext: bytes, key: Mapping[str, Any], apv: bytes, typ: str = "mh"
) -> str:
    """Compact JWE to a public key.

    ``apv`` (agreement party V info) carries the digest of the request, so
    that an answer to one request does not open as the answer to another.
    With RSA it stands in the protected header all the same, and so in the
    authenticated data.
    """
    recipient = _import(public(key))
    header = {
        "alg": _ECDH if isinstance(recipient, ECKey) else _OAEP,
        "enc": _ENC,
        "typ": typ,
        "kid": thumbprint(key),
        "apv": b64u(apv),
    }
    return jwe.encrypt_compact(
        header, plaintext, recipient, [header["alg"], _ENC]
    )


def unwrap(token: str, key: Mapping[str, Any], apv: bytes) -> bytes:
    """Open a JWE with a private key held in software.

    :raises InputError: ``core.jose.token``.
    :raises VerificationError: ``core.jose.unwrap``: other key or ``apv``.
    """
    header = _jwe_header(token, apv)
    try:
        found = jwe.decrypt_compact(token, _import(key), [header["alg"], _ENC])
    except (JoseError, ValueError, TypeError, InvalidTag) as exc:
        raise VerificationError(
            "core.jose.unwrap", "the wrapped key does not open"
        ) from exc
    if found.plaintext is None:
        raise VerificationError("core.jose.unwrap", "empty")
    return bytes(found.plaintext)


def recipient(token: str) -> str:
    """``kid`` of the key a JWE was made for; unauthenticated.

    :raises InputError: ``core.jose.token``.
    """
    kid = _header(token, 5).get("kid")
    if not isinstance(kid, str):
        raise InputError("core.jose.token", "no recipient is named")
    return kid


def _jwe_header(token: str, apv: bytes) -> dict[str, Any]:
    header = _header(token, 5)
    allowed = {"alg", "enc", "typ", "kid", "apv", "epk"}
    if (
        set(header) - allowed
        or header.get("alg") not in (_ECDH, _OAEP)
        or header.get("enc") != _ENC
    ):
        raise InputError("core.jose.token", "another kind of JWE")
    if not hmac.compare_digest(str(header.get("apv")), b64u(apv)):
        raise VerificationError(
            "core.jose.apv", "made for another request than this one"
        )
    return header


def open_with_z(
    token: str,
    zgen: Callable[[bytes, bytes], bytes],
    apv: bytes,
) -> bytes:
    """Open an ``ECDH-ES+A256KW`` JWE where a TPM holds the private key.

    RFC 7518, sections 4.6.2 (Concat KDF) and 4.6; RFC 3394.

    :param zgen: takes the x and y (32 bytes each) of the sender's ephemeral
        point, returns the shared secret's x coordinate (32 bytes), as
        ``TPM2_ECDH_ZGen`` does.
    :param apv: the value that the caller expects, never the header's.
    :raises InputError: ``core.jose.token``.
    :raises VerificationError: ``core.jose.unwrap``, ``core.jose.apv``.
    """
    header = _jwe_header(token, apv)
    if header["alg"] != _ECDH:
        raise InputError("core.jose.token", "not wrapped by key agreement")
    epk = Fields(header.get("epk"), "core.jose.token")
    epk.choice("kty", ("EC",))
    epk.choice("crv", ("P-256",))
    x, y = epk.b64u("x", 32), epk.b64u("y", 32)
    epk.end()
    protected, key, iv, ciphertext, tag = token.split(".")
    # AlgorithmID || PartyUInfo (empty) || PartyVInfo || SuppPubInfo
    info = lp(_ECDH.encode()) + lp(b"") + lp(apv) + (256).to_bytes(4, "big")
    try:
        kek = ConcatKDFHash(SHA256(), 32, info).derive(zgen(x, y))
        cek = aes_key_unwrap(kek, unb64u(key))
        return AESGCM(cek).decrypt(
            unb64u(iv), unb64u(ciphertext) + unb64u(tag), protected.encode()
        )
    except (InvalidUnwrap, InvalidTag, ValueError) as exc:
        raise VerificationError(
            "core.jose.unwrap", "the wrapped key does not open"
        ) from exc


def oaep_parts(
    token: str, apv: bytes
) -> tuple[bytes, Callable[[bytes], bytes]]:
    """The same for ``RSA-OAEP-256``: the encrypted content key for the TPM,
    and a function that opens the content with the key the TPM returned."""
    header = _jwe_header(token, apv)
    if header["alg"] != _OAEP:
        raise InputError("core.jose.token", "not wrapped by RSA-OAEP")
    protected, key, iv, ciphertext, tag = token.split(".")

    def finish(cek: bytes) -> bytes:
        try:
            return AESGCM(cek).decrypt(
                unb64u(iv),
                unb64u(ciphertext) + unb64u(tag),
                protected.encode(),
            )
        except (InvalidTag, ValueError) as exc:
            raise VerificationError(
                "core.jose.unwrap", "the wrapped key does not open"
            ) from exc

    return unb64u(key), finish
