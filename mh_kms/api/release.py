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
from mh_core.errors import InputError
from mh_core.evidence import Evidence
from mh_core.request import KeyRequest
from mh_kms.api.call import Answer, Call
from mh_kms.compat import canonical_pem, release_to_ak
from mh_kms.db import keys, nonces
from mh_kms.release import release_key


def challenge(call: Call) -> Answer:
    """A nonce for one release of this key."""
    call.fields().end()
    parts = call.parts
    key = keys.get(parts.database, call.key_id)
    nonce = parts.random(32)
    nonces.add(parts.database, nonce, key.id, parts.now())
    return Answer(body={"nonce": b64u(nonce), "expires_in": nonces.LIFE})


def release(call: Call) -> Answer:
    fields = call.fields()
    nonce = fields.b64u("nonce", 32)
    request = KeyRequest.parse(fields.object("request"))
    evidence = Evidence.parse(fields.object("evidence"))
    fields.end()
    jwe = release_key(
        call.key_id,
        nonce,
        request,
        evidence,
        parts=call.parts,
        request_id=call.request_id,
    )
    return Answer(body={"jwe": jwe})


def compat(call: Call) -> Answer:
    """The seed's form: the body is the AK public key, PEM."""
    if not call.body:
        raise InputError("kms.compat.body", "a public key is expected")
    jwe = release_to_ak(
        call.key_id,
        canonical_pem(call.body),
        call.origin + call.path,
        parts=call.parts,
        request_id=call.request_id,
    )
    return Answer(text=jwe, content_type="application/jose")
