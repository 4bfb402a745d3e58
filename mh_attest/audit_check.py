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
"""Walking the audit chains: is everything still there, unchanged?"""

import hmac
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from mh_attest.db import audit as rows
from mh_attest.journal import CHECKPOINT_TYP
from mh_core import audit, jose
from mh_core.encoding import parse_json
from mh_core.errors import VerificationError
from mh_core.fields import Fields

EVENT = "attest.audit"


def verify(
    connection: sa.Connection, key: Mapping[str, Any]
) -> dict[str, Any]:
    """Check every chain and its signed heads.

    Records after a chain's last signed head (at most about a second's) can
    be cut off unseen; so can a whole chain, unless its head is kept
    elsewhere: that is why they are returned.

    :param key: public JWK the heads are signed with.
    :raises VerificationError: ``core.audit.chain``,
        ``attest.audit.sequence|checkpoint``.
    """
    chains = []
    for chain in rows.chains(connection):
        links = {0: audit.GENESIS}
        head, expected = audit.GENESIS, 0
        for seq, record, link in rows.rows(connection, chain):
            expected += 1
            if seq != expected:
                raise VerificationError(
                    EVENT + ".sequence",
                    f"record {expected} of chain {chain} is missing",
                )
            head = audit.verify_chain([(record, link)], head)
            links[seq] = head
        for seq, jws in rows.heads(connection, chain):
            _checkpoint(chain, seq, jws, links.get(seq), key)
        chains.append({"chain": chain, "seq": expected, "head": head.hex()})
    return {
        "chains": chains,
        "records": sum(int(str(c["seq"])) for c in chains),
    }


def _checkpoint(
    chain: str,
    seq: int,
    jws: str,
    link: bytes | None,
    key: Mapping[str, Any],
) -> None:
    payload, _kid = jose.verify(jws, [key], CHECKPOINT_TYP)
    fields = Fields(parse_json(payload), EVENT + ".checkpoint")
    same = (
        fields.text("chain") == chain
        and fields.integer("seq", 0, 1 << 60) == seq
        and link is not None
        and hmac.compare_digest(fields.hex("head", 32), link)
    )
    if not same:
        raise VerificationError(
            EVENT + ".checkpoint",
            f"chain {chain} does not have what was signed at {seq}",
        )
