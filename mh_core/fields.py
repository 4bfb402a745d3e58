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
"""Strict reading of a JSON object: every member typed, bounded and known.

::

    fields = Fields(document, "kms.api.body")
    name = fields.text("name", maximum=255)
    nonce = fields.b64u("nonce", length=32)
    fields.end()                       # an unknown member is refused
"""

import re
import uuid as uuid_module
from collections.abc import Callable
from typing import Any, TypeVar, cast

from mh_core.encoding import unb64u
from mh_core.errors import InputError

T = TypeVar("T")
_MISSING: Any = object()
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
# C0 without tab and line feed, DEL, C1, line separators, characters that turn
# the direction of what follows, halves of characters
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
#: Pattern of a text that is one line.
LINE = r"[^\n\t]*"
#: Pattern of a SHA-256 digest.
DIGEST = r"[0-9a-f]{64}"


class Fields:
    """Takes members out of one JSON object, each at most once.

    :param value: what the JSON parser returned.
    :param event: event id of every refusal.
    """

    def __init__(self, value: Any, event: str) -> None:
        if not isinstance(value, dict):
            raise InputError(event, "a JSON object is expected")
        self._left: dict[str, Any] = dict(value)
        self.event = event

    def fail(self, name: str, why: str) -> InputError:
        return InputError(self.event, f"{name!r}: {why}")

    def has(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, kind: type[T], default: Any = _MISSING) -> T:
        value = self._left.pop(name, _MISSING)
        if value is _MISSING:
            if default is _MISSING:
                raise self.fail(name, "is missing")
            return default  # type: ignore[no-any-return]
        if not isinstance(value, kind) or (
            kind is int and isinstance(value, bool)
        ):
            raise self.fail(name, f"must be of type {kind.__name__}")
        return value

    def text(
        self,
        name: str,
        *,
        maximum: int = 255,
        minimum: int = 0,
        pattern: str | None = None,
        default: Any = _MISSING,
    ) -> str:
        value = self.take(name, str, default)
        if value is default:
            return cast(str, value)
        if not minimum <= len(value) <= maximum:
            raise self.fail(name, f"{minimum} to {maximum} characters")
        if pattern is not None and not re.fullmatch(pattern, value):
            raise self.fail(name, "has characters that are not allowed")
        if _CONTROL.search(value):
            raise self.fail(name, "has control characters")
        return value

    def choice(
        self, name: str, values: tuple[str, ...], default: Any = _MISSING
    ) -> str:
        value = self.take(name, str, default)
        if value not in values:
            raise self.fail(name, "must be one of " + ", ".join(values))
        return value

    def integer(
        self, name: str, low: int, high: int, default: Any = _MISSING
    ) -> int:
        value = self.take(name, int, default)
        if value is not default and not low <= value <= high:
            raise self.fail(name, f"must be from {low} to {high}")
        return value

    def boolean(self, name: str, default: Any = _MISSING) -> bool:
        return self.take(name, bool, default)

    def uuid(self, name: str, default: Any = _MISSING) -> str:
        """A UUID in its canonical text form (RFC 9562), lower case."""
        value = self.take(name, str, default)
        if value is default:
            return cast(str, value)
        try:
            if str(uuid_module.UUID(value)) != value:
                raise ValueError
        except ValueError as exc:
            raise self.fail(name, "must be a UUID, lower case") from exc
        return value

    def hex(
        self, name: str, length: int | None = None, maximum: int = 4096
    ) -> bytes:
        """Lower-case hexadecimal; ``length`` in bytes."""
        value = self.take(name, str)
        if len(value) > 2 * maximum or not _HEX.fullmatch(value):
            raise self.fail(name, "must be lower-case hexadecimal")
        data = bytes.fromhex(value)
        if length is not None and len(data) != length:
            raise self.fail(name, f"must be {length} bytes long")
        return data

    def b64u(
        self, name: str, length: int | None = None, maximum: int = 65536
    ) -> bytes:
        """Base64url without padding; ``length`` and ``maximum`` in bytes."""
        value = self.take(name, str)
        if len(value) > maximum * 4 // 3 + 4:
            raise self.fail(name, "is too long")
        data = unb64u(value, self.event)
        if length is not None and len(data) != length:
            raise self.fail(name, f"must be {length} bytes long")
        return data

    def object(self, name: str, default: Any = _MISSING) -> dict[str, Any]:
        return self.take(name, dict, default)

    def list(
        self,
        name: str,
        item: Callable[[Any], T],
        maximum: int = 256,
        default: Any = _MISSING,
    ) -> tuple[T, ...]:
        """A list whose items ``item`` converts (or refuses)."""
        value = self.take(name, list, default)
        if value is default:
            return tuple(value)
        if len(value) > maximum:
            raise self.fail(name, f"more than {maximum} items")
        return tuple(item(entry) for entry in value)

    def end(self) -> None:
        """Refuse what nobody asked for."""
        if self._left:
            first = str(sorted(self._left)[0])[:64]
            raise self.fail(first, "is not known here")


def text_item(
    event: str, maximum: int = 255, pattern: str | None = None
) -> Callable[[Any], str]:
    """Item converter for :meth:`Fields.list`: a bounded string."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= maximum:
            raise InputError(event, "a list item must be a string")
        if _CONTROL.search(value) or (
            pattern is not None and not re.fullmatch(pattern, value)
        ):
            raise InputError(
                event, "a list item has characters that are not allowed"
            )
        return value

    return convert
