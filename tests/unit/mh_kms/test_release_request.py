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

"""Steps 1 to 3: key, nonce, origin."""

import threading
import uuid
from dataclasses import replace

import pytest

from tests.unit.mh_kms.launch import Launch
from tests.unit.mh_kms.world import World

# -- 1: key --------------------------------------------------------------


def test_unknown_key(world: World, launch: Launch) -> None:
    other = str(uuid.uuid4())
    nonce = world.nonce(launch.key)
    request = replace(launch.request, key_id=other)
    evidence = world.tpm.release_evidence(nonce, request)
    answer = world.send(other, nonce, request, evidence)
    assert answer.status_code == 404
    assert answer.json["error"]["event"] == "kms.release.key"
    assert answer.json["error"]["audit"]


def test_deleted_key(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    assert world.call("DELETE", f"/v1/keys/{launch.key}").status_code == 204
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.key", "kms.key.unknown", 404)


@pytest.mark.parametrize("change", ["delete", "policy", "manifest"])
def test_changed_while_the_authority_thinks(
    world: World, launch: Launch, change: str
) -> None:
    def happens() -> None:
        path = f"/v1/keys/{launch.key}"
        if change == "delete":
            world.call("DELETE", path)
        elif change == "policy":
            world.call("PUT", path + "/policy", world.policy(projects=[]))
        else:
            world.call("DELETE", f"{path}/manifests/{launch.manifest}")

    world.attestor.during = happens
    launch.refused(
        world.release(launch.key, launch.request), "kms.release.key"
    )


# -- 2: nonce ------------------------------------------------------------


def test_nonce_replayed(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    first = world.send(launch.key, nonce, launch.request, evidence)
    assert first.status_code == 200
    again = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(again, "kms.release.nonce")


def test_nonce_is_spent_by_a_refusal(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    request = replace(launch.request, purpose="rescue")
    evidence = world.tpm.release_evidence(nonce, request)
    answer = world.send(launch.key, nonce, request, evidence)
    launch.refused(answer, "kms.release.purpose")
    evidence = world.tpm.release_evidence(nonce, launch.request)
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.nonce")


def test_nonce_never_given(world: World, launch: Launch) -> None:
    nonce = bytes(32)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.nonce")


def test_nonce_expired(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    world.offset = 61
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.nonce")


def test_nonce_expires_while_the_authority_thinks(
    world: World, launch: Launch
) -> None:
    world.attestor.during = lambda: setattr(world, "offset", 61.0)
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.nonce")


def test_nonce_of_another_key(world: World, launch: Launch) -> None:
    nonce = world.nonce(world.create_key()["id"])
    evidence = world.tpm.release_evidence(nonce, launch.request)
    answer = world.send(launch.key, nonce, launch.request, evidence)
    launch.refused(answer, "kms.release.nonce")


def test_nonce_once_among_many_at_once(world: World, launch: Launch) -> None:
    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    gate = threading.Barrier(4)
    # All have passed step 2 before any is at step 7.
    world.attestor.during = lambda: gate.wait(20)
    codes: list[int] = []

    def one() -> None:
        answer = world.send(launch.key, nonce, launch.request, evidence)
        codes.append(answer.status_code)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(codes) == [200, 403, 403, 403]
    events = [r["event"] for r in world.audit(launch.key)[-4:]]
    assert (
        sorted(events) == ["kms.release.granted"] + ["kms.release.nonce"] * 3
    )


# -- 3: origin -----------------------------------------------------------


def test_request_for_another_server(world: World, launch: Launch) -> None:
    request = replace(launch.request, kms_origin="https://relay.test")
    launch.refused(world.release(launch.key, request), "kms.release.origin")
    launch.passes(kms_origin="https://proxy.test")


def test_request_for_another_key(world: World, launch: Launch) -> None:
    other = world.create_key()["id"]
    request = replace(launch.request, key_id=other)
    launch.refused(world.release(launch.key, request), "kms.release.origin")
