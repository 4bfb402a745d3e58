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
from mh_core.evidence import Evidence
from mh_core.snapshot import SnapshotClaims
from mh_kms.api.call import Answer, Call
from mh_kms.api.manifests import MAX_MANIFEST
from mh_kms.db import snapshots
from mh_kms.policies import keys as rules
from mh_kms.snapshot import Upload, register


def create(call: Call) -> Answer:
    """The new key of a snapshot, from the host that made it."""
    fields = call.fields()
    upload = Upload(
        nonce=fields.b64u("nonce", 32),
        claims=SnapshotClaims.parse(fields.object("claims")),
        manifest=fields.text("manifest", minimum=1, maximum=MAX_MANIFEST),
        jwe=fields.text("jwe", maximum=8192),
        evidence=Evidence.parse(fields.object("evidence")),
    )
    fields.end()
    key_id = register(
        call.key_id, upload, parts=call.parts, request_id=call.request_id
    )
    return Answer(201, {"key_id": key_id})


def show(call: Call) -> Answer:
    """What the key of a snapshot comes from, for its owner to verify."""
    key = call.key(rules.SHOW)
    return Answer(body=snapshots.document(call.parts.database, key.id))
