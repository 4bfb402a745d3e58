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
"""Audit chain: each record's hash covers the one before it."""

import hashlib
from collections.abc import Iterable
from typing import Any

from mh_core.encoding import canonical_json, lp
from mh_core.errors import VerificationError

#: Head of an empty chain.
GENESIS = bytes(32)


def encode(record: dict[str, Any]) -> bytes:
    """One record's bytes; no secret may be in it."""
    return canonical_json(record)


def link(previous: bytes, record: bytes) -> bytes:
    """Hash of a record in its chain (32 bytes)."""
    return hashlib.sha256(lp(previous) + lp(record)).digest()


def verify_chain(
    rows: Iterable[tuple[bytes, bytes]], head: bytes = GENESIS
) -> bytes:
    """Walk (record, hash) rows in order; returns the last hash.

    :raises VerificationError: ``core.audit.chain``.
    """
    for record, stored in rows:
        head = link(head, record)
        if head != stored:
            raise VerificationError(
                "core.audit.chain", "a record was changed or is missing"
            )
    return head
