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

"""Steps 6 and 7: release policy and tickets."""

import uuid
from dataclasses import replace
from typing import Any

import pytest

from tests.fixture import softtpm
from tests.unit.mh_kms.launch import Launch
from tests.unit.mh_kms.world import PROJECT, World

# -- 6: release policy ---------------------------------------------------


@pytest.mark.parametrize(
    ("check", "policy", "request_changes", "result_changes"),
    [
        ("level", {}, {}, {"level": "boot-only"}),
        ("project", {"projects": ["another"]}, {}, {}),
        ("project", {}, {"project": "another"}, {}),
        ("purpose", {}, {"purpose": "migrate-in"}, {}),
        ("manifest", {}, {"manifest_digest": "ab" * 32}, {}),
        ("tags", {"tags": {"geo": ["DE", "FR"]}}, {}, {}),
        ("tags", {"tags": {"geo": "DE"}}, {}, {"tags": {"geo": "US"}}),
    ],
)
def test_policy_refuses(
    world: World,
    check: str,
    policy: dict[str, Any],
    request_changes: dict[str, Any],
    result_changes: dict[str, Any],
) -> None:
    # Listing no checks does not switch the built-in ones off.
    launch = Launch(world, checks=[], **policy)
    world.attestor.changes = result_changes
    request = replace(launch.request, **request_changes)
    answer = world.release(launch.key, request)
    launch.refused(answer, f"kms.release.{check}")


def test_policy_accepts_boot_only_and_tags(world: World) -> None:
    launch = Launch(
        world, levels=["trusted", "boot-only"], tags={"geo": ["DE", "FR"]}
    )
    world.attestor.changes = {"level": "boot-only", "tags": {"geo": "FR"}}
    launch.passes()


def test_manifest_withdrawn(world: World, launch: Launch) -> None:
    launch.passes()
    path = f"/v1/keys/{launch.key}/manifests/{launch.manifest}"
    assert world.call("DELETE", path).status_code == 204
    answer = world.release(launch.key, launch.request)
    launch.refused(answer, "kms.release.manifest")


def test_check_that_is_not_loaded_denies(world: World, launch: Launch) -> None:
    checks = dict(world.parts.checks)
    del checks["tags"]
    from mh_kms import release

    nonce = world.nonce(launch.key)
    evidence = world.tpm.release_evidence(nonce, launch.request)
    with pytest.raises(release.Refused) as caught:
        release.release_key(
            launch.key,
            nonce,
            launch.request,
            evidence,
            parts=replace(world.parts, checks=checks),
            request_id="req-1",
        )
    assert caught.value.event == "kms.release.check"


# -- 7: tickets ----------------------------------------------------------


def test_ticket_is_needed(world: World) -> None:
    launch = Launch(world, tickets="required")
    for ticket in ("", "AAAA", "A" * 43):
        request = replace(launch.request, ticket=ticket)
        record = launch.refused(
            world.release(launch.key, request),
            "kms.release.ticket",
            "kms.ticket.form" if len(ticket) < 43 else "",
        )
        assert record["level"] == "trusted"


def test_ticket_once_then_the_instance(world: World) -> None:
    launch = Launch(world, tickets="required")
    ticket = world.ticket(launch.key, launch.manifest)
    launch.passes(ticket=ticket)
    assert world.audit(launch.key)[-1]["ticket"] == "spent"
    # the instance is known now: with or without the ticket
    launch.passes(purpose="start")
    assert world.audit(launch.key)[-1]["ticket"] == "instance"
    launch.passes(ticket=ticket)
    # another instance needs a ticket of its own
    other = replace(launch.request, ticket=ticket, instance=str(uuid.uuid4()))
    launch.refused(world.release(launch.key, other), "kms.release.ticket")


def test_ticket_is_not_spent_by_a_refusal(world: World) -> None:
    launch = Launch(world, tickets="required")
    ticket = world.ticket(launch.key, launch.manifest)
    request = replace(launch.request, ticket=ticket, project="another")
    launch.refused(world.release(launch.key, request), "kms.release.project")
    launch.passes(ticket=ticket)


def test_ticket_counts(world: World) -> None:
    launch = Launch(world, tickets="required")
    ticket = world.ticket(launch.key, launch.manifest, count=2)
    launch.passes(ticket=ticket, instance=str(uuid.uuid4()))
    launch.passes(ticket=ticket, instance=str(uuid.uuid4()))
    third = replace(launch.request, ticket=ticket, instance=str(uuid.uuid4()))
    launch.refused(world.release(launch.key, third), "kms.release.ticket")


