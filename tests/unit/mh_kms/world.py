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

"""A key server in a temporary directory, a host, and an authority."""

import pathlib
import time
from dataclasses import replace
from typing import Any

import falcon.testing

from mh_core import jose
from mh_core.encoding import b64u, unb64u
from mh_core.errors import Unavailable
from mh_core.evidence import Evidence
from mh_core.manifest import Manifest
from mh_core.payload import ReleasePayload
from mh_core.request import KeyRequest
from mh_kms import conf as conf_module
from mh_kms import deploy
from mh_kms.attestors.base import Attestor, Pending, Question
from mh_kms.cmd import manage
from mh_kms.db import tokens
from mh_kms.ledger import Ledger
from mh_kms.release_policy import Authority
from tests.fixture import softtpm

ORIGIN = "https://kms.test:15543"
PROJECT = "cloud-project"
IMAGE = "d5c0b8a5-7d2e-4d3c-8f5b-0c9c8b7a6f51"
DEK = bytes(range(32))

CONFIGURATION = """
[kms]
origin = {origin}
accepted_origins = https://proxy.test
[database]
connection = sqlite:///{base}/kms.sqlite
[software_key_store]
kek_file = {base}/kek
"""


class Liar(Attestor):
    """Stands where the authority and the way to it are.

    Without changes it is an honest one that believes all evidence.
    """

    def __init__(
        self, authority: softtpm.Authority, tpm: softtpm.SoftTpm, clock: Any
    ) -> None:
        self.authority, self.tpm, self.clock = authority, tpm, clock
        self.changes: dict[str, Any] = {}
        self.error: Exception | None = None
        self.pending: tuple[KeyRequest, Evidence] | None = None
        self.asked: list[Any] = []
        self.during: Any = None

    def _result(self, nonce: bytes, audience: str, digest: bytes) -> str:
        if self.during is not None:
            self.during()
        if self.error is not None:
            raise self.error
        values: dict[str, Any] = {
            "audience": audience,
            "nonce": nonce,
            "request_digest": digest,
            "host": self.tpm.host,
            "host_id": self.tpm.host_id,
            "bind_jwk": self.tpm.bind.jwk(),
            "now": int(self.clock()),
        }
        return self.authority.result(**(values | self.changes))

    def appraise(self, authority: Authority, question: Question) -> str:
        self.asked.append(question)
        return self._result(
            question.nonce, question.audience, question.request_digest
        )

    def fetch(
        self,
        authority: Authority,
        nonce: bytes,
        audience: str,
        key_url: str,
        ak_pem: str,
    ) -> Pending:
        self.asked.append(key_url)
        if self.error is not None:
            raise self.error
        if self.pending is None:
            raise Unavailable("kms.authority.silent", "nothing prepared")
        request, evidence = self.pending
        if evidence.quote_attest == b"":
            evidence = self.tpm.release_evidence(nonce, request)
        return Pending(
            self._result(nonce, audience, request.digest()), request, evidence
        )


