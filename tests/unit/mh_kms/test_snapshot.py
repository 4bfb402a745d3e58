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

"""The one way for a key from a host: what passes, and every way it does
not."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mh_core import jose
from mh_core import manifest as manifests
from mh_core.encoding import b64u
from mh_core.evidence import Evidence, release_claims
from mh_core.launch_policy import LaunchPolicy
from mh_core.manifest import Manifest
from mh_core.snapshot import SnapshotClaims, jwe_digest, key_apv
from mh_core.tpm.quote import LABEL_RELEASE, LABEL_SNAPSHOT
from tests.fixture import softtpm
from tests.unit.mh_kms.launch import Launch
from tests.unit.mh_kms.world import ORIGIN, PROJECT, World

PURPOSES = ["launch", "start", "snapshot"]
NEW = bytes(range(32, 64))
REGISTERED = "kms.snapshot.registered"


@dataclass
class Taken:
    """A snapshot as an honest host makes it, to be spoilt by a test."""

    world: World
    launch: Launch
    claims: SnapshotClaims
    manifest: str
    jwe: str
    tpm: softtpm.SoftTpm
    label: str = LABEL_SNAPSHOT
    nonce: bytes = b""
    quoted: SnapshotClaims | None = None

    def send(self) -> Any:
        nonce = self.nonce or self.world.nonce(self.launch.key)
        claims = self.quoted or self.claims
        evidence = self.tpm.evidence(
            self.label,
            nonce,
            release_claims(claims.digest(), self.tpm.bind),
        )
        return self.post(nonce, evidence)

    def post(self, nonce: bytes, evidence: Evidence) -> Any:
        body = {
            "nonce": b64u(nonce),
            "claims": self.claims.to_dict(),
            "manifest": self.manifest,
            "jwe": self.jwe,
            "evidence": evidence.to_dict(),
        }
        return self.world.call(
            "POST", f"/v1/keys/{self.launch.key}/snapshots", body, token=""
        )


def sign(
    claims: SnapshotClaims, signer: jose.Jwk, **changes: Any
) -> tuple[SnapshotClaims, str]:
    manifest = Manifest(
        image=claims.image,
        key_id=claims.key_id,
        format="qcow2+luks",
        size=1 << 20,
        virtual_size=1 << 30,
        sha256="33" * 32,
        sha512="44" * 64,
        launch_policy=LaunchPolicy(snapshots=True),
    )
    token = replace(manifest, **changes).sign(signer)
    return replace(claims, manifest_digest=manifests.digest(token)), token


def wrap(
    taken: Taken, key: bytes = NEW, apv: bytes | None = None
) -> SnapshotClaims:
    claims = taken.claims
    if apv is None:
        apv = key_apv(claims.key_id, claims.release)
    taken.jwe = jose.wrap(key, taken.world.parts.transport.public, apv)
    return replace(claims, jwe_digest=jwe_digest(taken.jwe))


def take(world: World, **policy: Any) -> Taken:
    launch = Launch(world, **({"purposes": PURPOSES} | policy))
    digest = world.register(
        launch.key, launch_policy=LaunchPolicy(snapshots=True)
    )
    request = replace(
        launch.request, manifest_digest=digest, purpose="snapshot"
    )
    answer = world.release(launch.key, request)
    assert answer.status_code == 200, answer.text
    release = world.open(answer.json["jwe"], request)
    return after(world, launch, request, release.audit)


def after(world: World, launch: Launch, request: Any, release: str) -> Taken:
    signer = jose.generate_key()
    claims = SnapshotClaims(
        key_id=str(uuid.uuid4()),
        image=str(uuid.uuid4()),
        manifest_digest="",
        signer=jose.public(signer),
        jwe_digest="",
        source_key_id=launch.key,
        source_image=request.image,
        source_manifest=request.manifest_digest,
        kms_origin=ORIGIN,
        instance=request.instance,
        project=request.project,
        host=request.host,
        release=release,
        taken_at=1,
    )
    claims, token = sign(claims, signer)
    taken = Taken(world, launch, claims, token, "", world.tpm)
    taken.claims = wrap(taken)
    return taken


@pytest.fixture
def taken(world: World) -> Taken:
    return take(world)


def test_registered(world: World, taken: Taken) -> None:
    answer = taken.send()
    assert answer.status_code == 201, answer.text
    claims = taken.claims
    assert answer.json == {"key_id": claims.key_id}
    key = world.call("GET", f"/v1/keys/{claims.key_id}").json
    assert key["project"] == PROJECT
    assert key["manifests"] == [claims.manifest_digest]
    # the source's policy, and the host's key beside the owner's
    source = world.call("GET", f"/v1/keys/{taken.launch.key}").json
    assert key["policy"] == {
        **source["policy"],
        "manifest_keys": [jose.public(world.signer), claims.signer],
    }
    assert world.audit(taken.launch.key)[-1]["event"] == REGISTERED
    created = world.audit(claims.key_id)[-1]
    assert created["event"] == "kms.key.created"
    assert created["snapshot"] == claims.to_dict()
    # the authority was asked about this label
    assert world.attestor.asked[-1].purpose == "snapshot"
    shown = world.call("GET", f"/v1/keys/{claims.key_id}/snapshot").json
    assert shown["claims"] == claims.to_dict()
    assert shown["manifest"] == taken.manifest
    # what is delivered to the owner is the key the host made
    own = jose.generate_key()
    delivered = world.call(
        "POST",
        f"/v1/keys/{claims.key_id}/deliver",
        {"jwk": jose.public(own)},
    ).json
    assert jose.unwrap(delivered["jwe"], own, b"mh/key-deliver/v1") == NEW


def test_the_instance_needs_no_new_ticket_and_others_do(world: World) -> None:
    taken = take(world, tickets="none")
    # as an owner might: inherited policies are what they were at the time
    world.call(
        "PUT",
        f"/v1/keys/{taken.launch.key}/policy",
        world.policy(purposes=PURPOSES, tickets="required"),
    )
    assert taken.send().status_code == 201
    claims = taken.claims
    for instance, status in (
        (claims.instance, 200),
        (str(uuid.uuid4()), 403),
    ):
        request = world.request(
            claims.key_id,
            manifest_digest=claims.manifest_digest,
            image=claims.image,
            instance=instance,
        )
        answer = world.release(claims.key_id, request)
        assert answer.status_code == status, answer.text


def test_the_same_again_is_answered_and_changes_nothing(
    world: World, taken: Taken
) -> None:
    assert taken.send().status_code == 201
    before = world.call("GET", "/v1/keys").json
    assert taken.send().status_code == 201
    assert world.call("GET", "/v1/keys").json == before


def test_a_release_is_good_for_one_key(world: World, taken: Taken) -> None:
    assert taken.send().status_code == 201
    request = replace(
        taken.launch.request, manifest_digest=taken.claims.source_manifest
    )
    second = after(world, taken.launch, request, taken.claims.release)
    taken.launch.refused(second.send(), "kms.snapshot.release")


def test_a_release_for_another_purpose_is_none(world: World) -> None:
    launch = Launch(world, purposes=PURPOSES)
    digest = world.register(
        launch.key, launch_policy=LaunchPolicy(snapshots=True)
    )
    request = replace(launch.request, manifest_digest=digest)
    answer = world.release(launch.key, request)
    release = world.open(answer.json["jwe"], request)
    taken = after(world, launch, request, release.audit)
    launch.refused(taken.send(), "kms.snapshot.release")


def test_no_release_where_the_launch_policy_allows_no_snapshots(
    world: World,
) -> None:
    launch = Launch(world, purposes=PURPOSES)
    request = replace(launch.request, purpose="snapshot")
    launch.refused(world.release(launch.key, request), "kms.release.snapshots")


def test_no_release_where_the_release_policy_does_not_list_it(
    launch: Launch,
) -> None:
    request = replace(launch.request, purpose="snapshot")
    launch.refused(
        launch.world.release(launch.key, request), "kms.release.purpose"
    )


def test_a_late_one(world: World, taken: Taken) -> None:
    world.offset += 24 * 3600 + 1
    taken.launch.refused(taken.send(), "kms.snapshot.release")


def test_a_snapshot_of_a_snapshot_drops_the_earlier_signer(
    world: World, taken: Taken
) -> None:
    assert taken.send().status_code == 201
    claims = taken.claims
    launch = Launch.__new__(Launch)
    launch.world, launch.key = world, claims.key_id
    request = world.request(
        claims.key_id,
        manifest_digest=claims.manifest_digest,
        image=claims.image,
        instance=claims.instance,
        purpose="snapshot",
    )
    answer = world.release(claims.key_id, request)
    release = world.open(answer.json["jwe"], request).audit
    second = after(world, launch, request, release)
    assert second.send().status_code == 201
    key = world.call("GET", f"/v1/keys/{second.claims.key_id}").json
    assert key["policy"]["manifest_keys"] == [
        jose.public(world.signer),
        second.claims.signer,
    ]


# -- refused ---------------------------------------------------------------


def _other_source(taken: Taken) -> None:
    taken.claims = replace(taken.claims, source_key_id=str(uuid.uuid4()))


def _other_server(taken: Taken) -> None:
    taken.claims = replace(taken.claims, kms_origin="https://evil.test")


def _release_label(taken: Taken) -> None:
    taken.label = LABEL_RELEASE


def _other_claims_quoted(taken: Taken) -> None:
    taken.quoted = replace(taken.claims, taken_at=2)


def _other_tpm(taken: Taken) -> None:
    """Of another host of the same cloud, which had no release."""
    taken.tpm = softtpm.SoftTpm(
        taken.world.tpm.enroller, host_id=taken.world.tpm.host_id
    )
    taken.world.attestor.tpm = taken.tpm


def _foreign_tpm(taken: Taken) -> None:
    taken.tpm = softtpm.SoftTpm(softtpm.Enroller("stranger"))


def _host(taken: Taken) -> None:
    taken.claims = replace(taken.claims, host="node2")


def _level(taken: Taken) -> None:
    taken.world.attestor.changes["level"] = "boot-only"


def _result_of_another_nonce(taken: Taken) -> None:
    taken.world.attestor.changes["nonce"] = bytes(32)


def _instance(taken: Taken) -> None:
    taken.claims = replace(taken.claims, instance=str(uuid.uuid4()))


def _source_image(taken: Taken) -> None:
    taken.claims = replace(taken.claims, source_image=str(uuid.uuid4()))


def _project(taken: Taken) -> None:
    taken.claims = replace(taken.claims, project="another")


def _no_release(taken: Taken) -> None:
    taken.claims = replace(
        taken.claims, release=taken.claims.release.split("#")[0] + "#99999"
    )
    taken.claims = wrap(taken)


def _manifest(**changes: Any) -> Callable[[Taken], None]:
    def spoil(taken: Taken) -> None:
        signer = jose.generate_key()
        claims = replace(taken.claims, signer=jose.public(signer))
        taken.claims, taken.manifest = sign(claims, signer, **changes)

    return spoil


def _other_signer(taken: Taken) -> None:
    taken.claims, taken.manifest = sign(taken.claims, jose.generate_key())


def _owners_signature(taken: Taken) -> None:
    """The owner's own manifest of another image."""
    taken.claims, taken.manifest = sign(taken.claims, taken.world.signer)


