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

"""Anti-forensic splitting and sector ciphers of LUKS1 key material.

Source: LUKS On-Disk Format Specification 1.2.3, sections 2.4 (anti-forensic
splitter) and 5 (cipher modes); dm-crypt for the IV generators. Pure
functions; nothing here reads a header, so every length is checked by the
caller (``mh_core.image.luks1``).
"""

import hashlib
import struct
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SECTOR = 512
STRIPES = 4000
XTS = "xts-plain64"
CBC = "cbc-essiv:sha256"
KEY_BYTES = {XTS: 64, CBC: 32}  # AES-256 in both

_DIGEST = 32


def _fold(stripes: bytes, size: int) -> bytes:
    """Diffuse and xor whole stripes, from an all-zero state.

    The diffuser H1 hashes each 32-byte piece of a stripe with the number of
    the piece, so a piece depends on its own column only: one column at a
    time, with integers for the xor, is the fast order in Python.

    :param stripes: a multiple of ``size`` bytes.
    :param size: bytes of one stripe, 32 or 64.
    :returns: the state after the last stripe, ``size`` bytes.
    """
    sha256 = hashlib.sha256
    number = int.from_bytes
    columns = []
    for piece in range(size // _DIGEST):
        prefix = struct.pack(">I", piece)
        state = bytes(_DIGEST)
        for at in range(piece * _DIGEST, len(stripes), size):
            mixed = number(state, "big") ^ number(
                stripes[at : at + _DIGEST], "big"
            )
            state = sha256(prefix + mixed.to_bytes(_DIGEST, "big")).digest()
        columns.append(state)
    return b"".join(columns)


def _xor(left: bytes, right: bytes) -> bytes:
    number = int.from_bytes(left, "big") ^ int.from_bytes(right, "big")
    return number.to_bytes(len(left), "big")


def split(key: bytes, filler: bytes) -> bytes:
    """AFsplit: spread a key over ``STRIPES`` stripes.

    :param key: 32 or 64 bytes.
    :param filler: random, ``len(key) * (STRIPES - 1)`` bytes.
    :returns: ``len(key) * STRIPES`` bytes.
    """
    return filler + _xor(_fold(filler, len(key)), key)


def merge(material: bytes, size: int) -> bytes:
    """AFmerge: the key out of its stripes.

    :param material: ``size * STRIPES`` bytes.
    :param size: bytes of the key, 32 or 64.
    :returns: the key, ``size`` bytes.
    """
    last = size * (STRIPES - 1)
    return _xor(_fold(material[:last], size), material[last:])


def _ivs(mode: str, key: bytes, first: int, count: int) -> list[bytes]:
    """One 16-byte IV (tweak) for each of so many sectors from ``first``."""
    numbers = range(first, first + count)
    plain = b"".join(struct.pack("<QQ", i, 0) for i in numbers)
    if mode == CBC:
        salt = algorithms.AES(hashlib.sha256(key).digest())
        # ESSIV is by definition one block cipher call for each number.
        essiv = Cipher(salt, modes.ECB()).encryptor()  # noqa: S305
        plain = essiv.update(plain)
    return [plain[at : at + 16] for at in range(0, len(plain), 16)]


def _sectors(
    mode: str,
    key: bytes,
    data: bytes,
    first: int,
    one: Callable[[algorithms.AES, bytes, bytes], bytes],
) -> bytes:
    aes = algorithms.AES(key)
    ivs = _ivs(mode, key, first, len(data) // SECTOR)
    return b"".join(
        one(aes, iv, data[i * SECTOR : (i + 1) * SECTOR])
        for i, iv in enumerate(ivs)
    )


def _mode(mode: str, iv: bytes) -> modes.XTS | modes.CBC:
    return modes.CBC(iv) if mode == CBC else modes.XTS(iv)


def encrypt(mode: str, key: bytes, data: bytes, first: int = 0) -> bytes:
    """Encrypt key material, or data, as dm-crypt does sectors.

    :param mode: one of ``KEY_BYTES``.
    :param key: ``KEY_BYTES[mode]`` bytes.
    :param data: a multiple of 512 bytes.
    :param first: number of the first sector.
    :returns: as many bytes.
    """
    return _sectors(
        mode,
        key,
        data,
        first,
        lambda aes, iv, part: (
            Cipher(aes, _mode(mode, iv)).encryptor().update(part)
        ),
    )


def decrypt(mode: str, key: bytes, data: bytes, first: int = 0) -> bytes:
    """The inverse of :func:`encrypt`; same shapes.

    :param first: number of the first sector.
    """
    return _sectors(
        mode,
        key,
        data,
        first,
        lambda aes, iv, part: (
            Cipher(aes, _mode(mode, iv)).decryptor().update(part)
        ),
    )
