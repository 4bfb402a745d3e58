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
from collections.abc import Mapping
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
#: Members whose values never reach a log, whatever document they stand in;
#: also as the last word of a longer name (``mh_ticket``, ``X-Auth-Token``).
SENSITIVE = frozenset(
    "dek jwe token ticket secret password passphrase authorization k d p q "
    "dp dq qi overlay_keys overlay_root x-auth-token user_data".split()
)
_LAST_WORDS = tuple(
    mark + word
    for word in "dek jwe token ticket secret password passphrase".split()
    for mark in "_-."
)
#: Deeper than any document of ours; what lies below is hidden.
_MAX_DEPTH = 64

# Each is linear in the text, however hostile it is.
_RUN = re.compile(r"[A-Za-z0-9_.-]{8,}")
_PATTERNS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+"), r"\1 "),
    # a key or the like after a name that says what it is
    (
        re.compile(
            r"(?i)(dek|key|passphrase|secret|ticket|password|token)"
            r"(['\"]?\s*[:=]\s*b?['\"]?)[A-Za-z0-9_+/=-]{32,}"
        ),
        r"\1\2",
    ),
    # passwords are shorter
    (
        re.compile(
            r"(?i)(password|passphrase)(['\"]?\s*[:=]\s*)"
            r"(?:b?'[^'\n]*'|b?\"[^\"\n]*\"|[^\s,;&'\"}\])]+)"
        ),
        r"\1\2",
    ),
    # https://user:password@host
    (re.compile(r"(://[^\s/:@]{0,128}:)[^\s/@]+(?=@)"), r"\1"),
    (
        re.compile(
            r"(-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----)"
            r"[^-]*(?:-----END [A-Z ]{0,32}PRIVATE KEY-----)?"
        ),
        r"\1",
    ),
)


def _jose(run: re.Match[str]) -> str:
    """Compact JOSE: three or five base64url parts, the first of them JSON."""
    head, mark, tail = run[0].partition("eyJ")
    return head + _HIDDEN if mark and tail.count(".") >= 2 else run[0]


def _text(text: str) -> str:
    text = _RUN.sub(_jose, text)
    for pattern, kept in _PATTERNS:
        text = pattern.sub(kept + _HIDDEN, text)
    return text


def _is_sensitive(name: Any) -> bool:
    word = str(name).lower()
    return word in SENSITIVE or word.endswith(_LAST_WORDS)


def _redact(value: Any, left: int) -> Any:
    if isinstance(value, Mapping):
        if left == 0:
            return _HIDDEN
        return {
            (_text(name) if isinstance(name, str) else name): (
                _HIDDEN if _is_sensitive(name) else _redact(inner, left - 1)
            )
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_redact(inner, left - 1) for inner in value] if left else []
    if isinstance(value, Secret | bytes | bytearray | memoryview):
        return _HIDDEN
    if isinstance(value, str | BaseException):
        return _text(str(value))
    return value


def redact(value: Any) -> Any:
    """A copy of a document or text with every secret taken out."""
    return _redact(value, _MAX_DEPTH)


class RedactFilter(logging.Filter):
    """Installed once on each service's root handlers.

    Message, exception and stack are turned into text here, where they can
    still be read; a formatter that comes later adds nothing to them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = self._message(record)
        record.args = ()
        if record.exc_info and not record.exc_text:
            record.exc_text = _FORMATTER.formatException(record.exc_info)
        if record.exc_text:
            # else a formatter may make the text afresh
            record.exc_info = None
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True

    @staticmethod
    def _message(record: logging.LogRecord) -> str:
        args: Any = record.args
        if isinstance(args, tuple):
            args = tuple(map(_argument, args))
        elif args:
            args = _argument(args)
        try:
            text = str(record.msg)
            return str(redact(text % args if args else text))
        except Exception as exc:
            # Last resort: whatever its arguments do when they are printed,
            # a log call does not break its caller.
            return f"a log message that cannot be formatted: {type(exc)}"


_FORMATTER = logging.Formatter()


def _argument(value: Any) -> Any:
    """Documents before they are text, where names can still be seen."""
    return redact(value) if isinstance(value, _DOCUMENTS) else value


_DOCUMENTS = (Mapping, list, set, frozenset, bytes, bytearray, memoryview)


class RedactFormatter(logging.Formatter):
    """Redacts what another formatter made, whatever it added to the record.

    oslo.log's formatters append a summary of the exception that is being
    handled, which no filter sees.
    """

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return str(redact(self._inner.format(record)))


def protect(handler: logging.Handler) -> None:
    """No secret leaves through this handler; doing it twice is harmless."""
    if not any(isinstance(one, RedactFilter) for one in handler.filters):
        handler.addFilter(RedactFilter())
    inner = handler.formatter or _FORMATTER
    if not isinstance(inner, RedactFormatter):
        handler.setFormatter(RedactFormatter(inner))
