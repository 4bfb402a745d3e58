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
"""Leases as a server's owner sees them, and ends them."""

from typing import Any

import pytest

from mh_client.commands.server import _reason, _shown
from mh_client.kms import Kms
from mh_client.leases import Lease, Tenure
from mh_client.nova import Server
from mh_client.servers import Finding
from mh_core.errors import InputError, VerificationError
from tests.unit.mh_client.https import Answer, Request, World
from tests.unit.mh_client.test_launch import IMAGE, KEY, SERVER, Bench

NOW = 1_800_000_000
HELD: dict[str, Any] = {
    "id": "chain#1",
    "host": "node1",
    "purpose": "start",
    "granted_at": NOW - 1000,
    "renewed_at": NOW - 100,
    "seconds": 600,
    "expires_at": NOW + 500,
    "ended_at": None,
    "why": "",
    "erased_at": None,
}
MOVED = {**HELD, "ended_at": NOW - 50, "why": "moved"}
OVER = {**HELD, "expires_at": NOW - 10}
FOREVER = {**HELD, "seconds": 0, "expires_at": None}


def tenure(*leases: dict[str, Any], revoked: bool = False) -> Tenure:
    return Tenure.parse(
        {"instance": SERVER, "revoked": revoked, "leases": list(leases)}
    )


@pytest.mark.parametrize(
    ("leases", "words", "ended"),
    [
        ((), "", True),
        ((HELD,), "node1: until 2027-01-15", False),
        ((MOVED, {**HELD, "host": "node3"}), "node3: until", False),
        ((FOREVER,), "node1: without end", False),
        ((OVER,), "node1: over since", True),
        ((MOVED,), "node1: moved at", True),
        (({**MOVED, "erased_at": NOW},), "(erased at", True),
    ],
)
def test_text(
    leases: tuple[dict[str, Any], ...], words: str, ended: bool
) -> None:
    found = tenure(*leases)
    assert words in found.text(NOW)
    assert found.ended(NOW) is ended


def test_revoked_is_said() -> None:
    assert "revoked by its owner" in tenure(HELD, revoked=True).text(NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"host": 1},
        {"host": "a\nb"},
        {"expires_at": "soon"},
        {"expires_at": -1},
        {"seconds": True},
        {"more": 1},
    ],
)
def test_a_document_that_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        Lease.parse({**HELD, **change})
    assert caught.value.event == "client.lease"
    with pytest.raises(InputError):
        Lease.parse({name: HELD[name] for name in ("id", "host")})


def server(**more: Any) -> Server:
    values: dict[str, Any] = {
        "id": SERVER,
        "name": "vm",
        "status": "SHUTOFF",
        "task": "",
        "project": "p",
        "image": IMAGE,
        "host": "",
        "fault": "",
        "metadata": {},
        **more,
    }
    return Server(**values)


def test_why_it_does_not_run() -> None:
    told = {"mh_refused": "Trusted guest stopped: [agent.lease.stopped]"}
    found = Finding(
        server(metadata=told),
        None,
        None,
        (),
        tenure=tenure(MOVED, revoked=True),
    )
    reason = _reason(found)
    assert "agent.lease.stopped" in reason
    assert "no host may run it: node1: moved" in reason
    assert "revoked by its owner" in reason
    running = Finding(server(status="ACTIVE"), None, None, (), tenure=None)
    assert _reason(running) == ""


def test_shown() -> None:
    forever = tenure({**FOREVER, "host": "node3"})
    found = Finding(server(status="ACTIVE"), None, None, (), tenure=forever)
    heads, values = _shown(found)
    shown = dict(zip(heads, values, strict=True))
    assert str(shown["lease"]).startswith("node3: without end")
    assert str(shown["reason"]) == ""


@pytest.fixture
def bench(world: World, enroller: Any) -> Bench:
    bench = Bench(world, enroller)
    bench.cloud.states = [{"status": "ACTIVE"}]
    return bench


PATH = f"/v1/keys/{KEY}/instances/{SERVER}"


def test_revoke(world: World) -> None:
    kms = Kms(world.config().kms)
    bodies = []

    def put(request: Request) -> Answer:
        bodies.append(request.body)
        return 200, {"instance": SERVER, "leases": [], **request.body}

    world.kms.routes["PUT", PATH] = put
    assert kms.revoke(KEY, SERVER, True).revoked is True
    assert kms.revoke(KEY, SERVER, False).revoked is False
    assert bodies == [{"revoked": True}, {"revoked": False}]


def test_a_server_that_did_not_revoke(world: World) -> None:
    kms = Kms(world.config().kms)
    world.kms.routes["PUT", PATH] = (
        200,
        {"instance": SERVER, "revoked": False, "leases": []},
    )
    with pytest.raises(VerificationError) as caught:
        kms.revoke(KEY, SERVER, True)
    assert caught.value.event == "client.kms.revoke"


def test_renewals_are_no_decisions_about_the_key(bench: Bench) -> None:
    """What another host was refused is not this server's last word."""
    bench.decide()
    bench.record(
        "kms.release.lease-moved",
        host="node2",
        purpose="renew",
        claims={"instance": SERVER},
    )
    found = [one.event for one in bench.servers.decisions(KEY, SERVER)]
    assert found == ["kms.release.granted"]