def _other_manifest(taken: Taken) -> None:
    taken.claims = replace(taken.claims, manifest_digest="55" * 32)


def _other_jwe(taken: Taken) -> None:
    wrap(taken)


def _short_key(taken: Taken) -> None:
    taken.claims = wrap(taken, NEW[:16])


def _uploaded_key(taken: Taken) -> None:
    """Wrapped as an owner would."""
    taken.claims = wrap(taken, apv=b"mh/key-upload/v1")


def _source_manifest(taken: Taken) -> None:
    taken.claims = replace(taken.claims, source_manifest="66" * 32)


SPOILT: dict[str, tuple[Callable[[Taken], None], str]] = {
    "another source key": (_other_source, "kms.snapshot.origin"),
    "another key server": (_other_server, "kms.snapshot.origin"),
    "quoted for a release": (_release_label, "kms.snapshot.evidence"),
    "other claims quoted": (_other_claims_quoted, "kms.snapshot.evidence"),
    "a stranger's TPM": (_foreign_tpm, "kms.snapshot.evidence"),
    "another host's name": (_host, "kms.snapshot.host"),
    "the result of another nonce": (
        _result_of_another_nonce,
        "kms.snapshot.attestation",
    ),
    "a level that the policy refuses": (_level, "kms.snapshot.policy"),
    "a project that the policy refuses": (_project, "kms.snapshot.policy"),
    "a manifest that is not the key's": (
        _source_manifest,
        "kms.snapshot.policy",
    ),
    "another TPM than the release's": (_other_tpm, "kms.snapshot.release"),
    "another instance": (_instance, "kms.snapshot.release"),
    "another source image": (_source_image, "kms.snapshot.release"),
    "a release that was never": (_no_release, "kms.snapshot.release"),
    "a wider launch policy": (
        _manifest(
            launch_policy=LaunchPolicy(snapshots=True, user_data=("77" * 32,))
        ),
        "kms.snapshot.manifest",
    ),
    "a manifest of another image": (
        _manifest(image=str(uuid.uuid4())),
        "kms.snapshot.manifest",
    ),
    "a manifest of another key": (
        _manifest(key_id=str(uuid.uuid4())),
        "kms.snapshot.manifest",
    ),
    "a manifest by an unknown key": (_other_signer, "kms.snapshot.manifest"),
    "a manifest by the owner's key": (
        _owners_signature,
        "kms.snapshot.manifest",
    ),
    "another manifest's digest": (_other_manifest, "kms.snapshot.manifest"),
    "another wrapped key": (_other_jwe, "kms.snapshot.wrapped-key"),
    "a short key": (_short_key, "kms.snapshot.wrapped-key"),
    "a key wrapped as an owner's": (
        _uploaded_key,
        "kms.snapshot.wrapped-key",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_refused(taken: Taken, name: str) -> None:
    """By its step, recorded, the nonce spent, and no key made."""
    spoil, event = SPOILT[name]
    spoil(taken)
    before = taken.world.call("GET", "/v1/keys").json
    answer = taken.send()
    assert answer.status_code == 403, answer.text
    assert answer.json["error"]["event"] == event
    assert taken.world.audit(taken.launch.key)[-1]["event"] == event
    assert taken.world.call("GET", "/v1/keys").json == before


def test_a_nonce_is_good_once_and_for_its_key(
    world: World, taken: Taken
) -> None:
    taken.nonce = world.nonce(taken.launch.key)
    assert taken.send().status_code == 201
    taken.launch.refused(taken.send(), "kms.snapshot.nonce")
    taken.nonce = world.nonce(Launch(world).key)
    taken.launch.refused(taken.send(), "kms.snapshot.nonce")


def test_an_id_that_is_taken(world: World, taken: Taken) -> None:
    taken.claims = replace(taken.claims, key_id=Launch(world).key)
    signer = jose.generate_key()
    claims = replace(taken.claims, signer=jose.public(signer))
    taken.claims, taken.manifest = sign(claims, signer)
    taken.claims = wrap(taken)
    taken.launch.refused(taken.send(), "kms.snapshot.conflict", status=409)
    # the release was not used up by it
    request = replace(
        taken.launch.request, manifest_digest=taken.claims.source_manifest
    )
    again = after(world, taken.launch, request, taken.claims.release)
    assert again.send().status_code == 201


def test_a_destroyed_source(world: World, taken: Taken) -> None:
    assert world.call("DELETE", f"/v1/keys/{taken.launch.key}").status_code
    taken.nonce = bytes(32)
    answer = taken.send()
    assert answer.status_code == 404
    assert answer.json["error"]["event"] == "kms.snapshot.key"


def test_a_key_of_the_owners_own_is_no_snapshot(launch: Launch) -> None:
    answer = launch.world.call("GET", f"/v1/keys/{launch.key}/snapshot")
    assert answer.status_code == 404
    assert answer.json["error"]["event"] == "kms.snapshot.unknown"


def test_another_project_does_not_see_where_it_comes_from(
    world: World, taken: Taken
) -> None:
    assert taken.send().status_code == 201
    path = f"/v1/keys/{taken.claims.key_id}/snapshot"
    other = world.make_token("other", "other-project", ("owner",))
    assert world.call("GET", path, token=other).status_code == 404
    assert world.call("GET", path, token="").status_code == 401


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["nonce", "claims", "manifest", "jwe", "evidence", "x"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=8,
    )
)
def test_malformed(taken: Taken, body: Any) -> None:
    answer = taken.world.call(
        "POST", f"/v1/keys/{taken.launch.key}/snapshots", body, token=""
    )
    assert answer.status_code == 400
    assert answer.json["error"]["event"]
