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
"""A host that is none: software TPM, EK of its own, event log, trust agent.

It answers as an honest trust agent; attributes make it lie.
"""

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.x509.oid import NameOID

from mh_attest.listener import Identity
from mh_core import jose
from mh_core.errors import NotFound, VerificationError
from mh_core.evidence import release_claims
from mh_core.migration import MigrationRequest, key_claims
from mh_core.request import KeyRequest
from mh_core.tpm import constants as c
from mh_core.tpm import eventlog
from mh_core.tpm.credential import kdfa, kdfe
from mh_core.tpm.ekcert import EK_USAGE
from mh_core.tpm.public import Public
from mh_core.tpm.quote import (
    LABEL_HOST,
    LABEL_MIGRATION,
    LABEL_MIGRATION_KEY,
    LABEL_RELEASE,
    LABEL_VM,
)
from mh_core.tpm.reader import Reader, pack, sized
from mh_core.vm_report import VmClaims
from tests.fixture.softtpm import Enroller, SoftTpm

ROOTHASH = "4e" * 32
COMMAND_LINE = (
    "/boot/vmlinuz root=/dev/mapper/vroot ro systemd.verity=1 "
    f"roothash={ROOTHASH}"
)
EK_POLICY = bytes.fromhex(
    "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
)


def log_of(
    command_line: str = COMMAND_LINE, kernel: bytes = b"kernel 1"
) -> bytes:
    events = [(i, eventlog.EV_SEPARATOR, bytes(4)) for i in range(8)]
    events += [
        (8, eventlog.EV_IPL, b"kernel_cmdline: " + command_line.encode()),
        (9, eventlog.EV_IPL, kernel),
    ]
    return eventlog.build(events)


def _area(key: ec.EllipticCurvePublicKey) -> bytes:
    point = key.public_numbers()
    attributes = (
        c.FIXED_TPM
        | c.FIXED_PARENT
        | c.SENSITIVE_DATA_ORIGIN
        | c.ADMIN_WITH_POLICY
        | c.RESTRICTED
        | c.DECRYPT
    )
    return (
        pack("HHI", c.ALG_ECC, c.ALG_SHA256, attributes)
        + sized(EK_POLICY)
        + pack("HHH", c.ALG_AES, 128, c.ALG_CFB)
        + pack("HHH", c.ALG_NULL, c.ECC_P256, c.ALG_NULL)
        + sized(point.x.to_bytes(32, "big"))
        + sized(point.y.to_bytes(32, "big"))
    )


