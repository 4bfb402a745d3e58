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

"""Key store in software: AES-256-GCM under a key in a file."""

import os
import stat

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from oslo_config import cfg

from mh_core.encoding import lp
from mh_core.errors import Unavailable, VerificationError
from mh_core.secret import Secret
from mh_kms.key_stores.base import KeyStore

_FORMAT = b"\x01"
_SIZE = 32
_NONCE = 12


def _unusable(why: str) -> Unavailable:
    return Unavailable("kms.key-store.kek", f"key-encryption key: {why}")


class SoftwareKeyStore(KeyStore):
    """NIST SP 800-38D with random 96-bit nonces; a format byte, nonce,
    ciphertext and tag; associated data = label, key id and role."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._path: str = conf.software_key_store.kek_file
        self._cipher: AESGCM | None = None

    def prepare(self, empty: bool) -> None:
        if os.path.lexists(self._path):
            self._load()
            return
        if not empty:
            # A new one would make every stored key unreadable for ever.
            raise _unusable("the file is missing, and there are keys")
        try:
            fd = os.open(
                self._path,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                0o600,
            )
            with os.fdopen(fd, "wb") as file:
                file.write(os.urandom(_SIZE))
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise _unusable("the file cannot be made") from exc
        self._load()

    def _load(self) -> AESGCM:
        try:
            fd = os.open(
                self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
            with os.fdopen(fd, "rb") as file:
                found = os.fstat(file.fileno())
                key = file.read(_SIZE + 1)
        except OSError as exc:
            raise _unusable("the file cannot be read") from exc
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise _unusable("not a file of this user")
        if stat.S_IMODE(found.st_mode) != 0o600:
            raise _unusable("the file's mode must be 0600")
        if len(key) != _SIZE:
            raise _unusable("the file must hold 32 bytes")
        self._cipher = AESGCM(key)
        return self._cipher

    def _bound_to(self, key_id: str, role: str) -> bytes:
        return lp(b"mh/kms/seal/v1") + lp(key_id.encode()) + lp(role.encode())

    def seal(self, key_id: str, role: str, secret: Secret) -> bytes:
        cipher = self._cipher or self._load()
        nonce = os.urandom(_NONCE)
        return (
            _FORMAT
            + nonce
            + cipher.encrypt(
                nonce, secret.reveal(), self._bound_to(key_id, role)
            )
        )

    def open(self, key_id: str, role: str, sealed: bytes) -> Secret:
        cipher = self._cipher or self._load()
        if sealed[:1] != _FORMAT or len(sealed) < 1 + _NONCE + 16:
            raise VerificationError(
                "kms.key-store.sealed", "not sealed by this key store"
            )
        try:
            return Secret(
                cipher.decrypt(
                    sealed[1 : 1 + _NONCE],
                    sealed[1 + _NONCE :],
                    self._bound_to(key_id, role),
                )
            )
        except InvalidTag as exc:
            raise VerificationError(
                "kms.key-store.sealed",
                "sealed under another key, or for another use",
            ) from exc

    def destroy(self, key_id: str, role: str, sealed: bytes) -> None:
        """The sealed bytes are all there is, and the database drops them."""
