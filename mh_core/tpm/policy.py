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

"""Policy digests, computed without a TPM (Part 3 section 23)."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Final

from mh_core import errors
from mh_core.tpm import constants as c
from mh_core.tpm import reader
from mh_core.tpm.build import ecc_public_area

__all__ = [
    "EMPTY",
    "ecc_public_area",
    "pcr_bitmap",
    "pcr_digest",
    "pcr_selection",
    "policy_authorize",
    "policy_pcr",
]

#: A policy session's digest before the first command.
EMPTY: Final = bytes(c.SHA256_SIZE)


def pcr_bitmap(indices: Collection[int]) -> bytes:
    """Return pcrSelect, three octets (Part 2 section 10.6.1).

    Raises InputError ``core.tpm.pcr.index``.
    """
    bitmap = 0
    for index in indices:
        if type(index) is not int or not 0 <= index < c.PCR_COUNT:
            raise errors.InputError(
                "core.tpm.pcr.index", f"no PCR has index {index!r}"
            )
        bitmap |= 1 << index
    return bitmap.to_bytes(c.PCR_SELECT_SIZE, "little")


def pcr_selection(indices: Collection[int]) -> bytes:
    """Return TPML_PCR_SELECTION of the SHA-256 bank only.

    Raises InputError ``core.tpm.pcr.index``.
    """
    return reader.pack("IHB", 1, c.ALG_SHA256, c.PCR_SELECT_SIZE) + pcr_bitmap(
        indices
    )


def pcr_digest(pcrs: Mapping[int, bytes]) -> bytes:
    """Return SHA-256 over the values in ascending order of their index.

    pcrs: {0..23: 32 octets}, not empty.

    Raises InputError ``core.tpm.pcr.index``, ``core.tpm.pcr.value`` or
    ``core.tpm.pcr.empty``.
    """
    if not pcrs:
        raise errors.InputError("core.tpm.pcr.empty", "no PCR selected")
    pcr_bitmap(pcrs)
    for index, value in pcrs.items():
        # The digest is over a concatenation: a value of another length
        # would move octets from one register to the next.
        if not isinstance(value, bytes) or len(value) != c.SHA256_SIZE:
            raise errors.InputError(
                "core.tpm.pcr.value", f"PCR {index} is not 32 octets"
            )
    return hashlib.sha256(
        b"".join(pcrs[index] for index in sorted(pcrs))
    ).digest()


def _policy(digest: bytes) -> bytes:
    if not isinstance(digest, bytes) or len(digest) != c.SHA256_SIZE:
        raise errors.InputError(
            "core.tpm.policy.digest", "a policy digest is 32 octets"
        )
    return digest


def policy_pcr(pcrs: Mapping[int, bytes], start: bytes = EMPTY) -> bytes:
    """Return policyDigest after TPM2_PolicyPCR (Part 3 section 23.7).

    start: policyDigest before it, 32 octets.

    Raises InputError ``core.tpm.pcr.*`` or ``core.tpm.policy.digest``.
    """
    digest = pcr_digest(pcrs)
    return hashlib.sha256(
        _policy(start)
        + reader.pack("I", c.CC_POLICY_PCR)
        + pcr_selection(pcrs)
        + digest
    ).digest()


def policy_authorize(key_name: bytes, ref: bytes = b"") -> bytes:
    """Return policyDigest after TPM2_PolicyAuthorize (Part 3 section 23.16).

    The command starts from zero whatever came before, so there is no
    `start`.

    key_name: Name of the authority's key; ref: policyRef.

    Raises InputError ``core.tpm.policy.name``.
    """
    if not key_name:
        raise errors.InputError("core.tpm.policy.name", "empty Name")
    first = hashlib.sha256(
        EMPTY + reader.pack("I", c.CC_POLICY_AUTHORIZE) + key_name
    ).digest()
    return hashlib.sha256(first + ref).digest()
