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
"""VM reports: everything in them is looked at."""

import datetime
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mh_client.attest import Authority
from mh_client.audit import GRANTED, Entry, entry
from mh_client.images import TrustedImage
from mh_client.reports import CHECKS, Judgement, judge
from mh_core import jose
from mh_core import manifest as manifests
from mh_core.encoding import b64u, canonical_json
from mh_core.manifest import Manifest
from mh_core.tpm.quote import LABEL_HOST, extra_data
from mh_core.vm_report import TYP, VmClaims
from mh_glance.properties import ImageProperties
from tests.unit.mh_client.host import Enroller, SoftHost

INSTANCE = "5a8c1f7e-0c57-4a1d-8f0e-3d2f1b6a9c01"
IMAGE = "5a8c1f7e-0c57-4a1d-8f0e-3d2f1b6a9c02"
KEY = "5a8c1f7e-0c57-4a1d-8f0e-3d2f1b6a9c03"
ORIGIN = "https://kms.test"
ISSUER = "https://authority.test"


def image(signing_key: jose.Jwk) -> TrustedImage:
    manifest = Manifest(
        image=IMAGE,
        key_id=KEY,
        format="qcow2+luks",
        size=1000,
        virtual_size=512,
        sha256="11" * 32,
        sha512="22" * 64,
    )
    token = manifest.sign(signing_key)
    properties = ImageProperties(KEY, 512, f"{ORIGIN}/v1/keys/{KEY}", token)
    return TrustedImage(
        {"id": IMAGE}, properties, manifest, manifests.digest(token)
    )


@dataclass
class Bench:
    """One good report; tests spoil a part of it."""

    enroller: Enroller
    key: jose.Jwk = field(default_factory=jose.generate_key)
    image: TrustedImage = field(
        default_factory=lambda: image(jose.generate_key())
    )
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def __post_init__(self) -> None:
        self.host = SoftHost(self.enroller)
        self.claims = VmClaims(
            instance=INSTANCE,
            project="p",
            image=IMAGE,
            key_id=KEY,
            kms_origin=ORIGIN,
            host="node1",
            purpose="launch",
            manifest_digest=self.image.digest,
            domain_digest="33" * 32,
            request_digest="44" * 32,
            started_at=int(time.time()),
            measured={"ciphertext": "ok"},
        )
        self.granted: Entry | None = entry(
            {
                "event": GRANTED,
                "host": "node1",
                "time": int(time.time()),
                "request_digest": "44" * 32,
            }
        )
        self.authority = Authority(
            ISSUER,
            "https://attest.test",
            jose.public(self.key),
            self.enroller.pem,
        )

    def token(
        self, key: jose.Jwk | None = None, typ: str = TYP, **more: Any
    ) -> str:
        payload = {
            "iss": ISSUER,
            "iat": int(time.time()),
            "claims": self.claims.to_dict(),
            "host": "node1",
            "level": "trusted",
            "nonce": b64u(self.nonce),
            **more,
        }
        return jose.sign(canonical_json(payload), key or self.key, typ)

    def document(self, **more: Any) -> dict[str, Any]:
        evidence = self.host.vm_evidence(self.nonce, self.claims)
        return {
            "report": self.token(),
            "nonce": b64u(self.nonce),
            "claims": self.claims.to_dict(),
            "evidence": evidence.to_dict(),
            **more,
        }

    def judge(self, document: Any) -> Judgement:
        return judge(
            document,
            authority=self.authority,
            instance=INSTANCE,
            project="p",
            image=self.image,
            kms_origin=ORIGIN,
            levels=("trusted",),
            granted=self.granted,
        )


@pytest.fixture
def bench(enroller: Enroller) -> Bench:
    return Bench(enroller)


def events(found: Judgement) -> dict[str, str]:
    return {c.name: c.event for c in found.checks if not c.passed}


def test_a_good_report_passes(bench: Bench) -> None:
    found = bench.judge(bench.document())
    assert events(found) == {}
    assert found.passed
    assert tuple(c.name for c in found.checks) == CHECKS
    assert found.claims == bench.claims


CLAIMS: list[tuple[dict[str, Any], str, str]] = [
    ({"instance": IMAGE}, "instance", "client.report.instance"),
    ({"project": "q"}, "instance", "client.report.project"),
    ({"image": INSTANCE}, "image", "client.report.image"),
    ({"manifest_digest": "55" * 32}, "image", "client.report.manifest"),
    ({"key_id": IMAGE}, "key", "client.report.key"),
    ({"kms_origin": "https://x"}, "key", "client.report.origin"),
    ({"measured": {}}, "measured", "client.report.measured"),
    (
        {"measured": {"ciphertext": "ok", "modules": "differs"}},
        "measured",
        "client.report.measured",
    ),
    ({"started_at": 1}, "host", "client.report.time"),
    ({"request_digest": "77" * 32}, "current", "client.report.current"),
]


@pytest.mark.parametrize(("change", "check", "event"), CLAIMS)
def test_a_true_report_of_something_else(
    bench: Bench, change: dict[str, Any], check: str, event: str
) -> None:
    bench.claims = replace(bench.claims, **change)
    found = bench.judge(bench.document())
    assert not found.passed
    assert events(found) == {check: event}


MODULES = {"p1:/vmlinuz": "99" * 32, "p2:/etc/passwd": "88" * 32}
ALL_OK = {"ciphertext": "ok", "files": "ok"} | {
    f"files:{name}": "ok" for name in MODULES
}


def _asks(bench: Bench) -> None:
    """The tenant's manifest asks for two modules."""
    manifest = replace(
        bench.image.manifest, measure="modules", modules=MODULES
    )
    bench.image = replace(bench.image, manifest=manifest)