class World:
    """The real server, over a liar's attestor and a clock of our own."""

    def __init__(self, base: pathlib.Path) -> None:
        self.base = base
        self.config = base / "kms.conf"
        self.config.write_text(CONFIGURATION.format(origin=ORIGIN, base=base))
        self.offset = 0.0
        self.tpm = softtpm.SoftTpm(softtpm.Enroller())
        self.authority = softtpm.Authority()
        self.signer = jose.generate_key()

    def start(self) -> None:
        built = deploy.build(conf_module.load(str(self.config)))
        self.attestor = Liar(self.authority, self.tpm, self.clock)
        self.parts = replace(
            built,
            clock=self.clock,
            ledger=Ledger(built.database, self.clock),
            attestor=self.attestor,
        )
        self.start_client()
        self.token = self.make_token("owner", PROJECT, ("owner",))

    def start_client(self) -> None:
        self.client = falcon.testing.TestClient(deploy.application(self.parts))

    def sync(self) -> None:
        assert self.manage("db", "sync") == 0

    def manage(self, *argv: str) -> int:
        return manage.main(["--config-file", str(self.config), *argv])

    def clock(self) -> float:
        return time.time() + self.offset

    def make_token(
        self, name: str, project: str, roles: tuple[str, ...]
    ) -> str:
        token = tokens.make(self.parts.random(32))
        with self.parts.ledger.transaction() as entry:
            tokens.add(
                entry.connection, token, name, project, roles, entry.now
            )
        return token.reveal().decode()

    # -- the owner's side ----------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str | None = None,
    ) -> Any:
        headers = {}
        if token != "":
            chosen = self.token if token is None else token
            headers["Authorization"] = f"Bearer {chosen}"
        return self.client.simulate_request(
            method, path, json=body, headers=headers
        )

    def policy(self, **changes: Any) -> dict[str, Any]:
        policy: dict[str, Any] = {
            "version": 1,
            "authorities": [self.authority.to_dict()],
            "enrollers": [self.tpm.enroller.pem],
            "levels": ["trusted"],
            "projects": [PROJECT],
            "purposes": ["launch", "start"],
            "manifest_keys": [jose.public(self.signer)],
            "tickets": "none",
            "compat": False,
            "lease": 0,
            "tags": {},
            "checks": ["level", "project", "purpose", "manifest", "tags"],
        }
        return policy | changes

    def create_key(
        self, dek: bytes = DEK, token: str | None = None, **changes: Any
    ) -> dict[str, Any]:
        jwe = jose.wrap(dek, self.parts.transport.public, b"mh/key-upload/v1")
        body = {"name": "k", "jwe": jwe, "policy": self.policy(**changes)}
        answer = self.call("POST", "/v1/keys", body, token)
        assert answer.status_code == 201, answer.text
        document: dict[str, Any] = answer.json
        return document

    def manifest(self, key_id: str, **changes: Any) -> str:
        manifest = Manifest(
            image=IMAGE,
            key_id=key_id,
            format="qcow2+luks",
            size=1 << 20,
            virtual_size=1 << 20,
            sha256="11" * 32,
            sha512="22" * 64,
        )
        return replace(manifest, **changes).sign(self.signer)

    def register(self, key_id: str, **changes: Any) -> str:
        answer = self.call(
            "POST",
            f"/v1/keys/{key_id}/manifests",
            {"manifest": self.manifest(key_id, **changes)},
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json["digest"])

    def ticket(self, key_id: str, digest: str, **changes: Any) -> str:
        answer = self.call(
            "POST",
            f"/v1/keys/{key_id}/tickets",
            {"manifest_digests": [digest]} | changes,
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json["ticket"])

    def audit(self, key_id: str) -> list[dict[str, Any]]:
        answer = self.call("GET", f"/v1/keys/{key_id}/audit")
        assert answer.status_code == 200, answer.text
        records: list[dict[str, Any]] = answer.json["records"]
        return records

    # -- the host's side -----------------------------------------------------

    def nonce(self, key_id: str) -> bytes:
        answer = self.call(
            "POST", f"/v1/keys/{key_id}/challenge", {}, token=""
        )
        assert answer.status_code == 200, answer.text
        assert answer.json["expires_in"] == 60
        return unb64u(answer.json["nonce"])

    def request(self, key_id: str, **changes: Any) -> KeyRequest:
        return softtpm.key_request(key_id, ORIGIN, **changes)

    def send(
        self,
        key_id: str,
        nonce: bytes,
        request: KeyRequest,
        evidence: Evidence,
    ) -> Any:
        return self.call(
            "POST",
            f"/v1/keys/{key_id}/release",
            {
                "nonce": b64u(nonce),
                "request": request.to_dict(),
                "evidence": evidence.to_dict(),
            },
            token="",
        )

    def release(self, key_id: str, request: KeyRequest) -> Any:
        """What an honest agent does."""
        nonce = self.nonce(key_id)
        evidence = self.tpm.release_evidence(nonce, request)
        return self.send(key_id, nonce, request, evidence)

    def open(self, jwe: str, request: KeyRequest) -> ReleasePayload:
        plaintext = jose.unwrap(jwe, self.tpm.bind_jwk, request.digest())
        return ReleasePayload.parse(plaintext)
