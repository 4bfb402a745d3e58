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

"""LUKS1 headers: build, parse strictly, unlock.

Source: LUKS On-Disk Format Specification 1.2.3: section 2.3 (header), 2.4
(anti-forensic splitter), 4 (initialisation, master key recovery), figures 1
and 2 (fields). All numbers on disk are big-endian; offsets there count
512-byte sectors.

What is accepted is narrower than the specification: AES-256 in two modes,
SHA-256, eight slots of 4000 stripes, bounded sizes and iteration counts.
"""

import hashlib
import hmac
import re
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from mh_core.errors import InputError, VerificationError
from mh_core.image import afsplit

MAGIC = b"LUKS\xba\xbe"
HEADER_SIZE = 592
SLOTS = 8
MIN_ITERATIONS = 1000
MAX_ITERATIONS = 100_000_000
MAX_PAYLOAD = 64 * 1024 * 1024  # bytes from the header to the payload

_PREFIX = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")
_ACTIVE = 0x00AC71F3
_INACTIVE = 0x0000DEAD
_FIRST_SLOT = 8  # sectors
_ALIGN = 8  # sectors
_SECTOR = afsplit.SECTOR
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Slot:
    """One of the eight key slots.

    ``salt`` is 32 bytes, ``key_material_offset`` counts sectors from the
    start of the header. ``iterations`` of an inactive slot means nothing.
    """

    active: bool
    iterations: int
    salt: bytes
    key_material_offset: int
    stripes: int


@dataclass(frozen=True)
class Luks1Header:
    """A header that passed :func:`parse`.

    ``payload_offset`` counts sectors, ``key_bytes`` bytes; ``mk_digest`` is
    20 bytes, ``mk_digest_salt`` 32; ``slots`` has eight entries.
    """

    version: int
    cipher_name: str
    cipher_mode: str
    hash_spec: str
    payload_offset: int
    key_bytes: int
    mk_digest: bytes
    mk_digest_salt: bytes
    mk_digest_iterations: int
    uuid: uuid.UUID
    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        """Bytes from the start of the header to the payload."""
        return self.payload_offset * _SECTOR


def passphrase(key: bytes) -> bytes:
    """The LUKS passphrase for a key: its lower-case hex digits.

    :param key: 32 bytes, not all zero.
    :returns: 64 ASCII characters.
    :raises InputError: ``core.image.luks.key``.
    """
    if len(key) != 32 or not any(key):
        raise InputError(
            "core.image.luks.key", "a disk key is 32 bytes, not all zero"
        )
    return key.hex().encode("ascii")


def _draw(random: Callable[[int], bytes], size: int) -> bytes:
    data = random(size)
    if len(data) != size or not any(data):
        raise InputError(
            "core.image.luks.key", "the random source gave too little"
        )
    return data


def _master(
    key: bytes | None, size: int, random: Callable[[int], bytes]
) -> bytes:
    master = _draw(random, size) if key is None else key
    half = size // 2
    if len(master) != size or not any(master):
        raise InputError(
            "core.image.luks.key",
            f"this cipher needs a master key of {size} bytes, not all zero",
        )
    if master[:half] == master[half:]:
        raise InputError(
            "core.image.luks.key", "the halves of the master key are equal"
        )
    return master


