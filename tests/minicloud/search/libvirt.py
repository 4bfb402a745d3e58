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
"""libvirt's encrypted secrets, opened with keys that lie about.

libvirt writes the passphrases of a guest's disks, encrypted under
``master-key.aes`` (AES-256-CBC), into QEMU's command line and so into the
guest's log.  A key file on a disk makes that log as good as the keys.
"""

import base64
import binascii
import json
import re

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

KEY_NAME = "master-key.aes"
KEY_SIZE = 32
#: How an encrypted secret shows, in QEMU's two ways to write an object.
MARKS = (b'"keyid":"masterKey0"', b"keyid=masterKey0")
#: The secret stands within so many octets around its mark.
AROUND = 4096

_JSON = re.compile(rb'\{[^{}]*"keyid":"masterKey0"[^{}]*\}')
_PLAIN = re.compile(rb"secret,[^ \0'\n]*keyid=masterKey0[^ \0'\n]*")

Sealed = tuple[bytes, bytes]


def sealed(text: bytes) -> set[Sealed]:
    """(initialisation vector, ciphertext) of each secret in a text."""
    found: set[Sealed] = set()
    for match in _JSON.finditer(text):
        try:
            members = json.loads(match[0])
        except ValueError:
            continue
        found |= _pair(members.get("iv"), members.get("data"))
    for match in _PLAIN.finditer(text):
        parts = (part.partition(b"=") for part in match[0].split(b","))
        words = {name: value.decode("latin-1") for name, _, value in parts}
        found |= _pair(words.get(b"iv"), words.get(b"data"))
    return found


def _pair(iv: object, data: object) -> set[Sealed]:
    if not isinstance(iv, str) or not isinstance(data, str):
        return set()
    try:
        pair = base64.b64decode(iv, validate=True), base64.b64decode(data)
    except (binascii.Error, ValueError):
        return set()
    good = len(pair[0]) == 16 and pair[1] and len(pair[1]) % 16 == 0
    return {pair} if good else set()


def unseal(key: bytes, secret: Sealed) -> bytes | None:
    """The plain secret, or None if it was sealed with another key."""
    iv, data = secret
    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    padded = decryptor.update(data) + decryptor.finalize()
    unpadder = PKCS7(128).unpadder()
    try:
        return unpadder.update(padded) + unpadder.finalize()
    except ValueError:
        return None


def seal(key: bytes, iv: bytes, secret: bytes) -> str:
    """The object as libvirt 9 writes it, for what is planted."""
    padder = PKCS7(128).padder()
    padded = padder.update(secret) + padder.finalize()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    data = encryptor.update(padded) + encryptor.finalize()
    return json.dumps(
        {
            "qom-type": "secret",
            "id": "libvirt-1-format-encryption-secret0",
            "data": base64.b64encode(data).decode(),
            "keyid": "masterKey0",
            "iv": base64.b64encode(iv).decode(),
            "format": "base64",
        },
        separators=(",", ":"),
    )
