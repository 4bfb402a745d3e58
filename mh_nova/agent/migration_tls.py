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
"""This host's migration key and certificate, where libvirt looks for them.

The key is made here, for this boot, and lies on tmpfs: QEMU reads it there.
The attestation server certifies it, for a short while, against a quote that
covers it; the certificate is renewed with a fresh quote before it ends.
"""

import grp
import hashlib
import logging
import os
import pwd
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from mh_core import jose
from mh_core.akcert import load_certificate
from mh_core.encoding import b64u
from mh_core.errors import Denied, InputError, MHError, NotFound, Unavailable
from mh_core.evidence import Evidence
from mh_core.fields import Fields
from mh_core.migration import key_claims, pinned_name
from mh_nova.agent import host_conf
from mh_nova.agent.authority import ask
from mh_nova.agent.interfaces import Prover
from mh_nova.agent.storage import in_memory

LOG = logging.getLogger(__name__)
EVENT = "agent.migrate"
#: Seconds before the next try to get a certificate.
RETRY = 5.0
#: A certificate that ends sooner than this is as good as none, seconds.
MARGIN = 5
CA = "ca-cert.pem"
KEYS = ("server-key.pem", "client-key.pem")
CERTIFICATES = ("server-cert.pem", "client-cert.pem")


@dataclass(frozen=True)
class Certified:
    """
    :param ca_sha256: of the DER form of the CA's certificate, 32 bytes.
    :param name: that only this key's certificates have.
    :param expires_at: seconds since the epoch.
    """

    ca_sha256: bytes
    name: str
    expires_at: int


def jwk_of(key: ec.EllipticCurvePublicKey) -> jose.Jwk:
    """The one form in which a migration key is named."""
    point = key.public_numbers()
    return jose.public(
        {
            "kty": "EC",
            "crv": "P-256",
            "x": b64u(point.x.to_bytes(32, "big")),
            "y": b64u(point.y.to_bytes(32, "big")),
        }
    )


