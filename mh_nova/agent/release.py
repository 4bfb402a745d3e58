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
"""Opening a key release: the agent's check that the answer is to *its*
question.

Steps, with the id each refuses by:

1. the JWE opens to this boot's bind key, with the digest of our own request
   (recomputed here) as ``apv`` (``agent.release.unwrap``);
2. the plaintext is a release payload, nothing more
   (``agent.release.payload``);
3. request digest, key, purpose and key server are those asked for, and there
   is an overlay key for exactly the disks asked for
   (``agent.release.binding``);
4. it was issued now (``agent.release.time``);
5. a lease comes with the key that its renewals are signed by, and with an
   id (``agent.release.lease``).
"""

import hmac
import re
from collections.abc import Callable

from mh_core.errors import Denied, InputError, Unavailable, VerificationError
from mh_core.lease import LEASE_ID
from mh_core.payload import ReleasePayload
from mh_core.request import KeyRequest

EVENT = "agent.release"
#: Largest difference between the key server's clock and ours, seconds.
MAX_SKEW = 120


def open_release(
    jwe: str,
    request: KeyRequest,
    unwrap: Callable[[str, bytes], bytes],
    now: int,
) -> ReleasePayload:
    """
    :param jwe: from :meth:`mh_nova.agent.kms.KmsClient.fetch`.
    :param request: what was asked, from our own memory.
    :param unwrap: :meth:`mh_nova.agent.interfaces.Prover.unwrap`.
    :param now: seconds since the epoch.
    :raises Denied: as in the module's list.
    :raises Unavailable: ``agent.release.tpm``.
    """
    digest = request.digest()
    # 1
    try:
        plaintext = unwrap(jwe, digest)
    except Unavailable as exc:
        raise Unavailable(EVENT + ".tpm", f"the TPM: {exc.event}") from exc
    except (InputError, VerificationError) as exc:
        raise Denied(
            EVENT + ".unwrap",
            f"the key does not open on this host now ({exc.event})",
        ) from exc
    # 2
    try:
        payload = ReleasePayload.parse(plaintext)
    except InputError as exc:
        # the cause may quote what it refuses: not chained
        raise Denied(
            EVENT + ".payload", f"not a key release ({exc.event})"
        ) from None
    # 3
    if (
        not hmac.compare_digest(payload.request_digest, digest)
        or payload.key_id != request.key_id
        or payload.purpose != request.purpose
        or payload.kms_origin != request.kms_origin
        or set(payload.overlay_keys) != {disk.name for disk in request.disks}
    ):
        raise Denied(EVENT + ".binding", "the answer is to another request")
    # 4
    if abs(now - payload.issued_at) > MAX_SKEW:
        raise Denied(EVENT + ".time", "the release was not made just now")
    # 5
    if (payload.lease or payload.signing_jwk) and not (
        payload.signing_jwk and re.fullmatch(LEASE_ID, payload.audit)
    ):
        raise Denied(EVENT + ".lease", "the lease could not be renewed")
    return payload
