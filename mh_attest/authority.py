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
MIGRATION_KEY = "migration-ca-key.pem"
MIGRATION_CERTIFICATE = "migration-ca.pem"
#: Days the enroller's certificate is valid.
ENROLLER_DAYS = 3650


@dataclass(frozen=True)
class Authority:
    """Who signs.

    :param result_key: private JWK (P-256) of results and VM reports.
    :param enroller_key: issues AK certificates.
    :param nonce_key: 32 bytes, authenticates nonces given out.
    :param migration_ca: its key issues certificates for live migration,
        and nothing else.
    """

    issuer: str
    enroller: x509.Certificate
    result_key: jose.Jwk = field(repr=False)
    enroller_key: ec.EllipticCurvePrivateKey = field(repr=False)
    nonce_key: Secret = field(repr=False)
    migration_ca: x509.Certificate
    migration_key: ec.EllipticCurvePrivateKey = field(repr=False)

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
    for name, key_file, certificate_file in (
        ("enroller", ENROLLER_KEY, ENROLLER_CERTIFICATE),
        ("migration CA", MIGRATION_KEY, MIGRATION_CERTIFICATE),
    ):
        made += _create_ca(folder, name, (key_file, certificate_file), now)
    return made


def _create_ca(
    folder: pathlib.Path,
    name: str,
    files: tuple[str, str],
    now: datetime.datetime,
) -> list[str]:
    """Key and certificate of one CA, unless they are there."""
    there = [(folder / file).exists() for file in files]
    if any(there) and not all(there):
        raise InputError(
            "attest.authority.enroller",
            f"only one of the {name}'s key and certificate is there",
        )
    if all(there):
        return []
    private = ec.generate_private_key(ec.SECP256R1())
    certificate = _self_sign(private, f"Mystery Hill {name}", now)
    _write(
        folder / files[0],
        private.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
    )
    _write(folder / files[1], certificate.public_bytes(Encoding.PEM))
    return list(files)


def _write(path: pathlib.Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _self_sign(
    key: ec.EllipticCurvePrivateKey, common: str, now: datetime.datetime
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
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
        enroller_key, enroller = _load_ca(
            folder, ENROLLER_KEY, ENROLLER_CERTIFICATE
        )
        migration_key, migration_ca = _load_ca(
            folder, MIGRATION_KEY, MIGRATION_CERTIFICATE
        )
        nonce_key = (folder / NONCE_KEY).read_bytes()
    except (OSError, ValueError, TypeError, InputError) as exc:
        raise Unavailable(
            "attest.authority.keys",
            "the state directory has no usable keys; "
            "run 'mh-attest-manage db sync'",
        ) from exc
    if len(nonce_key) != 32:
        raise _unfit()
    return Authority(
        issuer,
        enroller,
        result_key,
        enroller_key,
        Secret(nonce_key),
        migration_ca,
        migration_key,
    )


def _load_ca(
    folder: pathlib.Path, key_file: str, certificate_file: str
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    private = load_pem_private_key((folder / key_file).read_bytes(), None)
    certificate = akcert.load_certificate(
        (folder / certificate_file).read_text()
    )
    if (
        not isinstance(private, ec.EllipticCurvePrivateKey)
        or private.public_key() != certificate.public_key()
    ):
        raise _unfit()
    return private, certificate


def _unfit() -> Unavailable:
    return Unavailable(
        "attest.authority.keys", "the keys there do not fit each other"
    )