class MigrationTls:
    """
    :param conf: ``[migration]`` and ``[agent]`` options.
    """

    def __init__(self, conf: Any, prover: Prover) -> None:
        self._conf = conf
        self._prover = prover
        self._folder = Path(conf.migration.tls_dir)
        self._lock = threading.Lock()
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._certified: Certified | None = None
        self._renew_at = 0.0
        self._stopped = threading.Event()
        self._said = ""
        self._thread = threading.Thread(
            target=self._run, name="migration-tls", daemon=True
        )

    @property
    def enabled(self) -> bool:
        """The operator wants it, and there is an authority to ask."""
        return bool(
            self._conf.agent.live_migration
            and self._conf.agent.attest_url
            and self._conf.migration.authority_jwk_file
        )

    def start(self) -> None:
        if self.enabled:
            self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    # -- for others ------------------------------------------------------

    def certified(self) -> Certified:
        """What this host can be known by now.

        :raises Denied: ``agent.migrate.certificate``.
        """
        with self._lock:
            found = self._certified
        if found is None or found.expires_at - MARGIN <= time.time():
            raise Denied(
                EVENT + ".certificate",
                "this host has no valid migration certificate",
            )
        return found

    def quote(self, nonce: bytes) -> tuple[jose.Jwk, Evidence]:
        """Public key, and evidence that this host holds it now.

        :raises NotFound: ``agent.migrate.no-key``.
        """
        with self._lock:
            key = self._key
        if key is None:
            raise NotFound(EVENT + ".no-key", "no migration key here")
        jwk = jwk_of(key.public_key())
        claims = key_claims(self._conf.agent.host, jwk)
        return jwk, self._prover.migration_key_evidence(nonce, claims)

    # -- renewal ---------------------------------------------------------

    def _run(self) -> None:
        while True:
            wait = max(self._renew_at - time.monotonic(), 0.0)
            if self._stopped.wait(wait):
                return
            try:
                self.renew()
                self._said = ""
            except (MHError, OSError) as exc:
                self._renew_at = time.monotonic() + RETRY
                why = (
                    str(exc)
                    if isinstance(exc, MHError)
                    else type(exc).__name__
                )
                if why != self._said:
                    LOG.warning("%s.renewal: %s", EVENT, why)
                self._said = why

    def renew(self) -> Certified:
        """Have the key certified, and put it all where libvirt looks.

        1. the directory is the one libvirt reads, on tmpfs, ours, and nobody
           else writes there;
        2. the key: this boot's, or a new one;
        3. the attestation server certifies it against a quote;
        4. the certificate is for this key, from the CA beside it.

        :raises Denied: ``agent.migrate.tmpfs|directory|owner``,
            ``agent.migrate.certificate``; as :func:`authority.ask`.
        :raises Unavailable: as there; of the prover.
        """
        if self._prover.ak_certificate is None:
            raise Unavailable(
                EVENT + ".not-enrolled", "the host is not enrolled yet"
            )
        # 1
        self._check_folder()
        # 2
        key = self._load_key()
        jwk = jwk_of(key.public_key())
        host = self._conf.agent.host
        claims = key_claims(host, jwk)

        def body(nonce: bytes) -> dict[str, Any]:
            evidence = self._prover.migration_key_evidence(nonce, claims)
            return {
                "host": host,
                "jwk": jwk,
                "evidence": evidence.to_dict(),
            }

        # 3
        started = time.time()
        fields = ask(
            self._conf.agent,
            EVENT,
            "migration-key",
            "/v1/migration-certificates",
            body,
        )
        # 4
        pem, ca = _answer(fields, key.public_key())
        for name in CERTIFICATES:
            self._write(name, pem.public_bytes(Encoding.PEM))
        der = ca.public_bytes(Encoding.DER)
        self._write(CA, ca.public_bytes(Encoding.PEM))
        end = pem.not_valid_after_utc.timestamp()
        certified = Certified(
            hashlib.sha256(der).digest(), pinned_name(jwk), int(end)
        )
        with self._lock:
            self._certified = certified
        self._renew_at = time.monotonic() + max((end - started) / 2, RETRY)
        LOG.info("%s.certified: until %d", EVENT, certified.expires_at)
        return certified

    def _check_folder(self) -> None:
        """Step 1."""
        try:
            status = os.stat(self._folder, follow_symlinks=False)
            memory = in_memory(str(self._folder))
            text = Path(self._conf.agent.qemu_conf).read_text()
        except (OSError, UnicodeError) as exc:
            raise Denied(
                EVENT + ".directory",
                "[migration] tls_dir, or qemu.conf, is not there",
            ) from exc
        if not memory:
            raise Denied(
                EVENT + ".tmpfs", "[migration] tls_dir is not on tmpfs"
            )
        if (
            not stat.S_ISDIR(status.st_mode)
            or status.st_uid != os.geteuid()
            or stat.S_IMODE(status.st_mode) & 0o022
        ):
            raise Denied(
                EVENT + ".directory",
                "[migration] tls_dir must be ours and writable by us only",
            )
        named = host_conf.qemu(text, "migrate_tls_x509_cert_dir")
        if {os.path.normpath(path) for path in named} != {
            os.path.normpath(self._folder)
        }:
            raise Denied(
                EVENT + ".directory",
                "qemu.conf: migrate_tls_x509_cert_dir is not [migration] "
                "tls_dir",
            )

    def _load_key(self) -> ec.EllipticCurvePrivateKey:
        """This boot's key; what cannot be read is replaced."""
        with self._lock:
            if self._key is not None:
                return self._key
        try:
            found = load_pem_private_key(
                (self._folder / KEYS[0]).read_bytes(), None
            )
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
            found = None
        if not isinstance(found, ec.EllipticCurvePrivateKey) or not isinstance(
            found.curve, ec.SECP256R1
        ):
            found = ec.generate_private_key(ec.SECP256R1())
            for name in CERTIFICATES:
                (self._folder / name).unlink(missing_ok=True)
        pem = found.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        for name in KEYS:
            self._write(name, pem)
        with self._lock:
            self._key = found
        return found

    def _write(self, name: str, data: bytes) -> None:
        """Replace one file; readable by QEMU's group at most."""
        owner = self._owner()
        temporary = self._folder / f".{name}.new"
        fd = os.open(
            temporary,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW,
            0o600,
        )
        with os.fdopen(fd, "wb") as file:
            if owner is not None:
                os.fchown(fd, -1, owner)
                os.fchmod(fd, 0o640)
            file.write(data)
        os.replace(temporary, self._folder / name)

    def _owner(self) -> int | None:
        """Group of QEMU, or None."""
        text = self._conf.migration.tls_owner
        if not text:
            return None
        user, _, group = text.partition(":")
        try:
            if group:
                return grp.getgrnam(group).gr_gid
            return pwd.getpwnam(user).pw_gid
        except KeyError as exc:
            raise Denied(
                EVENT + ".owner", "[migration] tls_owner names nobody here"
            ) from exc


def _answer(
    fields: Fields, key: ec.EllipticCurvePublicKey
) -> tuple[x509.Certificate, x509.Certificate]:
    """Certificate and CA, for this key and no other."""
    event = EVENT + ".certificate"
    try:
        pem = load_certificate(fields.text("certificate", maximum=8192))
        ca = load_certificate(fields.text("ca", maximum=8192))
        fields.integer("expires_at", 0, 1 << 40)
        fields.end()
        pem.verify_directly_issued_by(ca)
        same = pem.public_key() == key
    except InputError as exc:
        raise Denied(event, exc.message) from exc
    except (
        InvalidSignature,
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
    ) as exc:
        raise Denied(event, "not issued by the CA beside it") from exc
    if not same:
        raise Denied(event, "the certificate is for another key")
    return pem, ca
