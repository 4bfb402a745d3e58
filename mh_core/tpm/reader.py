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

"""A bounded reader of packed integers and sized buffers, and its inverse."""

import struct

from mh_core import errors

#: No structure of a TPM is larger; the event log sets its own bound.
MAX_STRUCTURE = 4096


class Reader:
    """Takes integers and octets off the front of a byte string.

    Big-endian, as TPM structures are (Part 2, "Notation"), or
    little-endian, as the event log is. Every method raises
    InputError ``core.tpm.reader.short`` at the end of the input.
    """

    def __init__(
        self,
        data: bytes,
        *,
        little: bool = False,
        limit: int = MAX_STRUCTURE,
    ) -> None:
        """Start at the first octet of data.

        Raises InputError ``core.tpm.reader.size`` beyond `limit` octets and
        ``core.tpm.reader.type`` for what is not bytes.
        """
        # bytes(7) is seven zeros: an integer must not pass as a structure.
        if not isinstance(data, bytes | bytearray | memoryview):
            raise errors.InputError("core.tpm.reader.type", "not bytes")
        self._data = bytes(data)
        if len(self._data) > limit:
            raise errors.InputError(
                "core.tpm.reader.size",
                f"{len(self._data)} octets, at most {limit} allowed",
            )
        self._at = 0
        self._order = "<" if little else ">"

    @property
    def remaining(self) -> int:
        """Octets not yet taken."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """Take exactly `size` octets."""
        if not 0 <= size <= self.remaining:
            raise errors.InputError(
                "core.tpm.reader.short",
                f"{size} octets wanted, {self.remaining} left",
            )
        start = self._at
        self._at += size
        return self._data[start : self._at]

    def _integer(self, code: str, size: int) -> int:
        value: int
        (value,) = struct.unpack(self._order + code, self.take(size))
        return value

    def u8(self) -> int:
        """Take a UINT8."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Take a UINT16."""
        return self._integer("H", 2)

    def u32(self) -> int:
        """Take a UINT32."""
        return self._integer("I", 4)

    def u64(self) -> int:
        """Take a UINT64."""
        return self._integer("Q", 8)

    def sized(self, limit: int = MAX_STRUCTURE) -> bytes:
        """Take a TPM2B: a UINT16 size and so many octets.

        Raises InputError ``core.tpm.reader.size`` beyond `limit`.
        """
        size = self.u16()
        if size > limit:
            raise errors.InputError(
                "core.tpm.reader.size",
                f"buffer of {size} octets, at most {limit} allowed",
            )
        return self.take(size)

    def end(self) -> None:
        """Refuse anything left over.

        Raises InputError ``core.tpm.reader.trailing``.
        """
        if self.remaining:
            raise errors.InputError(
                "core.tpm.reader.trailing", f"{self.remaining} octets too many"
            )


def unwrap(tpm2b: bytes) -> bytes:
    """Return the contents of a TPM2B that is the whole input.

    Raises InputError ``core.tpm.reader.*``.
    """
    reader = Reader(tpm2b)
    content = reader.sized()
    reader.end()
    return content


def pack(code: str, *values: int) -> bytes:
    """Pack big-endian integers; the counterpart of the reader.

    Raises InputError ``core.tpm.pack`` for one out of range.
    """
    try:
        return struct.pack(">" + code, *values)
    except struct.error as exc:
        raise errors.InputError("core.tpm.pack", str(exc)) from None


def sized(content: bytes) -> bytes:
    """Return content as a TPM2B.

    Raises InputError ``core.tpm.pack`` beyond 65535 octets.
    """
    return pack("H", len(content)) + content
