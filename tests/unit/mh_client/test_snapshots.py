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
"""The chain behind a snapshot: every link, and every way it can lie."""

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mh_client import snapshots
from mh_client.attest import Authority
from mh_core import jose
from mh_core import manifest as manifests
from mh_core.encoding import b64u
from mh_core.errors import MHError
from mh_core.evidence import release_claims
from mh_core.launch_policy import LaunchPolicy
from mh_core.manifest import Manifest
from mh_core.snapshot import SnapshotClaims
from mh_core.tpm.quote import LABEL_RELEASE, LABEL_SNAPSHOT
from tests.fixture import softtpm

ORIGIN = "https://kms.test:15543"
NONCE = bytes(range(32))


class Snapshot:
    """What an honest key server keeps, to be spoilt by a test."""

    def __init__(self) -> None:
        self.enroller = softtpm.Enroller()
        self.tpm = softtpm.SoftTpm(self.enroller)
        self.soft = softtpm.Authority()
        self.signer = jose.generate_key()
        self.label = LABEL_SNAPSHOT
        self.result: dict[str, Any] = {}
        self.offset = 0
        self.claims = SnapshotClaims(
            key_id=str(uuid.uuid4()),
            image=str(uuid.uuid4()),
            manifest_digest="",
            signer=jose.public(self.signer),
            jwe_digest="11" * 32,
            source_key_id=str(uuid.uuid4()),
            source_image=str(uuid.uuid4()),
            source_manifest="22" * 32,
            kms_origin=ORIGIN,
            instance=str(uuid.uuid4()),
            project="p",
            host="node1",
            release=f"{uuid.uuid4()}#7",
            taken_at=int(time.time()),
        )
        self.key_id = self.claims.key_id
        self.quoted: SnapshotClaims | None = None
        self.sign()

    def sign(self, key: Any = None, **changes: Any) -> None:
        manifest = Manifest(
            image=self.claims.image,
            key_id=self.claims.key_id,
            format="qcow2+luks",
            size=1 << 20,
            virtual_size=1 << 30,
            sha256="33" * 32,
            sha512="44" * 64,
            launch_policy=LaunchPolicy(snapshots=True),
        )
        self.manifest = replace(manifest, **changes).sign(key or self.signer)
        self.claims = replace(
            self.claims, manifest_digest=manifests.digest(self.manifest)
        )

    @property
    def authority(self) -> Authority:
        return Authority(
            self.soft.issuer,
            self.soft.url,
            jose.public(self.soft.key),
            self.enroller.pem,
        )

    def document(self) -> dict[str, Any]:
        quoted = self.quoted or self.claims
        values: dict[str, Any] = {
            "audience": ORIGIN,
            "nonce": NONCE,
            "request_digest": quoted.digest(),
            "host": self.tpm.host,
            "host_id": self.tpm.host_id,
            "bind_jwk": self.tpm.bind.jwk(),
            "now": int(time.time()) + self.offset,
        }
        return {
            "claims": self.claims.to_dict(),
            "nonce": b64u(NONCE),
            "evidence": self.tpm.evidence(
                self.label,
                NONCE,
                release_claims(quoted.digest(), self.tpm.bind),
            ).to_dict(),
            "result": self.soft.result(**(values | self.result)),
            "manifest": self.manifest,
        }

    def verify(self, authority: Authority | None = None) -> Any:
        return snapshots.verify(
            self.document(),
            self.key_id,
            authority=authority or self.authority,
            kms_origin=ORIGIN,
        )


def test_verified() -> None:
    one = Snapshot()
    found = one.verify()
    assert found.claims == one.claims
    assert (found.host_id, found.level) == (one.tpm.host_id, "trusted")
    chain = "\n".join(found.lines())
    for word in (
        one.claims.signer["kid"],
        "node1",
        one.tpm.host_id,
        "https://attest.test",
        one.claims.instance,
        one.claims.source_key_id,
        one.claims.source_image,
        one.claims.release,
    ):
        assert word in chain


