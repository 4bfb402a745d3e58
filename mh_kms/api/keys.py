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

import uuid
from typing import Any

from mh_core.encoding import canonical_json, parse_json
from mh_core.errors import Denied, InputError
from mh_core.secret import Secret
from mh_kms import release_policy
from mh_kms.api.call import EVENT, Answer, Call
from mh_kms.db import keys
from mh_kms.db.keys import Key
from mh_kms.deliver import deliver_key
from mh_kms.key_stores.base import DEK, OVERLAY_ROOT
from mh_kms.policies import keys as rules
from mh_kms.release_policy import ReleasePolicy

UPLOAD_APV = b"mh/key-upload/v1"


def document(call: Call, key: Key) -> dict[str, Any]:
    """What is said about a key; nothing in it derives from the DEK."""
    origin = call.parts.origin
    return {
        "id": key.id,
        "name": key.name,
        "project": key.project,
        "created_at": key.created_at,
        "policy": parse_json(key.policy_text.encode()),
        "manifests": list(keys.manifests(call.parts.database, key.id)),
        "url": f"{origin}/v1/keys/{key.id}",
        "compat_url": f"{origin}/data-encryption-key/request/{key.id}",
    }


def _policy(call: Call, value: Any) -> str:
    """The owner's document, checked, and kept as it is."""
    policy = ReleasePolicy.parse(value)
    for name in policy.all_checks:
        if name not in call.parts.checks:
            raise InputError(
                release_policy.EVENT, f"the check {name!r} is not loaded here"
            )
    return canonical_json(value).decode()


def create(call: Call) -> Answer:
    """Take a key in; its overlay root is made here and never leaves."""
    parts, caller = call.parts, call.caller
    if not parts.access.allowed(caller, rules.CREATE, caller.project):
        raise Denied("kms.access.denied", "the access rules do not allow it")
    fields = call.fields()
    name = fields.text("name", minimum=1)
    jwe = fields.text("jwe", maximum=8192)
    policy = fields.object("policy")
    policy_text = _policy(call, policy)
    fields.end()
    dek = parts.transport.unwrap(jwe, UPLOAD_APV)
    if len(dek.reveal()) != 32:
        raise InputError(EVENT, "'jwe': a key of 32 bytes is expected")
    key_id = str(uuid.UUID(bytes=parts.random(16), version=4))
    root = Secret(parts.random(32))
    key = Key(
        id=key_id,
        name=name,
        project=caller.project,
        created_at=parts.now(),
        deleted_at=None,
        revision=1,
        policy_text=policy_text,
        dek=parts.key_store.seal(key_id, DEK, dek),
        overlay_root=parts.key_store.seal(key_id, OVERLAY_ROOT, root),
    )
    with parts.ledger.transaction() as entry:
        keys.insert(entry.connection, key)
        entry.record(
            "kms.key.created",
            key.id,
            project=key.project,
            policy=policy,
            **call.who(),
        )
    return Answer(201, document(call, key))


def index(call: Call) -> Answer:
    """Keys of the caller's project; of all for an administrator."""
    access, caller = call.parts.access, call.caller
    found = [
        key
        for key in keys.of_project(
            call.parts.database,
            None if "admin" in caller.roles else caller.project,
        )
        if access.allowed(caller, rules.LIST, key.project)
    ]
    return Answer(body={"keys": [document(call, key) for key in found]})


def show(call: Call) -> Answer:
    return Answer(body=document(call, call.key(rules.SHOW)))


def set_policy(call: Call) -> Answer:
    """Replace the release policy; decisions under way fall with the old."""
    key = call.key(rules.SET_POLICY)
    policy = parse_json(call.body)
    policy_text = _policy(call, policy)
    with call.parts.ledger.transaction() as entry:
        keys.set_policy(entry.connection, key, policy_text)
        entry.record(
            "kms.key.policy",
            key.id,
            project=key.project,
            policy=policy,
            **call.who(),
        )
    return Answer(body=document(call, call.key(rules.SHOW)))


def delete(call: Call) -> Answer:
    """Destroy DEK and overlay root; the receipt is the audit record."""
    call.empty()
    key = call.key(rules.DELETE)
    parts = call.parts
    with parts.ledger.transaction() as entry:
        keys.delete(entry.connection, key, entry.now)
        entry.record(
            "kms.key.deleted", key.id, project=key.project, **call.who()
        )
    parts.key_store.destroy(key.id, DEK, key.sealed_dek())
    parts.key_store.destroy(key.id, OVERLAY_ROOT, key.sealed_root())
    # What the log still holds of the row goes with it.
    parts.database.truncate_log()
    return Answer(204)


def deliver(call: Call) -> Answer:
    fields = call.fields()
    jwk = fields.object("jwk")
    fields.end()
    jwe = deliver_key(
        call.key_id,
        jwk,
        call.caller,
        parts=call.parts,
        request_id=call.request_id,
    )
    return Answer(body={"jwe": jwe})
