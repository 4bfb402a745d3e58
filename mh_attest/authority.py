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
"""The server's own keys, in a directory that only it can read."""

import datetime
import json
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from mh_core import akcert, jose
from mh_core.errors import InputError, Unavailable
from mh_core.secret import Secret

RESULT_KEY = "result-key.json"
ENROLLER_KEY = "enroller-key.pem"
ENROLLER_CERTIFICATE = "enroller.pem"
NONCE_KEY = "nonce.key"
#: Days the enroller's certificate is valid.
ENROLLER_DAYS = 3650


@dataclass(frozen=True)
class Authority:
    """Who signs.

    :param result_key: private JWK (P-256) of results and VM reports.
    :param enroller_key: issues AK certificates.
    :param nonce_key: 32 bytes, authenticates nonces given out.
    """

    issuer: str
    enroller: x509.Certificate
    result_key: jose.Jwk = field(repr=False)
    enroller_key: ec.EllipticCurvePrivateKey = field(repr=False)
    nonce_key: Secret = field(repr=False)

    def jwk(self) -> jose.Jwk:
        return jose.public(self.result_key)

    def enroller_pem(self) -> str:
        return self.enroller.public_bytes(Encoding.PEM).decode("ascii")

    def identity(self) -> dict[str, Any]:
        """What a tenant pins."""
        jwk = self.jwk()
        return {
            "issuer": self.issuer,
            "jwk": jwk,
            "thumbprint": jwk["kid"],
            "enroller_certificate": self.enroller_pem(),
            "enroller_sha256": akcert.fingerprint(self.enroller),
        }


def create(
    folder: pathlib.Path,
    now: datetime.datetime,
    random: Callable[[int], bytes] = os.urandom,
) -> list[str]:
    """Make the directory and the keys that are absent; their names.

    :raises OSError: the directory or a file cannot be written.
    :raises InputError: ``attest.authority.enroller``: the enroller's key
        is there without its certificate, or the other way round.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    made = []
    if not (folder / RESULT_KEY).exists():
        key = json.dumps(jose.generate_key()).encode()
        _write(folder / RESULT_KEY, key)
        made.append(RESULT_KEY)
    if not (folder / NONCE_KEY).exists():
        _write(folder / NONCE_KEY, random(32))
        made.append(NONCE_KEY)
    paths = [folder / ENROLLER_KEY, folder / ENROLLER_CERTIFICATE]
    there = [path.exists() for path in paths]
    if any(there) and not all(there):
        raise InputError(
            "attest.authority.enroller",
            "only one of the enroller's key and certificate is there",
        )
    if not any(there):
        private = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_sign(private, now)
        _write(
            paths[0],
            private.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            ),
        )
        _write(paths[1], certificate.public_bytes(Encoding.PEM))
        made += [ENROLLER_KEY, ENROLLER_CERTIFICATE]
    return made


def _write(path: pathlib.Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _self_sign(
    key: ec.EllipticCurvePrivateKey, now: datetime.datetime
) -> x509.Certificate:
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "Mystery Hill enroller")]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=ENROLLER_DAYS))
        .add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )


def load(folder: pathlib.Path, issuer: str) -> Authority:
    """:raises Unavailable: ``attest.authority.keys``: absent, unreadable,
    or readable by others.
    """
    try:
        if folder.stat().st_mode & 0o077:
            raise Unavailable(
                "attest.authority.keys",
                "the state directory is open to others; mode 0700 is needed",
            )
        result_key = json.loads((folder / RESULT_KEY).read_bytes())
        jose.public(result_key)
        private = load_pem_private_key(
            (folder / ENROLLER_KEY).read_bytes(), None
        )
        certificate = akcert.load_certificate(
            (folder / ENROLLER_CERTIFICATE).read_text()
        )
        nonce_key = (folder / NONCE_KEY).read_bytes()
    except (OSError, ValueError, TypeError, InputError) as exc:
        raise Unavailable(
            "attest.authority.keys",
            "the state directory has no usable keys; "
            "run 'mh-attest-manage db sync'",
        ) from exc
    if (
        not isinstance(private, ec.EllipticCurvePrivateKey)
        or private.public_key() != certificate.public_key()
        or len(nonce_key) != 32
    ):
        raise Unavailable(
            "attest.authority.keys", "the keys there do not fit each other"
        )
    return Authority(
        issuer, certificate, result_key, private, Secret(nonce_key)
    )