def test_years_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result has expired since, and the AK's certificate: they were
    good when the key was registered."""
    document = Snapshot()
    kept = document.document()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3e8)
    found = snapshots.verify(
        kept,
        document.key_id,
        authority=document.authority,
        kms_origin=ORIGIN,
    )
    assert found.at < now + 60


def test_a_certificate_that_was_not_valid_then() -> None:
    one = Snapshot()
    one.offset = -10 * 365 * 86400
    with pytest.raises(MHError) as caught:
        one.verify()
    assert caught.value.event == "core.akcert.validity"


def _key(one: Snapshot) -> None:
    one.key_id = str(uuid.uuid4())


def _origin(one: Snapshot) -> None:
    one.claims = replace(one.claims, kms_origin="https://evil.test")


def _quoted(one: Snapshot) -> None:
    one.quoted = replace(one.claims, taken_at=1)


def _label(one: Snapshot) -> None:
    one.label = LABEL_RELEASE


def _result(**changes: Any) -> Callable[[Snapshot], None]:
    return lambda one: one.result.update(changes)


def _host(one: Snapshot) -> None:
    one.claims = replace(one.claims, host="node2")


def _signer(one: Snapshot) -> None:
    one.sign(jose.generate_key())


def _manifest(one: Snapshot) -> None:
    claims = one.claims
    one.sign(size=2 << 20)
    one.claims = claims


def _of(**changes: Any) -> Callable[[Snapshot], None]:
    return lambda one: one.sign(**changes)


SPOILT: dict[str, tuple[Callable[[Snapshot], None], str]] = {
    "another key's": (_key, "client.snapshot.key"),
    "another key server's": (_origin, "client.snapshot.key"),
    "other claims quoted and judged": (_quoted, "core.result.request"),
    "quoted for a release": (_label, "core.tpm.quote.extra-data"),
    "a result for another": (
        _result(request_digest=bytes(32)),
        "core.result.request",
    ),
    "a result of another nonce": (
        _result(nonce=bytes(32)),
        "core.result.nonce",
    ),
    "a result for another server": (
        _result(audience="https://evil.test"),
        "core.result.audience",
    ),
    "a result about another host": (
        _result(host="node2"),
        "client.snapshot.host",
    ),
    "claims of another host": (_host, "client.snapshot.host"),
    "signed by another key": (_signer, "core.jose.signature"),
    "another manifest": (_manifest, "client.snapshot.manifest"),
    "a manifest of another image": (
        _of(image=str(uuid.uuid4())),
        "client.snapshot.manifest",
    ),
    "a manifest of another key": (
        _of(key_id=str(uuid.uuid4())),
        "client.snapshot.manifest",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_refused(name: str) -> None:
    spoil, event = SPOILT[name]
    one = Snapshot()
    spoil(one)
    with pytest.raises(MHError) as caught:
        one.verify()
    assert caught.value.event == event


def test_only_who_is_pinned_counts() -> None:
    one = Snapshot()
    other = Snapshot().authority
    with pytest.raises(MHError) as caught:
        one.verify(replace(one.authority, jwk=other.jwk))
    assert caught.value.event == "core.jose.signature"
    with pytest.raises(MHError) as caught:
        one.verify(replace(one.authority, enroller_pem=other.enroller_pem))
    assert caught.value.event.startswith("core.akcert.")


@pytest.mark.parametrize(
    "name", ["claims", "nonce", "evidence", "result", "manifest"]
)
def test_malformed(name: str) -> None:
    one = Snapshot()
    for odd in (None, 1, "", "x.y.z", [], {}, {"x": 1}):
        document = {**one.document(), name: odd}
        with pytest.raises(MHError):
            snapshots.verify(
                document,
                one.key_id,
                authority=one.authority,
                kms_origin=ORIGIN,
            )
    document = one.document()
    del document[name]
    with pytest.raises(MHError):
        snapshots.verify(
            document, one.key_id, authority=one.authority, kms_origin=ORIGIN
        )
