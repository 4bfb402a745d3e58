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
"""Bytes and text: base64url, hex, length-prefixed digests, bounded JSON."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

from mh_core.errors import InputError

#: Largest JSON document anybody here reads, bytes.
MAX_JSON = 2 * 1024 * 1024
#: Deepest nesting, so that whoever walks a document may recurse.
MAX_DEPTH = 32
# escapes are the only way to half a character in valid UTF-8
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def b64u(data: bytes) -> str:
    """Base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def unb64u(text: str, event: str = "core.encoding.base64url") -> bytes:
    """Strict inverse of :func:`b64u`.

    :raises InputError: another alphabet, padding, or bits left over.
    """
    try:
        raw = text.encode("ascii")
        data = base64.b64decode(raw + b"=" * (-len(raw) % 4), b"-_", True)
    except (ValueError, binascii.Error) as exc:
        raise InputError(event, "not base64url") from exc
    if b64u(data) != text:
        raise InputError(event, "not canonical base64url")
    return data


def lp(data: bytes) -> bytes:
    """Length-prefixed bytes: 4 bytes big-endian, then the data."""
    return len(data).to_bytes(4, "big") + data


def labelled_digest(label: str, parts: Iterable[bytes]) -> bytes:
    """SHA-256 over a typed label and length-prefixed parts (32 bytes)."""
    digest = hashlib.sha256(lp(label.encode()))
    for part in parts:
        digest.update(lp(part))
    return digest.digest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no white space (a subset of RFC 8785).

    Only for documents without floating-point numbers.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True
    ).encode("ascii")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in pairs:
        if name in out:
            raise InputError("core.json.duplicate", "a member appears twice")
        out[name] = value
    return out


def _no_float(text: str) -> Any:
    raise InputError("core.json.number", "only whole numbers are used here")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if any(isinstance(one, dict | list) for one in level):
        raise InputError(
            "core.json.depth", "the document is nested too deeply"
        )


def parse_json(data: bytes, limit: int = MAX_JSON) -> Any:
    """Parse one JSON document (RFC 8259, and I-JSON's rules, RFC 7493).

    No duplicate members, no floats, no unpaired surrogates, at most
    :data:`MAX_DEPTH` arrays and objects inside each other.

    :param limit: largest size in bytes.
    :raises InputError: ``core.json.*``.
    """
    if len(data) > limit:
        raise InputError("core.json.size", "the document is too large")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_float=_no_float,
            parse_constant=_no_float,
        )
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as exc:
        raise InputError("core.json.syntax", "not a JSON document") from exc
    _check_depth(value)
    return value
