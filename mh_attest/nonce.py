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
"""Nonces without a store: 4 bytes time, 12 random, 16 of an HMAC.

Nobody is asked who they are before they get one, so giving one out must
cost nothing; that it is used once is kept where it is used.
"""

import hashlib
import hmac
from collections.abc import Callable

from mh_core.encoding import lp
from mh_core.errors import Denied
from mh_core.secret import Secret

#: Seconds a nonce is good for.
LIFE = 60
SIZE = 32


def _tag(key: Secret, purpose: str, body: bytes) -> bytes:
    message = lp(b"mh/nonce/v1") + lp(purpose.encode()) + lp(body)
    return hmac.new(key.reveal(), message, hashlib.sha256).digest()[:16]


def issue(
    key: Secret, purpose: str, now: int, random: Callable[[int], bytes]
) -> bytes:
    """A nonce (32 bytes) that :func:`check` accepts for :data:`LIFE`."""
    body = (now & 0xFFFFFFFF).to_bytes(4, "big") + random(12)
    return body + _tag(key, purpose, body)


def check(
    key: Secret, purpose: str, nonce: bytes, now: int, event: str
) -> int:
    """When it expires, seconds since the epoch.

    :raises Denied: ``event``: not given out here, or too long ago.
    """
    body, tag = nonce[:16], nonce[16:]
    if len(nonce) != SIZE or not hmac.compare_digest(
        tag, _tag(key, purpose, body)
    ):
        raise Denied(event, "the nonce was not given out here")
    expires = int.from_bytes(body[:4], "big") + LIFE
    if not expires - LIFE <= now < expires:
        raise Denied(event, "the nonce has expired")
    return expires