class Maker:
    """A TPM manufacturer."""

    def __init__(self, name: str = "maker") -> None:
        self.authority = Enroller(name)

    @property
    def pem(self) -> str:
        return self.authority.pem

    def certify(self, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        now = datetime.now(UTC)
        usage = dict.fromkeys(
            (
                "digital_signature content_commitment key_encipherment "
                "data_encipherment key_agreement key_cert_sign crl_sign "
                "encipher_only decipher_only"
            ).split(),
            False,
        )
        return (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ek")])
            )
            .issuer_name(self.authority.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(datetime(9999, 12, 31, tzinfo=UTC))
            .add_extension(x509.BasicConstraints(False, None), True)
            .add_extension(x509.ExtendedKeyUsage([EK_USAGE]), False)
            .add_extension(
                x509.KeyUsage(**{**usage, "key_agreement": True}), True
            )
            .sign(self.authority.key, hashes.SHA256())
        )


class SoftHost:
    """A host and its trust agent.

    :param lies: replaces what a method would have answered.
    """

    def __init__(
        self, maker: Maker, host: str = "node1", log: bytes | None = None
    ) -> None:
        # The enroller is not known yet: the certificate comes over the wire.
        self.tpm = SoftTpm(Enroller("nobody"), host=host)
        self.ek_key = ec.generate_private_key(ec.SECP256R1())
        self.ek = Public.parse(_area(self.ek_key.public_key()))
        self.ek_certificate = maker.certify(self.ek_key.public_key())
        self.ak_certificate = ""
        self.boot(log or log_of())
        self.pending: dict[str, KeyRequest] = {}
        self.tls_key = jose.generate_key()
        self.lies: dict[str, Any] = {}
        self.calls: list[str] = []

    def boot(self, log: bytes) -> None:
        """The PCRs that the log gives."""
        self.log = log
        self.tpm.pcrs = dict.fromkeys(range(10), bytes(32))
        self.tpm.pcrs.update(eventlog.replay(eventlog.parse(log)))

    @property
    def ek_sha256(self) -> str:
        return self.ek_certificate.fingerprint(hashes.SHA256()).hex()

    def evidence(
        self, label: str, nonce: bytes, claims: bytes
    ) -> dict[str, Any]:
        made = self.tpm.evidence(label, nonce, claims, self.log).to_dict()
        return {**made, "ak_certificate": self.ak_certificate}

    def release(self, nonce: bytes, digest: bytes) -> dict[str, Any]:
        return self.evidence(
            LABEL_RELEASE, nonce, release_claims(digest, self.tpm.bind)
        )

    def vm(self, nonce: bytes, claims: VmClaims) -> dict[str, Any]:
        return self.evidence(LABEL_VM, nonce, claims.digest())

    def migration_key(self, nonce: bytes) -> dict[str, Any]:
        claims = key_claims(self.tpm.host, jose.public(self.tls_key))
        return self.evidence(LABEL_MIGRATION_KEY, nonce, claims)

    def migration(
        self, nonce: bytes, request: MigrationRequest
    ) -> dict[str, Any]:
        return self.evidence(LABEL_MIGRATION, nonce, request.digest())

    # -- the trust agent -------------------------------------------------

    def _lie(self, name: str) -> Any:
        self.calls.append(name)
        lie = self.lies.get(name)
        if isinstance(lie, Exception):
            raise lie
        return lie() if callable(lie) else lie

    def identity(self) -> Identity:
        return self._lie("identity") or Identity(
            self.tpm.host,
            self.tpm.host_id,
            self.ek_certificate,
            self.ek,
            self.tpm.ak,
        )

    def activate(self, credential: bytes, secret: bytes) -> bytes:
        lie = self._lie("activate")
        if lie is not None:
            return bytes(lie)
        opened = activate(self.ek_key, self.ek, self.tpm.ak.name,
                          credential, secret)  # fmt: skip
        if opened is None:
            raise VerificationError("attest.listener.refused", "integrity")
        return opened

    def put_certificate(self, pem: str) -> None:
        self._lie("put_certificate")
        self.ak_certificate = pem

    def host_quote(self, nonce: bytes) -> Any:
        return self._lie("host_quote") or self.evidence(
            LABEL_HOST, nonce, self.tpm.bind.name
        )

    def migration_quote(self, nonce: bytes) -> tuple[Any, Any]:
        lie = self._lie("migration_quote")
        if lie is not None:
            return lie  # type: ignore[no-any-return]
        return jose.public(self.tls_key), self.migration_key(nonce)

    def pending_release(self, nonce: bytes, key_url: str) -> tuple[Any, Any]:
        lie = self._lie("pending_release")
        if lie is not None:
            return lie  # type: ignore[no-any-return]
        request = self.pending.get(key_url)
        if request is None:
            raise NotFound("agent.compat.nothing-pending", "nothing")
        return request.to_dict(), self.release(nonce, request.digest())


def activate(
    key: ec.EllipticCurvePrivateKey,
    ek: Public,
    name: bytes,
    credential: bytes,
    secret: bytes,
) -> bytes | None:
    """TPM2_ActivateCredential (Part 1, "Credential Protection")."""
    point = Reader(secret)
    x, y = point.sized(), point.sized()
    ephemeral = ec.EllipticCurvePublicNumbers(
        int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
    ).public_key()
    own = key.public_key().public_numbers().x.to_bytes(32, "big")
    z = key.exchange(ec.ECDH(), ephemeral)
    seed = kdfe(c.ALG_SHA256, z, b"IDENTITY", x, own, 256)
    blob = Reader(credential)
    mac = blob.sized()
    identity = blob.take(blob.remaining)
    mac_key = kdfa(c.ALG_SHA256, seed, b"INTEGRITY", b"", b"", 256)
    expected = hmac.new(mac_key, identity + name, hashlib.sha256).digest()
    if expected != mac:
        return None
    aes = kdfa(c.ALG_SHA256, seed, b"STORAGE", name, b"", ek.sym_bits)
    decryptor = Cipher(algorithms.AES(aes), CFB(bytes(16))).decryptor()
    plain = decryptor.update(identity) + decryptor.finalize()
    return Reader(plain).sized()