def test_ticket_expired(world: World) -> None:
    launch = Launch(world, tickets="required")
    ticket = world.ticket(launch.key, launch.manifest, ttl=10)
    world.offset = 11
    request = replace(launch.request, ticket=ticket)
    launch.refused(world.release(launch.key, request), "kms.release.ticket")


def test_ticket_of_another_key(world: World) -> None:
    launch, other = (
        Launch(world, tickets="required"),
        Launch(world, tickets="required"),
    )
    ticket = world.ticket(other.key, other.manifest)
    request = replace(launch.request, ticket=ticket)
    launch.refused(world.release(launch.key, request), "kms.release.ticket")


def test_ticket_for_another_manifest(world: World) -> None:
    launch = Launch(world, tickets="required")
    other = world.register(launch.key, virtual_size=1 << 21)
    ticket = world.ticket(launch.key, other)
    request = replace(launch.request, ticket=ticket)
    launch.refused(world.release(launch.key, request), "kms.release.ticket")
    # a known instance changes its image only by a new ticket
    launch.passes(ticket=world.ticket(launch.key, launch.manifest))
    request = replace(launch.request, manifest_digest=other)
    launch.refused(
        world.release(launch.key, request),
        "kms.release.ticket",
        "kms.ticket.form",
    )
    launch.passes(manifest_digest=other, ticket=ticket)


def test_a_rescue_with_another_image_of_the_key(world: World) -> None:
    """The instance still starts from its own."""
    purposes = ["launch", "start", "rescue"]
    launch = Launch(world, tickets="required", purposes=purposes)
    launch.passes(ticket=world.ticket(launch.key, launch.manifest))
    other = world.register(launch.key, virtual_size=1 << 21)
    beside = {"manifest_digest": other, "purpose": "rescue"}
    launch.passes(**beside, ticket=world.ticket(launch.key, other))
    assert world.audit(launch.key)[-1]["ticket"] == "spent"
    launch.passes(purpose="rescue")
    launch.passes(purpose="start")
    launch.passes(**beside)
    # rebuilt from a third, it has no other
    third = world.register(launch.key, virtual_size=1 << 22)
    launch.passes(
        manifest_digest=third, ticket=world.ticket(launch.key, third)
    )
    request = replace(launch.request, manifest_digest=other)
    launch.refused(
        world.release(launch.key, request),
        "kms.release.ticket",
        "kms.ticket.form",
    )


def test_an_instance_stays_in_its_project(world: World) -> None:
    launch = Launch(world, tickets="required", projects=[PROJECT, "other"])
    launch.passes(ticket=world.ticket(launch.key, launch.manifest))
    request = replace(launch.request, project="other")
    launch.refused(
        world.release(launch.key, request),
        "kms.release.ticket",
        "kms.ticket.form",
    )
    launch.passes()


def test_keys_that_go_to_another_host_are_recorded_so(world: World) -> None:
    """It is trusted, and says that the instance is its own now."""
    launch = Launch(world, tickets="required")

    def granted() -> dict[str, Any]:
        return [
            record
            for record in world.audit(launch.key)
            if record["event"] == "kms.release.granted"
        ][-1]

    launch.passes(ticket=world.ticket(launch.key, launch.manifest))
    launch.passes(purpose="start")
    assert "previous_host" not in granted()
    first = world.tpm
    world.tpm = softtpm.SoftTpm(first.enroller, host="node2")
    world.attestor.tpm = world.tpm
    launch.passes(purpose="start", host="node2")
    record = granted()
    assert (record["previous_host"], record["host"]) == (first.host, "node2")
    launch.passes(purpose="start", host="node2")
    assert "previous_host" not in granted()
    # an AK made anew under the old name is another host
    world.tpm = softtpm.SoftTpm(first.enroller, host="node2")
    world.attestor.tpm = world.tpm
    launch.passes(purpose="start", host="node2")
    assert granted()["previous_host"] == "node2"


def test_an_instance_known_before_the_upgrade(world: World) -> None:
    launch = Launch(world, tickets="required")
    launch.passes(ticket=world.ticket(launch.key, launch.manifest))
    with world.parts.database.transaction() as connection:
        connection.execute(
            "update instances set project = '', host = '', ak_name = ''"
        )
    launch.passes(purpose="start")
    record = world.audit(launch.key)[-1]
    assert record["ticket"] == "instance"
    assert "previous_host" not in record
    row = world.parts.database.fetch("select project from instances")
    assert row == (PROJECT,)
