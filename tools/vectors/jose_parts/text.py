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

"""Compact tokens as text: taking apart and putting together."""

import base64
import json
from typing import Any

Json = dict[str, Any]


def b64u(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64u(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def header(token: str) -> Json:
    found: Json = json.loads(unb64u(token.split(".")[0]))
    return found


def with_part(token: str, index: int, text: str) -> str:
    parts = token.split(".")
    parts[index] = text
    return ".".join(parts)


def flipped(token: str, index: int) -> str:
    """One bit of the middle byte of a part turned over."""
    data = bytearray(unb64u(token.split(".")[index]))
    data[len(data) // 2] ^= 1
    return with_part(token, index, b64u(bytes(data)))


def with_header(token: str, drop: str = "", **changes: Any) -> str:
    """Header members changed after the token was made."""
    members = {**header(token), **changes}
    members.pop(drop, None)
    return with_part(token, 0, b64u(dump(members)))


def left_over(text: str) -> str:
    """The same bytes in base64url that is not canonical.

    The last character of a part that is no multiple of three bytes has bits
    that no byte uses.
    """
    alphabet = (
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    )
    if len(text) % 4 == 0:
        raise ValueError("no bit is left over")
    return text[:-1] + alphabet[alphabet.index(text[-1]) + 1]
