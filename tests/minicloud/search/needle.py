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
"""What is looked for, in every form it may have been written in."""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy
import numpy.typing

#: Shorter needles, and shorter forms of them, turn up by chance.
SHORTEST = 16

_WORD = 8
#: Any stretch this long holds a whole word, wherever it begins.
_LEAST = 2 * _WORD - 1
_BITS = 18
_MULTIPLIER = 0x9E3779B97F4A7C15
_BLOCK = 1 << 15  # words looked at in one go: stays in the cache


@dataclass(frozen=True)
class Needle:
    """Something that must not be found.

    :param name: how a report calls it, e.g. ``DEK``.
    :param data: raw octets, 16 or more; never shown.
    """

    name: str
    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.data) < SHORTEST:
            raise ValueError(f"{self.name}: fewer than {SHORTEST} octets")

    @property
    def text(self) -> str | None:
        """The needle as text, if it is printable."""
        try:
            text = self.data.decode()
        except UnicodeDecodeError:
            return None
        return text if text.isprintable() else None


def base64_cores(data: bytes, alphabet: bytes = b"+/") -> list[bytes]:
    """What base64 of anything that holds ``data`` has in common.

    One for each place (mod 3) where the data may begin; the characters at
    both ends that depend on the neighbours are left out.
    """
    cores = []
    for before in range(3):
        text = base64.b64encode(bytes(before) + data, alphabet)
        skip = (0, 2, 3)[before]
        cores.append(text[skip : (before + len(data)) * 8 // 6])
    return cores


def _octets(data: bytes, form: str, between: str) -> bytes:
    return between.join(format(octet, form) for octet in data).encode()


def encodings(needle: Needle) -> dict[str, list[bytes]]:
    """The forms of a needle by their name."""
    data = needle.data
    lower = data.hex().encode()
    upper = lower.upper()
    forms = {
        "raw": [data],
        "reversed": [data[::-1]],
        "hex": [lower],
        "HEX": [upper],
        "hex, colons": [_octets(data, "02x", ":")],
        "HEX, colons": [_octets(data, "02X", ":")],
        "hex, spaces": [_octets(data, "02x", " ")],
        "decimal": [_octets(data, "d", ","), _octets(data, "d", ", ")],
        "base64": base64_cores(data),
        "base64url": base64_cores(data, b"-_"),
        "base64 of hex": base64_cores(lower),
        "base64url of hex": base64_cores(lower, b"-_"),
        "hex of hex": [lower.hex().encode()],
        "UTF-16 of hex": [lower.decode().encode("utf-16-le")],
        "UTF-16 of base64": [
            core.decode().encode("utf-16-le") for core in base64_cores(data)
        ],
        "repr": [repr(data)[2:-1].encode()],
    }
    text = needle.text
    if text is not None:
        forms["UTF-16"] = [text.encode("utf-16-le")]
        forms["JSON"] = [
            json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode()
            for ascii_only in (True, False)
        ]
    for name in [name for name in forms if name != "raw"]:
        new = [form for form in forms[name] if form != data]
        forms[name] = list(dict.fromkeys(new))
        if not new:
            del forms[name]
    return forms


class Matcher:
    """Finds many byte strings in one pass, at the speed of memory.

    Each occurrence of a string of 15 octets or more holds a whole aligned
    word of 8; the words of the haystack are looked up in a table of the
    words that the strings may show there, and what is found is compared.

    :param patterns: byte strings, each of 15 octets at least.
    """

    def __init__(self, patterns: Sequence[bytes]) -> None:
        if not patterns or min(map(len, patterns)) < _LEAST:
            raise ValueError(f"patterns of at least {_LEAST} octets")
        self.patterns = list(patterns)
        self.longest = max(map(len, patterns))
        self._words: dict[int, list[tuple[int, int]]] = {}
        for number, pattern in enumerate(self.patterns):
            for at in range(_WORD):
                word = int.from_bytes(pattern[at : at + _WORD], "little")
                self._words.setdefault(word, []).append((number, at))
        self._known = numpy.array(sorted(self._words), dtype="<u8")
        self._multiplier = numpy.uint64(_MULTIPLIER)
        self._shift = numpy.uint64(64 - _BITS)
        self._table = numpy.zeros(1 << _BITS, dtype=bool)
        self._table[self._hash(self._known)] = True

    def _hash(
        self, words: numpy.typing.NDArray[numpy.uint64]
    ) -> numpy.typing.NDArray[numpy.int64]:
        hashed = words * self._multiplier
        hashed >>= self._shift
        return hashed.view(numpy.int64)

    def find(self, data: bytes | bytearray) -> Iterator[tuple[int, int]]:
        """(number of the pattern, offset) of each occurrence, once."""
        found: set[tuple[int, int]] = set()
        count = len(data) // _WORD
        if not count:
            return
        words = numpy.frombuffer(data, dtype="<u8", count=count)
        for begin in range(0, count, _BLOCK):
            block = words[begin : begin + _BLOCK]
            near = numpy.flatnonzero(self._table[self._hash(block)])
            if not near.size:
                continue
            seen = block[near]
            where = self._known.searchsorted(seen)
            exact = self._known.take(where, mode="clip") == seen
            for index in near[exact].tolist():
                at = (begin + index) * _WORD
                for number, inside in self._words[int(words[begin + index])]:
                    hit = (number, at - inside)
                    if hit in found or hit[1] < 0:
                        continue
                    if data.startswith(self.patterns[number], hit[1]):
                        found.add(hit)
                        yield hit


class Needles:
    """All needles in all their forms, as one matcher."""

    def __init__(
        self, needles: Sequence[Needle], others: Sequence[bytes] = ()
    ) -> None:
        self.tags: dict[bytes, list[tuple[str, str]]] = {}
        for needle in needles:
            for encoding, forms in encodings(needle).items():
                for form in forms:
                    tag = (needle.name, encoding)
                    if tag not in self.tags.setdefault(form, []):
                        self.tags[form].append(tag)
        for other in others:
            self.tags.setdefault(other, [])
        self.matcher = Matcher(list(self.tags))

    def find(self, data: bytes | bytearray) -> Iterator[tuple[bytes, int]]:
        """(form, offset) of each occurrence in ``data``."""
        for number, offset in self.matcher.find(data):
            yield self.matcher.patterns[number], offset
