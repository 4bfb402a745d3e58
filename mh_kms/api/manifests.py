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

import re

from mh_core import manifest as core_manifest
from mh_core.errors import InputError, NotFound
from mh_core.manifest import Manifest
from mh_kms.api.call import EVENT, Answer, Call
from mh_kms.db import keys
from mh_kms.policies import manifests as rules

#: Longest manifest, characters; the token's own bound is the same.
MAX_MANIFEST = 256 * 1024
DIGEST = re.compile(r"[0-9a-f]{64}")


def create(call: Call) -> Answer:
    """Register a manifest that one of the policy's keys signed."""
    key = call.key(rules.CREATE)
    fields = call.fields()
    token = fields.text("manifest", minimum=1, maximum=MAX_MANIFEST)
    fields.end()
    digest = core_manifest.digest(token)
    manifest = Manifest.verify(token, key.policy.manifest_keys)
    if manifest.key_id != key.id:
        raise InputError(EVENT, "'manifest': of an image under another key")
    with call.parts.ledger.transaction() as entry:
        keys.add_manifest(
            entry.connection,
            key,
            digest,
            token,
            manifest.launch_policy,
            entry.now,
        )
        entry.record(
            "kms.manifest.added",
            key.id,
            project=key.project,
            digest=digest,
            image=manifest.image,
            launch_policy=manifest.launch_policy.to_dict(),
            **call.who(),
        )
    return Answer(body={"digest": digest})


def delete(call: Call) -> Answer:
    call.empty()
    key = call.key(rules.DELETE)
    digest = call.params["digest"]
    if not DIGEST.fullmatch(digest):
        raise NotFound("kms.manifest.unknown", "there is no such manifest")
    with call.parts.ledger.transaction() as entry:
        keys.drop_manifest(entry.connection, key, digest)
        entry.record(
            "kms.manifest.removed",
            key.id,
            project=key.project,
            digest=digest,
            **call.who(),
        )
    return Answer(204)
