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

"""The one way for a key to its owner."""

from collections.abc import Mapping
from typing import Any

from mh_core import jose
from mh_kms.db import keys
from mh_kms.db.tokens import Caller
from mh_kms.key_stores.base import DEK
from mh_kms.parts import Parts
from mh_kms.policies.keys import DELIVER

APV = b"mh/key-deliver/v1"


def deliver_key(
    key_id: str,
    jwk: Mapping[str, Any],
    caller: Caller,
    *,
    parts: Parts,
    request_id: str,
) -> str:
    """Wrap a key to a public key that its owner brought.

    1. the key exists, and the caller may have it;
    2. the public key is one that can be wrapped to;
    3. the audit record is on the disk;
    4. wrap.

    :returns: compact JWE of the 32-byte DEK.
    :raises NotFound: ``kms.key.unknown``: no such key, or another's.
    :raises Denied: ``kms.access.denied``.
    :raises InputError: ``core.jose.key``.
    :raises Unavailable: ``kms.db.unavailable``: not recorded.
    """
    # 1
    key = keys.get(parts.database, key_id)
    parts.access.require(caller, DELIVER, key.project)
    # 2
    recipient = jose.public(jwk)
    # 3
    with parts.ledger.transaction() as entry:
        if not keys.unchanged(entry.connection, key):
            raise keys.unknown()
        entry.record(
            "kms.deliver.delivered",
            key.id,
            project=key.project,
            caller=caller.name,
            recipient=recipient["kid"],
            request_id=request_id,
        )
    # 4
    dek = parts.key_store.open(key.id, DEK, key.sealed_dek())
    return jose.wrap(dek.reveal(), recipient, APV)
