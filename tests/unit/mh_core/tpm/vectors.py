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

"""The vectors of tests/vectors/tpm, and an attestation key in software."""

import json
import pathlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from mh_core import errors
from mh_core.tpm import build, policy
from mh_core.tpm import constants as c
from mh_core.tpm.public import Public

_DIRECTORY = pathlib.Path(__file__).parents[3].parent / "tests/vectors/tpm"


def load(name: str) -> list[dict[str, Any]]:
    """Cases of one file; hexadecimal stays as it is."""
    document = json.loads((_DIRECTORY / f"{name}.json").read_text())
    cases: list[dict[str, Any]] = document["cases"]
    return cases


def parameters(name: str, kind: str | None = None) -> pytest.MarkDecorator:
    """Parametrize a test by the cases of one file."""
    cases = [v for v in load(name) if kind is None or v.get("kind") == kind]
    return pytest.mark.parametrize("case", cases, ids=lambda v: v["name"])


def outcome(function: Any, *arguments: Any) -> str:
    """Return "ok", or the event of the error; anything else escapes."""
    try:
        function(*arguments)
    except errors.MHError as exc:
        return exc.event
    return "ok"


def pcrs(case: dict[str, Any]) -> dict[int, bytes]:
    """PCR values of a case."""
    return {int(k): bytes.fromhex(v) for k, v in case["pcrs"].items()}


class SoftwareAk:
    """A key that looks like an AK and signs whatever it is given."""

    def __init__(self, attributes: int = c.AK_ATTRIBUTES) -> None:
        self._key = ec.derive_private_key(0xABCDEF, ec.SECP256R1())
        self.public = Public.parse(
            build.ecc_public_area(self._key.public_key(), attributes)
        )

    def sign(self, message: bytes) -> bytes:
        return build.ecdsa_signature(self._key, message)

    def quote(
        self,
        extra: bytes,
        values: dict[int, bytes],
        kind: int = c.ST_QUOTE,
        **clock: Any,
    ) -> tuple[bytes, bytes]:
        body = build.quote_body(
            policy.pcr_selection(values), policy.pcr_digest(values)
        )
        message = build.attest(kind, extra, body, **clock)
        return message, self.sign(message)

    def certify(
        self, extra: bytes, key: Public, hierarchy: int = c.RH_NULL
    ) -> tuple[bytes, bytes]:
        parent = hierarchy.to_bytes(4, "big")
        body = build.certify_body(key.name, key.qualified_name(parent))
        message = build.attest(c.ST_CERTIFY, extra, body)
        return message, self.sign(message)