def build(
    passphrase: bytes,
    luks_uuid: uuid.UUID,
    random: Callable[[int], bytes],
    cipher_mode: str = "xts-plain64",
    iterations: int = 1000,
    master_key: bytes | None = None,
) -> tuple[bytes, bytes]:
    """A new header with one active slot, laid out as QEMU does.

    :param passphrase: any non-empty bytes; use :func:`passphrase`.
    :param luks_uuid: stands in the header.
    :param random: gives that many random bytes.
    :param cipher_mode: ``xts-plain64`` or ``cbc-essiv:sha256``.
    :param iterations: PBKDF2 rounds of slot and digest. 1000 is enough only
        because the passphrase is a random 256-bit key.
    :param master_key: 64 bytes for XTS, 32 for CBC; drawn when None.
    :returns: (header with key material, up to the payload; master key).
    :raises InputError: ``core.image.luks.cipher``,
        ``core.image.luks.iterations``, ``core.image.luks.key``.
    """
    size = afsplit.KEY_BYTES.get(cipher_mode)
    if size is None:
        raise InputError(
            "core.image.luks.cipher", "this cipher mode is not supported"
        )
    _iterations(iterations, MAX_ITERATIONS)
    if not passphrase:
        raise InputError("core.image.luks.key", "the passphrase is empty")
    master = _master(master_key, size, random)
    mk_salt = _draw(random, 32)
    slot_salt = _draw(random, 32)
    slot_key = hashlib.pbkdf2_hmac(
        "sha256", passphrase, slot_salt, iterations, size
    )
    stride = -(-size * afsplit.STRIPES // _SECTOR)
    stride = -(-stride // _ALIGN) * _ALIGN
    payload = _FIRST_SLOT + SLOTS * stride
    header = _PREFIX.pack(
        MAGIC,
        1,
        b"aes",
        cipher_mode.encode("ascii"),
        b"sha256",
        payload,
        size,
        hashlib.pbkdf2_hmac("sha256", master, mk_salt, iterations, 20),
        mk_salt,
        iterations,
        str(luks_uuid).encode("ascii"),
    )
    for i in range(SLOTS):
        used = (_ACTIVE, iterations, slot_salt)
        header += _SLOT.pack(
            *(used if i == 0 else (_INACTIVE, 0, bytes(32))),
            _FIRST_SLOT + i * stride,
            afsplit.STRIPES,
        )
    filler = _draw(random, size * (afsplit.STRIPES - 1))
    material = afsplit.encrypt(
        cipher_mode, slot_key, afsplit.split(master, filler)
    )
    area = bytearray(payload * _SECTOR)
    area[: len(header)] = header
    start = _FIRST_SLOT * _SECTOR
    area[start : start + len(material)] = material
    return bytes(area), master


def _iterations(number: int, most: int) -> int:
    if not MIN_ITERATIONS <= number <= min(most, MAX_ITERATIONS):
        raise InputError(
            "core.image.luks.iterations",
            f"{number} PBKDF2 iterations are not allowed",
        )
    return number


def _text(field: bytes, event: str) -> str:
    """A NUL-padded field of printable ASCII."""
    text, _, rest = field.partition(b"\0")
    if any(rest) or not all(0x20 < byte < 0x7F for byte in text):
        raise InputError(event, "a text field of the LUKS header is malformed")
    return text.decode("ascii")


def _parse_slots(
    header: bytes, payload: int, key_bytes: int, most: int
) -> tuple[Slot, ...]:
    """The eight slots, none outside the header area or over another."""
    event = "core.image.luks.slots"
    length = -(-key_bytes * afsplit.STRIPES // _SECTOR)
    slots = []
    for i in range(SLOTS):
        state, rounds, salt, offset, stripes = _SLOT.unpack_from(
            header, _PREFIX.size + i * _SLOT.size
        )
        if state not in (_ACTIVE, _INACTIVE):
            raise InputError(event, f"slot {i} is neither on nor off")
        if stripes != afsplit.STRIPES:
            raise InputError(event, f"slot {i} has {stripes} stripes")
        first = -(-HEADER_SIZE // _SECTOR)
        if not first <= offset <= payload - length:
            raise InputError(event, f"slot {i} is outside the header area")
        if state == _ACTIVE:
            _iterations(rounds, most)
        slots.append(Slot(state == _ACTIVE, rounds, salt, offset, stripes))
    starts = sorted(slot.key_material_offset for slot in slots)
    if any(b - a < length for a, b in zip(starts, starts[1:], strict=False)):
        raise InputError(event, "key slots overlap")
    if not any(slot.active for slot in slots):
        raise InputError(event, "no key slot is active")
    return tuple(slots)


def parse(header: bytes, max_iterations: int = 10_000_000) -> Luks1Header:
    """Parse a header strictly; key material need not be there.

    :param header: at least the first 592 bytes.
    :param max_iterations: the most PBKDF2 rounds to accept, in the digest
        and in each active slot; 100 000 000 at most, whatever is asked.
    :raises InputError: ``core.image.luks.`` and one of ``truncated``,
        ``magic``, ``version``, ``cipher``, ``hash``, ``payload``,
        ``iterations``, ``uuid``, ``slots``.
    """
    if header[: len(MAGIC)] != MAGIC:
        raise InputError("core.image.luks.magic", "this is not LUKS")
    if len(header) < HEADER_SIZE:
        raise InputError("core.image.luks.truncated", "the header is cut off")
    (_, version, name, mode, hash_name, payload, key_bytes) = (
        _PREFIX.unpack_from(header)[:7]
    )
    digest, salt, rounds, text = _PREFIX.unpack_from(header)[7:]
    if version != 1:
        raise InputError(
            "core.image.luks.version", f"LUKS version {version} is not 1"
        )
    cipher_name = _text(name, "core.image.luks.cipher")
    cipher_mode = _text(mode, "core.image.luks.cipher")
    if cipher_name != "aes" or afsplit.KEY_BYTES.get(cipher_mode) != key_bytes:
        raise InputError(
            "core.image.luks.cipher",
            f"{cipher_name}-{cipher_mode} with a key of {key_bytes} bytes"
            " is not allowed",
        )
    hash_spec = _text(hash_name, "core.image.luks.hash")
    if hash_spec != "sha256":
        raise InputError(
            "core.image.luks.hash", f"hash {hash_spec} is not allowed"
        )
    if not 0 < payload * _SECTOR <= MAX_PAYLOAD:
        raise InputError(
            "core.image.luks.payload",
            f"a payload at sector {payload} is not allowed",
        )
    _iterations(rounds, max_iterations)
    uuid_text = _text(text, "core.image.luks.uuid")
    if not _UUID.fullmatch(uuid_text):
        raise InputError("core.image.luks.uuid", "the uuid is malformed")
    return Luks1Header(
        version=version,
        cipher_name=cipher_name,
        cipher_mode=cipher_mode,
        hash_spec=hash_spec,
        payload_offset=payload,
        key_bytes=key_bytes,
        mk_digest=digest,
        mk_digest_salt=salt,
        mk_digest_iterations=rounds,
        uuid=uuid.UUID(uuid_text),
        slots=_parse_slots(header, payload, key_bytes, max_iterations),
    )


def unlock(
    header_area: bytes, passphrase: bytes, max_iterations: int = 10_000_000
) -> bytes:
    """The master key, if some active slot opens with the passphrase.

    :param header_area: the header with its key material, up to the payload.
    :param passphrase: as given to PBKDF2; see :func:`passphrase`.
    :param max_iterations: as in :func:`parse`; bounds the time this takes.
    :returns: ``key_bytes`` bytes.
    :raises InputError: as :func:`parse`.
    :raises VerificationError: ``core.image.luks.passphrase``.
    """
    header = parse(header_area, max_iterations)
    if len(header_area) < header.size:
        raise InputError(
            "core.image.luks.truncated", "the key material is cut off"
        )
    size = header.key_bytes
    length = -(-size * afsplit.STRIPES // _SECTOR) * _SECTOR
    for slot in header.slots:
        if not slot.active:
            continue
        slot_key = hashlib.pbkdf2_hmac(
            "sha256", passphrase, slot.salt, slot.iterations, size
        )
        start = slot.key_material_offset * _SECTOR
        material = afsplit.decrypt(
            header.cipher_mode, slot_key, header_area[start : start + length]
        )
        master = afsplit.merge(material[: size * afsplit.STRIPES], size)
        digest = hashlib.pbkdf2_hmac(
            "sha256",
            master,
            header.mk_digest_salt,
            header.mk_digest_iterations,
            20,
        )
        if hmac.compare_digest(digest, header.mk_digest):
            return master
    raise VerificationError(
        "core.image.luks.passphrase", "no key slot opens with this key"
    )
