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
"""Enrolment: which TPM is which host.

The operator says which EK certificate stands in which machine; the EK's
maker says that it is a TPM; credential activation shows that the AK lives
in it.  Only then does the enroller sign.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from cryptography import x509

from mh_attest import address, host_policy
from mh_attest.authority import Authority
from mh_attest.ek_ca import EkCa
from mh_attest.listener import HOST_PATTERN, Identity
from mh_core.akcert import issue_ak_certificate
from mh_core.errors import (
    Denied,
    InputError,
    VerificationError,
)
from mh_core.fields import Fields
from mh_core.tpm.credential import make_credential
from mh_core.tpm.ekcert import verify_ek_certificate
from mh_core.tpm.public import check_ak

EVENT = "attest.enrol"
STEP_HOST = EVENT + ".host"
STEP_EK = EVENT + ".ek-certificate"
STEP_INVENTORY = EVENT + ".inventory"
STEP_AK = EVENT + ".ak"
STEP_CREDENTIAL = EVENT + ".credential"
DONE = EVENT + ".enrolled"
#: Names that the REST paths take.
RESERVED = ("trust",)
SECRET = 32


class Agent(Protocol):
    """What enrolment asks of a host; see ``mh_attest.listener``."""

    def identity(self) -> Identity: ...

    def activate(self, credential: bytes, secret: bytes) -> bytes: ...

    def put_certificate(self, pem: str) -> None: ...


@dataclass(frozen=True)
class EnrolmentRequest:
    """The operator's word about a machine.

    :param ek_sha256: SHA-256 (hex) of the EK certificate's DER, from the
        inventory.
    :param listener_sha256: the same of the listener's certificate, or None.
    """

    host: str
    listener: str
    listener_sha256: str | None
    ek_sha256: str
    group: str
    tags: dict[str, str]
    learn: bool

    @classmethod
    def parse(cls, value: Any) -> "EnrolmentRequest":
        """:raises InputError: ``attest.enrol.body``, ``….address``."""
        event = EVENT + ".body"
        fields = Fields(value, event)
        pin = None
        if isinstance(value, dict) and value.get("listener_sha256") is None:
            fields.take("listener_sha256", object)
        else:
            pin = fields.hex("listener_sha256", 32).hex()
        request = cls(
            host=fields.text("host", pattern=HOST_PATTERN),
            listener=fields.text("listener").rstrip("/"),
            listener_sha256=pin,
            ek_sha256=fields.hex("ek_sha256", 32).hex(),
            group=fields.text("group", pattern=host_policy.NAME),
            tags=host_policy.parse_tags(fields.object("tags"), event),
            learn=fields.boolean("learn"),
        )
        fields.end()
        if request.host in RESERVED:
            raise fields.fail("host", "is a reserved name")
        address.split(request.listener)
        return request


@dataclass(frozen=True)
class Enrolled:
    """A host whose identity is proven, and its certificate."""

    identity: Identity
    ek_sha256: str
    ak_certificate: str


def enrol(
    request: EnrolmentRequest,
    agent: Agent,
    *,
    ek_ca: EkCa,
    authority: Authority,
    check_known: Callable[[Identity, str], None],
    lifetime: timedelta,
    now: datetime,
    random: Callable[[int], bytes],
) -> Enrolled:
    """Prove who a host is, then certify its AK and give it the certificate.

    1. the host calls itself what the operator calls it;
    2. its EK certificate chains to a manufacturer on the operator's list;
    3. and is the one the inventory names;
    4. the AK is a restricted signing key;
    5. nobody else is enrolled with this EK, AK, name or host id;
    6. the TPM of that EK opens a credential made for that AK;
    7. the AK certificate is issued and handed over.

    :param check_known: step 5; takes the identity and the EK fingerprint.
    :raises Denied: ``attest.enrol.host|ek-certificate|inventory|ak|
        credential``.
    :raises Conflict: ``attest.enrol.conflict``.
    :raises Unavailable, VerificationError: ``attest.listener.*``.
    """
    # 1
    identity = agent.identity()
    if identity.host != request.host:
        raise Denied(STEP_HOST, "the host gives itself another name")
    # 2
    try:
        found = verify_ek_certificate(
            identity.ek_certificate,
            identity.ek,
            ek_ca.intermediates,
            ek_ca.roots,
            now,
        )
    except (InputError, VerificationError) as exc:
        raise Denied(STEP_EK, f"{exc.message} [{exc.event}]") from exc
    # 3
    if not hmac.compare_digest(found, request.ek_sha256):
        raise Denied(STEP_INVENTORY, "the EK is not the one in the inventory")
    # 4
    try:
        check_ak(identity.ak)
    except (InputError, VerificationError) as exc:
        raise Denied(STEP_AK, f"{exc.message} [{exc.event}]") from exc
    # 5
    check_known(identity, found)
    # 6
    secret = random(SECRET)
    credential, encrypted = make_credential(
        identity.ek, secret, identity.ak.name, random
    )
    try:
        opened = agent.activate(credential, encrypted)
    except VerificationError as exc:
        raise Denied(STEP_CREDENTIAL, f"{exc.message} [{exc.event}]") from exc
    if not hmac.compare_digest(opened, secret):
        raise Denied(STEP_CREDENTIAL, "the credential was not activated")
    # 7
    certificate = issue_ak_certificate(
        authority.enroller_key,
        authority.enroller,
        identity.ak,
        identity.host_id,
        identity.host,
        now,
        lifetime,
        x509.random_serial_number(),
    )
    agent.put_certificate(certificate)
    return Enrolled(identity, found, certificate)