def test_every_module_that_was_asked_for_was_measured(bench: Bench) -> None:
    _asks(bench)
    bench.claims = replace(bench.claims, measured=ALL_OK)
    found = bench.judge(bench.document())
    assert found.passed
    [check] = [one for one in found.checks if one.name == "measured"]
    assert "files:p1:/vmlinuz, files:p2:/etc/passwd" in str(check)


@pytest.mark.parametrize("missing", sorted(ALL_OK.keys() - {"ciphertext"}))
def test_a_module_that_was_not_measured(bench: Bench, missing: str) -> None:
    _asks(bench)
    measured = {name: "ok" for name in ALL_OK if name != missing}
    bench.claims = replace(bench.claims, measured=measured)
    found = bench.judge(bench.document())
    assert events(found) == {"measured": "client.report.measured"}


def _other_claims(bench: Bench) -> dict[str, Any]:
    document = bench.document()
    claims = replace(bench.claims, domain_digest="66" * 32)
    return {**document, "claims": claims.to_dict()}


def _other_nonce(bench: Bench) -> dict[str, Any]:
    return bench.document(nonce=b64u(bytes(32)))


def _other_label(bench: Bench) -> dict[str, Any]:
    extra = extra_data(LABEL_HOST, bench.nonce, bench.claims.digest())
    return bench.document(evidence=bench.host.evidence(extra).to_dict())


def _other_enroller(bench: Bench) -> dict[str, Any]:
    stranger = SoftHost(Enroller())
    evidence = stranger.vm_evidence(bench.nonce, bench.claims)
    return bench.document(evidence=evidence.to_dict())


def _other_host(bench: Bench) -> dict[str, Any]:
    other = SoftHost(bench.enroller, "node2")
    evidence = other.vm_evidence(bench.nonce, bench.claims)
    return bench.document(evidence=evidence.to_dict())


def _swapped_certificate(bench: Bench) -> dict[str, Any]:
    other = SoftHost(bench.enroller)
    evidence = replace(
        bench.host.vm_evidence(bench.nonce, bench.claims),
        ak_certificate=other.certificate,
    )
    return bench.document(evidence=evidence.to_dict())


def _other_pcrs(bench: Bench) -> dict[str, Any]:
    evidence = bench.host.vm_evidence(bench.nonce, bench.claims)
    pcrs = {**evidence.pcrs, 4: bytes(32)}
    return bench.document(evidence=replace(evidence, pcrs=pcrs).to_dict())


HOSTS: list[tuple[Callable[[Bench], dict[str, Any]], str]] = [
    (_other_claims, "core.tpm.quote.extra-data"),
    (_other_nonce, "core.tpm.quote.extra-data"),
    (_other_label, "core.tpm.quote.extra-data"),
    (_other_enroller, "core.akcert.issuer"),
    (_other_host, "client.report.host"),
    (_swapped_certificate, "core.akcert.key"),
    (_other_pcrs, "core.tpm.quote.pcr-digest"),
]


@pytest.mark.parametrize(("spoil", "event"), HOSTS)
def test_evidence_that_proves_nothing(
    bench: Bench, spoil: Callable[[Bench], dict[str, Any]], event: str
) -> None:
    document = spoil(bench)
    # an authority that lies vouches for it
    claims = document["claims"]
    document["report"] = bench.token(claims=claims, nonce=document["nonce"])
    found = bench.judge(document)
    assert not found.passed
    assert events(found) == {"host": event}


@pytest.mark.parametrize(
    ("more", "event"),
    [
        ({"iss": "https://x"}, "client.report.issuer"),
        ({"host": "node2"}, "client.report.token"),
        ({"nonce": b64u(bytes(32))}, "client.report.token"),
        ({"level": "boot-only"}, "client.report.level"),
        ({"level": ""}, "client.report.level"),
        ({"iat": 0}, "client.report.token"),
        ({"more": 1}, "client.report.token"),
    ],
)
def test_tokens(bench: Bench, more: dict[str, Any], event: str) -> None:
    found = bench.judge(bench.document(report=bench.token(**more)))
    assert not found.passed
    assert events(found)["authority"] == event


def test_token_of_another_key_or_kind(bench: Bench) -> None:
    stranger = bench.token(key=jose.generate_key())
    found = bench.judge(bench.document(report=stranger))
    assert events(found)["authority"] == "core.jose.signature"
    # without the authority's time there is no time to check it at
    assert events(found)["host"] == "client.report.host"
    other = bench.token(typ="eat+jwt")
    found = bench.judge(bench.document(report=other))
    assert events(found)["authority"] == "core.jose.token"


def test_the_certificate_must_have_been_valid_then(bench: Bench) -> None:
    moment = datetime.datetime.now() - datetime.timedelta(days=20)
    bench.claims = replace(bench.claims, started_at=int(moment.timestamp()))
    report = bench.token(iat=int(moment.timestamp()))
    found = bench.judge(bench.document(report=report))
    assert events(found) == {
        "host": "core.akcert.validity",
        "current": "client.report.current",
    }


def test_no_key_was_released(bench: Bench) -> None:
    bench.granted = None
    found = bench.judge(bench.document())
    assert events(found) == {"current": "client.report.release"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["report", "nonce", "claims", "evidence", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(document=JSON)
def test_anything_else_is_refused(document: Any) -> None:
    found = _BENCH.judge(document)
    assert not found.passed
    assert found.checks[0].event


_BENCH = Bench(Enroller())


def test_a_report_by_another_host_than_the_key_went_to(bench: Bench) -> None:
    """Trusted as well, and it knows what the key request was."""
    assert bench.granted is not None
    bench.granted = replace(bench.granted, host="node2")
    found = bench.judge(bench.document())
    assert events(found) == {"current": "client.report.key-host"}
    assert not found.passed
