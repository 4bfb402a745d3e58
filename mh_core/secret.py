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
"""Secrets: a wrapper that does not print itself, and redaction."""

import hmac
import logging
import re
from typing import Any


class Secret:
    """Bytes that show neither in ``repr`` nor in a traceback's locals."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)

    def reveal(self) -> bytes:
        return self._data

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(
            self._data, other._data
        )

    def __hash__(self) -> int:
        raise TypeError("a secret is not a key of a mapping")

    def __reduce__(self) -> Any:
        raise TypeError("a secret is not pickled")


_HIDDEN = "***"
#: Members whose values never reach a log, whatever document they stand in.
SENSITIVE = frozenset(
    "dek jwe token ticket secret password passphrase authorization k d p q "
    "dp dq qi overlay_keys overlay_root x-auth-token user_data".split()
)
_PATTERNS = (
    # compact JOSE: three or five base64url parts
    re.compile(r"\beyJ[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*){2,4}"),
    re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+"),
    # 32 bytes in hexadecimal after a name that says what it is
    re.compile(
        r"(?i)(dek|key|passphrase|secret|ticket|password)(['\"]?\s*[:=]\s*"
        r"b?['\"]?)[A-Za-z0-9_+/=-]{32,}"
    ),
)


def redact(value: Any) -> Any:
    """A copy of a document or text with every secret taken out."""
    if isinstance(value, dict):
        return {
            name: _HIDDEN if str(name).lower() in SENSITIVE else redact(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    if isinstance(value, Secret | bytes | bytearray):
        return _HIDDEN
    if isinstance(value, str):
        text = _PATTERNS[0].sub(_HIDDEN, value)
        text = _PATTERNS[1].sub(lambda m: f"{m[1]} {_HIDDEN}", text)
        return _PATTERNS[2].sub(lambda m: f"{m[1]}{m[2]}{_HIDDEN}", text)
    return value


class RedactFilter(logging.Filter):
    """Installed once on each service's root handlers."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = redact(record.getMessage())
        record.args = ()
        return True
