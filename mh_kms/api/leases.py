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

from typing import Any

from mh_core.errors import InputError, NotFound
from mh_core.evidence import Evidence
from mh_core.fields import Fields
from mh_core.lease import LeaseRequest
from mh_kms.api.call import EVENT, Answer, Call
from mh_kms.db import leases
from mh_kms.db.keys import Key
from mh_kms.lease import decide_lease
from mh_kms.policies import instances as rules


def ask(call: Call) -> Answer:
    """A holder renews its lease, hands it over, or says that it is gone."""
    fields = call.fields()
    nonce = fields.b64u("nonce", 32)
    request = LeaseRequest.parse(fields.object("request"))
    evidence = Evidence.parse(fields.object("evidence"))
    fields.end()
    token = decide_lease(
        call.key_id,
        nonce,
        request,
        evidence,
        parts=call.parts,
        request_id=call.request_id,
    )
    return Answer(body={"lease": token})


def _instance(call: Call) -> str:
    """:raises NotFound: ``kms.instance.unknown``: it can name none."""
    fields = Fields({"instance": call.params["instance"]}, EVENT)
    try:
        return fields.uuid("instance")
    except InputError as exc:
        raise NotFound(
            "kms.instance.unknown", "there is no such instance"
        ) from exc


def _document(lease: leases.Lease) -> dict[str, Any]:
    return {
        "id": lease.id,
        "host": lease.host,
        "purpose": lease.purpose,
        "granted_at": lease.granted_at,
        "renewed_at": lease.renewed_at,
        "seconds": lease.seconds,
        "expires_at": lease.expires_at(),
        "ended_at": lease.ended_at,
        "why": lease.why,
        "erased_at": lease.erased_at,
    }


def _show(call: Call, key: Key, instance: str) -> Answer:
    with call.parts.database.reading() as connection:
        found = leases.of_instance(connection, key.id, instance)
        revoked = leases.revoked(connection, key.id, instance)
    return Answer(
        body={
            "instance": instance,
            "revoked": revoked,
            "leases": [_document(lease) for lease in found],
        }
    )


def show(call: Call) -> Answer:
    """Who runs an instance, as far as this server knows."""
    key = call.key(rules.SHOW, deleted=True)
    return _show(call, key, _instance(call))


def set_revoked(call: Call) -> Answer:
    """Forbid every host an instance, or allow it again."""
    key = call.key(rules.REVOKE)
    instance = _instance(call)
    fields = call.fields()
    revoked = fields.boolean("revoked")
    fields.end()
    with call.parts.ledger.transaction() as entry:
        held = []
        if revoked:
            held = leases.revoke(entry.connection, key.id, instance, entry.now)
        else:
            leases.restore(entry.connection, key.id, instance)
        entry.record(
            "kms.lease.revoked" if revoked else "kms.lease.restored",
            key.id,
            project=key.project,
            claims={"instance": instance},
            holders=[lease.host for lease in held],
            **call.who(),
        )
    return _show(call, key, instance)
