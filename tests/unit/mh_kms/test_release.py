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

"""The one way to a host: what passes, and no log, no key."""

import sqlite3
import uuid
from dataclasses import replace
from typing import Any

import pytest

from mh_core.errors import VerificationError
from mh_core.image.overlay import overlay_key
from mh_core.launch_policy import LaunchPolicy
from mh_core.request import Disk
from tests.fixture import softtpm
from tests.unit.mh_kms.launch import Launch
from tests.unit.mh_kms.world import DEK, ORIGIN, PROJECT, World


def test_granted(world: World) -> None:
    launch = Launch(world, lease=3600)
    policy = LaunchPolicy(user_data=("ab" * 32,))
    digest = world.register(launch.key, launch_policy=policy)
    disks = (
        Disk("disk", str(uuid.uuid4())),
        Disk("disk.eph0", str(uuid.uuid4())),
    )
    request = replace(launch.request, manifest_digest=digest, disks=disks)
    answer = world.release(launch.key, request)
    assert answer.status_code == 200, answer.text
    payload = world.open(answer.json["jwe"], request)
    assert payload.dek.reveal() == DEK
    assert payload.purpose == "launch"
    assert payload.key_id == launch.key
    assert payload.kms_origin == ORIGIN
    assert payload.lease == 3600
    assert payload.launch_policy == policy
    assert set(payload.manifest_digests) == {launch.manifest, digest}
    assert payload.transport_jwk == world.parts.transport.public
    assert payload.request_digest == request.digest()
    # overlay keys: of these disks only, from a root that is the key's own
    key = sqlite3.connect(world.base / "kms.sqlite").execute(
        "select overlay_root from keys where id = ?", (launch.key,)
    )
    root = world.parts.key_store.open(
        launch.key, "overlay-root", key.fetchone()[0]
    )
    assert {name: k.reveal() for name, k in payload.overlay_keys.items()} == {
        disk.name: overlay_key(
            root.reveal(),
            uuid.UUID(request.instance),
            disk.name,
            uuid.UUID(disk.luks_uuid),
        )
        for disk in disks
    }
    record = world.audit(launch.key)[-1]
    assert record["audit"] == payload.audit
    assert record["event"] == "kms.release.granted"
    assert record["detail"] == ""
    assert record["level"] == "trusted"
    assert record["host"] == "node1"
    assert record["host_id"] == world.tpm.host_id
    assert record["ak_name"] == world.tpm.ak.name.hex()
    assert record["request_digest"] == request.digest().hex()
    assert record["ticket"] == "not-required"
    # what the cloud says is marked as such
    assert record["claims"] == {
        "project": request.project,
        "user": request.user,
        "instance": request.instance,
        "host": request.host,
        "image": request.image,
    }


def test_the_record_is_there_before_the_key(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    from mh_kms import release

    def wrap(*args: Any) -> str:
        seen.append(launch.world.audit(launch.key)[-1]["event"])
        return "jwe"

    monkeypatch.setattr(release.jose, "wrap", wrap)
    launch.world.release(launch.key, launch.request)
    assert seen == ["kms.release.granted"]


# -- 8: no log, no key ---------------------------------------------------


def _sql(world: World, statement: str) -> None:
    with sqlite3.connect(world.base / "kms.sqlite") as connection:
        connection.execute(statement)
    connection.close()


def test_no_record_no_key(world: World) -> None:
    launch = Launch(world, tickets="required")
    ticket = world.ticket(launch.key, launch.manifest)
    _sql(
        world,
        "create trigger stop before insert on audit begin"
        " select raise(abort, 'disk full'); end",
    )
    request = replace(launch.request, ticket=ticket)
    answer = world.release(launch.key, request)
    assert answer.status_code == 503
    assert answer.json["error"]["event"] == "kms.release.audit"
    assert answer.json["error"]["audit"] == ""
    assert "jwe" not in answer.text
    # a refusal that cannot be recorded is a refusal too
    answer = world.release(launch.key, replace(request, project="another"))
    assert answer.status_code == 503
    assert answer.json["error"]["event"] == "kms.release.audit"
    # nothing else of it happened: the ticket is still good
    _sql(world, "drop trigger stop")
    launch.passes(ticket=ticket)


def test_chain_goes_on_after_a_failed_write(
    world: World, launch: Launch
) -> None:
    _sql(
        world,
        "create trigger stop before insert on audit begin"
        " select raise(abort, 'disk full'); end",
    )
    assert world.release(launch.key, launch.request).status_code == 503
    _sql(world, "drop trigger stop")
    launch.passes()
    assert world.manage("audit", "verify") == 0


def test_wrapped_only_to_the_bind_key(world: World, launch: Launch) -> None:
    answer = world.release(launch.key, launch.request)
    other = softtpm.SoftTpm(world.tpm.enroller)
    from mh_core import jose

    with pytest.raises(VerificationError):
        jose.unwrap(
            answer.json["jwe"], other.bind_jwk, launch.request.digest()
        )
    with pytest.raises(VerificationError):
        jose.unwrap(answer.json["jwe"], world.tpm.bind_jwk, bytes(32))


def test_nothing_secret_is_recorded_or_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    launch = Launch(world, tickets="required")
    ticket = world.ticket(launch.key, launch.manifest)
    launch.passes(ticket=ticket)
    everything = caplog.text + str(world.audit(launch.key))
    import base64

    for secret in (
        ticket,
        DEK.hex(),
        base64.b64encode(DEK).decode().rstrip("="),
        world.token,
        "eyJ",
    ):
        assert secret not in everything
    raw = b"".join(
        path.read_bytes() for path in world.base.glob("kms.sqlite*")
    )
    assert DEK not in raw
    assert ticket.encode() not in raw
    assert world.token.encode() not in raw
    assert PROJECT.encode() in raw
