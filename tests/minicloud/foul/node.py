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
"""A compute host that lies to a key server.

Its root may use the host's TPM as it likes: quote over any bytes, make keys,
certify them.  What it cannot do is make the AK certify a key that is not in
that TPM.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import requests

from mh_core import jose
from mh_core.encoding import b64u, parse_json, unb64u
from mh_core.errors import MHError
from mh_core.evidence import QUOTED, Evidence, release_claims
from mh_core.payload import ReleasePayload
from mh_core.request import KeyRequest
from mh_core.tpm import build
from mh_core.tpm import constants as c
from mh_core.tpm.attest import Attest
from mh_core.tpm.public import Public, hierarchy_name
from mh_core.tpm.quote import LABEL_BIND, LABEL_RELEASE, extra_data
from tests.fixture.softtpm import Enroller, SoftTpm


class Quote(Protocol):
    @property
    def attest(self) -> bytes: ...
    @property
    def signature(self) -> bytes: ...
    @property
    def pcrs(self) -> dict[int, bytes]: ...


class Bind(Protocol):
    @property
    def public(self) -> Public: ...
    @property
    def attest(self) -> bytes: ...
    @property
    def signature(self) -> bytes: ...


class Device(Protocol):
    """A TPM; ``mh_nova.agent.tpm.Tpm`` is one."""

    def ak(self) -> Public: ...
    def quote(self, extra: bytes, selection: Collection[int]) -> Quote: ...
    def make_bind(self) -> Bind: ...


@dataclass(frozen=True)
class Lie:
    """Evidence of some kind, and the bind key if the liar has it.

    :param evidence: makes it from the nonce and the request.
    :param key: private JWK of the software bind key, or None.
    """

    name: str
    evidence: Callable[[bytes, KeyRequest], Evidence]
    key: jose.Jwk | None = None


@dataclass(frozen=True)
class Answer:
    """What the key server said.

    :param event: of a refusal; empty for a release.
    :param payload: of a release that the liar could open: the key is lost.
    """

    status: int
    event: str
    message: str = ""
    audit: str = ""
    payload: ReleasePayload | None = None

    @property
    def released(self) -> bool:
        return self.status == 200


def _evidence(
    device: Device,
    certificate: str,
    bind: Public,
    certified: tuple[bytes, bytes],
    event_log: bytes,
) -> Callable[[bytes, KeyRequest], Evidence]:
    """The TPM's real quote, over whatever bind key the liar names."""

    def make(nonce: bytes, request: KeyRequest) -> Evidence:
        claims = release_claims(request.digest(), bind)
        quote = device.quote(extra_data(LABEL_RELEASE, nonce, claims), QUOTED)
        return Evidence(
            ak_certificate=certificate,
            ak_public=device.ak().raw,
            bind_public=bind.raw,
            bind_attest=certified[0],
            bind_signature=certified[1],
            quote_attest=quote.attest,
            quote_signature=quote.signature,
            pcrs=quote.pcrs,
            event_log=event_log,
        )

    return make


def _software(device: Device) -> SoftTpm:
    """A TPM of nobody's in the same state as the real one."""
    pcrs = device.quote(extra_data(LABEL_RELEASE, b"", b""), QUOTED).pcrs
    return SoftTpm(Enroller(), pcrs=dict(pcrs))


def honest(device: Device, certificate: str, event_log: bytes = b"") -> Lie:
    """No lie at all: shows that the others are refused for their lie."""
    bind = device.make_bind()
    return Lie(
        "honest",
        _evidence(
            device,
            certificate,
            bind.public,
            (bind.attest, bind.signature),
            event_log,
        ),
    )


def software_bind(
    device: Device, certificate: str, event_log: bytes = b""
) -> Lie:
    """A bind key in software under the certification of the real one."""
    real, soft = device.make_bind(), _software(device)
    certified = (real.attest, real.signature)
    return Lie(
        "software bind key",
        _evidence(device, certificate, soft.bind, certified, event_log),
        soft.bind_jwk,
    )


def forged_bind(
    device: Device, certificate: str, event_log: bytes = b""
) -> Lie:
    """A bind key in software, its certification signed in software."""
    soft, ak = _software(device), device.ak()
    real = Attest.parse(device.make_bind().attest)
    # All as the AK would say it; only the signature is not the AK's.
    attest = build.attest(
        c.ST_CERTIFY,
        extra_data(LABEL_BIND, b"", ak.name),
        build.certify_body(
            soft.bind.name,
            soft.bind.qualified_name(hierarchy_name(c.RH_NULL)),
        ),
        signer=ak.qualified_name(hierarchy_name(c.RH_ENDORSEMENT)),
        clock=real.clock,
        reset=real.reset,
        restart=real.restart,
        firmware=real.firmware,
    )
    certified = (attest, build.ecdsa_signature(soft.ak_key, attest))
    return Lie(
        "bind key with a forged certification",
        _evidence(device, certificate, soft.bind, certified, event_log),
        soft.bind_jwk,
    )


def uncertified_bind(
    device: Device,
    other: Device,
    certificate: str,
    event_log: bytes = b"",
) -> Lie:
    """A real bind key, of another TPM and certified by that one's AK."""
    bind = other.make_bind()
    return Lie(
        "bind key that the AK never certified",
        _evidence(
            device,
            certificate,
            bind.public,
            (bind.attest, bind.signature),
            event_log,
        ),
    )


def software_host(name: str, event_log: bytes = b"") -> Lie:
    """A whole TPM in software, its AK certified by nobody we know."""
    soft = SoftTpm(Enroller(), host=name)

    def make(nonce: bytes, request: KeyRequest) -> Evidence:
        claims = release_claims(request.digest(), soft.bind)
        return soft.evidence(LABEL_RELEASE, nonce, claims, event_log)

    return Lie("host without a TPM", make, soft.bind_jwk)


def ask(key_url: str, ca_file: Path, request: KeyRequest, lie: Lie) -> Answer:
    """Ask a key server for a key as a host would.

    :param key_url: ``<origin>/v1/keys/<id>``.
    :param ca_file: who vouches for the server.
    :raises requests.RequestException: it does not answer.
    """
    with requests.Session() as session:
        session.trust_env = False
        session.verify = str(ca_file)
        challenge = _post(session, key_url + "/challenge", {})
        if challenge.status_code != 200:
            return _refusal(challenge)
        nonce = unb64u(challenge.json()["nonce"])
        answer = _post(
            session,
            key_url + "/release",
            {
                "nonce": b64u(nonce),
                "request": request.to_dict(),
                "evidence": lie.evidence(nonce, request).to_dict(),
            },
        )
    if answer.status_code != 200:
        return _refusal(answer)
    payload = None
    if lie.key is not None:
        try:
            opened = jose.unwrap(
                answer.json()["jwe"], lie.key, request.digest()
            )
            payload = ReleasePayload.parse(opened)
        except MHError:
            payload = None
    return Answer(200, "", payload=payload)


def _post(
    session: requests.Session, url: str, body: dict[str, Any]
) -> requests.Response:
    return session.post(url, json=body, timeout=30, allow_redirects=False)


def _refusal(response: requests.Response) -> Answer:
    try:
        error = parse_json(response.content)["error"]
        return Answer(
            response.status_code,
            str(error["event"]),
            str(error.get("message", "")),
            str(error.get("audit", "")),
        )
    except (MHError, KeyError, TypeError, AttributeError):
        return Answer(response.status_code, "")
