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
joserfc does the work; only :func:`open_with_z` and :func:`oaep_parts` are
ours, because the first step of an incoming JWE happens inside a TPM.

A token is read strictly before any key is used on it: canonical base64url,
exactly the header members that :func:`sign` and :func:`wrap` write, nothing
that points at a key (``jku``, ``jwk``, ``x5c``), is compressed or critical.
"""

import hmac
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap,
)
from joserfc import jwe, jws
from joserfc.errors import JoseError
from joserfc.registry import HeaderParameter

from mh_core.encoding import b64u, lp, parse_json, unb64u
from mh_core.errors import InputError, VerificationError
from mh_core.fields import Fields
from mh_core.jwk import (
    Jwk,
    derive_key,
    generate_key,
    load,
    public,
    thumbprint,
)

__all__ = [
    "MAX_TOKEN",
    "Jwk",
    "derive_key",
    "generate_key",
    "oaep_parts",
    "open_with_z",
    "public",
    "recipient",
    "sign",
    "thumbprint",
    "unwrap",
    "verify",
    "wrap",
]

_ECDH = "ECDH-ES+A256KW"
_OAEP = "RSA-OAEP-256"
_ENC = "A256GCM"
#: Longest compact token read, characters.
MAX_TOKEN = 256 * 1024
# joserfc's own limits are below what we sign and wrap.
_JWS = jws.JWSRegistry(algorithms=["ES256"])
_JWS.max_payload_length = MAX_TOKEN
# ``apv`` is known to it beside key agreement only.
_JWE = jwe.JWERegistry(
    header_registry={"apv": HeaderParameter("PartyVInfo", "str")},
    algorithms=[_ECDH, _OAEP, _ENC],
)
_JWE.max_ciphertext_length = MAX_TOKEN


# -- signatures ----------------------------------------------------------


def sign(payload: bytes, key: Mapping[str, Any], typ: str) -> str:
    """Compact JWS, ES256; ``typ`` keeps one kind from passing for another.

    :raises InputError: ``core.jose.key``: not a private P-256 key;
        ``core.jose.size``: nobody here would read the token.
    """
    header = {"alg": "ES256", "typ": typ, "kid": thumbprint(key)}
    try:
        token = jws.serialize_compact(
            header, payload, load(key), registry=_JWS
        )
    except (JoseError, ValueError, TypeError) as exc:
        raise InputError("core.jose.key", "this key cannot sign") from exc
    return _bounded(token)


def _bounded(token: str) -> str:
    if len(token) > MAX_TOKEN:
        raise InputError("core.jose.size", "too much for one token")
    return token


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
    for part in token.split("."):
        unb64u(part, "core.jose.token")
    for key in keys:
        if thumbprint(key) != header["kid"]:
            continue
        try:
            found = jws.deserialize_compact(token, load(key), registry=_JWS)
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

    :raises InputError: ``core.jose.key``, ``core.jose.size``.
    """
    jwk = public(key)
    header = {
        "alg": _ECDH if jwk["kty"] == "EC" else _OAEP,
        "enc": _ENC,
        "typ": typ,
        "kid": jwk["kid"],
        "apv": b64u(apv),
    }
    try:
        token = jwe.encrypt_compact(
            header, plaintext, load(jwk), registry=_JWE
        )
    except (JoseError, ValueError, TypeError) as exc:
        raise InputError("core.jose.key", "cannot wrap to this key") from exc
    return _bounded(token)


def unwrap(token: str, key: Mapping[str, Any], apv: bytes) -> bytes:
    """Open a JWE with a private key held in software.

    :raises InputError: ``core.jose.token``.
    :raises VerificationError: ``core.jose.unwrap``: other key or ``apv``.
    """
    header = _jwe_header(token, apv)
    _jwe_parts(token)
    if header["alg"] == _ECDH:
        _point(header)
    own = public(key)
    if (header["alg"] == _ECDH) != (own["kty"] == "EC"):
        raise InputError("core.jose.token", "for another kind of key")
    if header["kid"] != own["kid"]:
        raise VerificationError("core.jose.unwrap", "made for another key")
    try:
        found = jwe.decrypt_compact(token, load(key), registry=_JWE)
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
    alg = header.get("alg")
    if alg not in (_ECDH, _OAEP) or header.get("enc") != _ENC:
        raise InputError("core.jose.token", "another kind of JWE")
    known = {"alg", "enc", "typ", "kid"} | ({"epk"} if alg == _ECDH else set())
    if set(header) - {"apv"} != known or not isinstance(header["kid"], str):
        raise InputError("core.jose.token", "header members not as here")
    sent = header.get("apv")
    # as bytes: compare_digest takes no text that is not ASCII
    if not isinstance(sent, str) or not hmac.compare_digest(
        sent.encode("utf-8", "replace"), b64u(apv).encode()
    ):
        raise VerificationError(
            "core.jose.apv", "made for another request than this one"
        )
    return header


def _jwe_parts(token: str) -> tuple[bytes, bytes, bytes, bytes]:
    """Encrypted key, IV, ciphertext and tag (lengths of A256GCM)."""
    key, iv, ciphertext, tag = (
        unb64u(part, "core.jose.token") for part in token.split(".")[1:]
    )
    if len(iv) != 12 or len(tag) != 16:
        raise InputError("core.jose.token", "not lengths of A256GCM")
    return key, iv, ciphertext, tag


def _point(header: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The sender's ephemeral point.

    That it lies on the curve is for the TPM to check too; one that does not
    would tell its sender about the private key.
    """
    epk = Fields(header.get("epk"), "core.jose.token")
    epk.choice("kty", ("EC",))
    epk.choice("crv", ("P-256",))
    x, y = epk.b64u("x", 32), epk.b64u("y", 32)
    epk.end()
    try:
        ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
        ).public_key()
    except ValueError as exc:
        raise InputError("core.jose.token", "epk: not on the curve") from exc
    return x, y


def _open(token: str, cek: bytes) -> bytes:
    """Open the content; ``cek`` is what came out of the encrypted key."""
    if len(cek) != 32:
        raise VerificationError("core.jose.unwrap", "not a key of A256GCM")
    _key, iv, ciphertext, tag = _jwe_parts(token)
    try:
        return AESGCM(cek).decrypt(
            iv, ciphertext + tag, token.split(".", 1)[0].encode()
        )
    except (InvalidTag, ValueError) as exc:
        raise VerificationError(
            "core.jose.unwrap", "the wrapped key does not open"
        ) from exc


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
    x, y = _point(header)
    key = _jwe_parts(token)[0]
    # AlgorithmID || PartyUInfo (empty) || PartyVInfo || SuppPubInfo
    info = lp(_ECDH.encode()) + lp(b"") + lp(apv) + (256).to_bytes(4, "big")
    try:
        kek = ConcatKDFHash(SHA256(), 32, info).derive(zgen(x, y))
        cek = aes_key_unwrap(kek, key)
    except (InvalidUnwrap, ValueError) as exc:
        raise VerificationError(
            "core.jose.unwrap", "the wrapped key does not open"
        ) from exc
    return _open(token, cek)


def oaep_parts(
    token: str, apv: bytes
) -> tuple[bytes, Callable[[bytes], bytes]]:
    """The same for ``RSA-OAEP-256``: the encrypted content key for the TPM,
    and a function that opens the content with the key the TPM returned.

    :raises: as :func:`open_with_z`.
    """
    header = _jwe_header(token, apv)
    if header["alg"] != _OAEP:
        raise InputError("core.jose.token", "not wrapped by RSA-OAEP")
    return _jwe_parts(token)[0], lambda cek: _open(token, cek)
