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

"""Steps 4 and 5: liars about the host."""

import uuid
from dataclasses import replace
from typing import Any

import pytest

from mh_core.errors import Unavailable, VerificationError
from mh_core.request import Disk
from mh_core.tpm import constants as c
from mh_core.tpm.quote import LABEL_HOST
from tests.fixture import softtpm
from tests.unit.mh_kms.launch import Launch
from tests.unit.mh_kms.world import World

# -- 4: evidence ---------------------------------------------------------


def test_evidence_of_another_label(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(
        nonce, launch.request, label=LABEL_HOST
    )
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.tpm.quote.extra-data")


def test_evidence_for_another_nonce(world: World, launch: Launch) -> None:
    nonce, other = world.nonce(launch.key), world.nonce(launch.key)
    evidence = world.tpm.release_evidence(other, launch.request)
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.tpm.quote.extra-data")


@pytest.mark.parametrize(
    "change",
    [
        {"purpose": "start"},
        {"instance": str(uuid.UUID(int=7))},
        {"disks": (Disk("disk", str(uuid.UUID(int=8))),)},
        {"ticket": "AAAA"},
        {"project": "another"},
    ],
)
def test_request_changed_after_the_quote(
    world: World, launch: Launch, change: dict[str, Any]
) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    request = replace(launch.request, **change)
    answer = world.send(launch.key, nonce, request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.tpm.quote.extra-data")


def test_lying_authority_software_bind_key(
    world: World, launch: Launch
) -> None:
    """A bind key that its maker can export, called trusted."""
    world.tpm.bind_attributes = c.DECRYPT | c.USER_WITH_AUTH
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.evidence", "core.tpm.bind.attributes")
    assert not world.attestor.asked


def test_lying_authority_bind_key_of_another_tpm(
    world: World, launch: Launch
) -> None:
    """A fine bind key that the AK never certified, called trusted."""
    nonce = world.nonce(launch.key)
    foreign = softtpm.SoftTpm(world.tpm.enroller)
    mixed = softtpm.SoftTpm(
        world.tpm.enroller,
        host_id=world.tpm.host_id,
        ak_key=world.tpm.ak_key,
        bind_key=foreign.bind_key,
    )
    own, own_signature = world.tpm.certify()
    evidence = replace(
        mixed.release_evidence(nonce, launch.request),
        bind_attest=own,
        bind_signature=own_signature,
    )
    world.attestor.tpm = mixed
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.tpm.certify.name")
    # nor does the other TPM's own word help
    theirs, theirs_signature = foreign.certify()
    nonce = world.nonce(launch.key)
    evidence = replace(
        mixed.release_evidence(nonce, launch.request),
        bind_attest=theirs,
        bind_signature=theirs_signature,
    )
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(
        answer, "kms.release.evidence", "core.tpm.certify.signature"
    )


def test_bind_key_of_an_earlier_boot(world: World, launch: Launch) -> None:
    certify, signature = world.tpm.certify()
    world.tpm.reset += 1
    nonce = world.nonce(launch.key)
    evidence = replace(
        world.tpm.release_evidence(nonce, launch.request),
        bind_attest=certify,
        bind_signature=signature,
    )
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.evidence.boot")


def test_bind_key_held_to_other_pcrs(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    before, certified = world.tpm.bind, world.tpm.certify()
    world.tpm.extend(4)
    from mh_core.evidence import release_claims
    from mh_core.tpm.quote import LABEL_RELEASE

    evidence = replace(
        world.tpm.evidence(
            LABEL_RELEASE,
            nonce,
            release_claims(launch.request.digest(), before),
        ),
        bind_public=before.raw,
        bind_attest=certified[0],
        bind_signature=certified[1],
    )
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.tpm.bind.policy")


def test_pcr_values_not_those_quoted(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    evidence.pcrs[4] = bytes(32)
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.evidence", "core.tpm.quote.pcr-digest")


def test_unrestricted_ak(world: World, launch: Launch) -> None:
    world.tpm.ak_attributes = c.AK_ATTRIBUTES & ~c.RESTRICTED
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.evidence", "core.tpm.ak.attributes")


def test_enroller_not_pinned(world: World, launch: Launch) -> None:
    world.tpm.enroller = softtpm.Enroller()
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.evidence", "core.akcert.issuer")


def test_malformed_structures_are_a_refusal(
    world: World, launch: Launch
) -> None:
    nonce = world.nonce(launch.key)
    evidence = replace(
        world.tpm.release_evidence(nonce, launch.request), bind_public=b"\0"
    )
    answer = world.send(launch.key, nonce, launch.request, evidence)
    record = launch.refused(
        answer, "kms.release.evidence", "core.tpm.reader.short"
    )
    assert "host" not in record


def test_another_hosts_name(world: World, launch: Launch) -> None:
    request = replace(launch.request, host="node2")
    launch.refused(world.release(launch.key, request), "kms.release.host")


# -- 5: the authority ----------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"audience": "https://other.test"}, "core.result.audience"),
        ({"nonce": bytes(32)}, "core.result.nonce"),
        ({"request_digest": bytes(32)}, "core.result.request"),
        ({"issuer": "https://evil.test"}, "core.result.issuer"),
        (
            {"bind_jwk": softtpm.Authority().to_dict()["jwk"]},
            "core.result.bind-key",
        ),
        ({"now": 1}, "core.result.time"),
        ({"host": "node2"}, "kms.release.result-host"),
        ({"host_id": str(uuid.UUID(int=9))}, "kms.release.result-host"),
    ],
)
def test_result_for_something_else(
    world: World, launch: Launch, changes: dict[str, Any], detail: str
) -> None:
    world.attestor.changes = changes
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.attestation", detail)
    world.attestor.changes = {}
    launch.passes()


def test_result_of_another_authority(world: World, launch: Launch) -> None:
    world.attestor.authority = softtpm.Authority()
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.attestation", "core.jose.signature")


def test_no_authority_pinned(world: World) -> None:
    launch = Launch(world, authorities=[])
    launch.refused(
        world.release(launch.key, launch.request), "kms.release.attestation"
    )


def test_authority_refuses(world: World, launch: Launch) -> None:
    world.attestor.error = VerificationError(
        "attest.appraise.host-policy", "refused"
    )
    answer = world.release(launch.key, launch.request)
    launch.refused(
        answer, "kms.release.attestation", "attest.appraise.host-policy"
    )


def test_authority_down(world: World, launch: Launch) -> None:
    world.attestor.error = Unavailable("kms.authority.silent", "silent")
    answer = world.release(launch.key, launch.request)
    launch.refused(
        answer, "kms.release.authority", "kms.authority.silent", 503
    )
    world.attestor.error = None
    launch.passes()


def test_second_authority_answers(world: World) -> None:
    launch = Launch(
        world,
        authorities=[
            softtpm.Authority("https://first.test").to_dict(),
            world.authority.to_dict(),
        ],
    )
    launch.passes()
