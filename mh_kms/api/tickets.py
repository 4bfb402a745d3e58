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

from mh_core.encoding import b64u
from mh_core.errors import InputError, NotFound
from mh_core.fields import text_item
from mh_kms.api.call import EVENT, Answer, Call
from mh_kms.db import keys, tickets
from mh_kms.policies import tickets as rules

#: Longest life of a ticket, seconds: 30 days.
MAX_TTL = 30 * 24 * 3600
MAX_COUNT = 1000


def create(call: Call) -> Answer:
    """Make a launch ticket: good for ``count`` new instances."""
    key = call.key(rules.CREATE)
    fields = call.fields()
    digests = fields.list("manifest_digests", text_item(EVENT, 64), 1024)
    count = fields.integer("count", 1, MAX_COUNT, 1)
    ttl = fields.integer("ttl", 1, MAX_TTL, 600)
    fields.end()
    if not digests:
        raise InputError(EVENT, "'manifest_digests': none given")
    registered = keys.manifests(call.parts.database, key.id)
    if not set(digests) <= set(registered):
        raise NotFound(
            "kms.manifest.unknown", "a manifest is not one of the key's"
        )
    ticket = b64u(call.parts.random(32))
    hashed = tickets.digest(ticket)
    with call.parts.ledger.transaction() as entry:
        expires_at = entry.now + ttl
        # Not for a key that was deleted in between.
        if not keys.unchanged(entry.connection, key):
            raise keys.unknown()
        tickets.add(
            entry.connection,
            key.id,
            hashed,
            digests,
            count,
            expires_at,
            entry.now,
        )
        entry.record(
            "kms.ticket.created",
            key.id,
            project=key.project,
            manifest_digests=sorted(set(digests)),
            count=count,
            expires_at=expires_at,
            **call.who(),
        )
    return Answer(body={"ticket": ticket, "expires_at": expires_at})
