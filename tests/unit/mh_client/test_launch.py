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
"""A launch is followed, and every way it can end is said."""

import hashlib
import io
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mh_client import signing
from mh_client.attest import Attest
from mh_client.commands.server import _shown
from mh_client.images import Images
from mh_client.kms import Kms
from mh_client.launch import Launch, NewServer
from mh_client.nova import Nova
from mh_client.servers import Servers
from mh_client.steps import Steps
from mh_core import jose
from mh_core import manifest as manifests
from mh_core.encoding import b64u, canonical_json
from mh_core.errors import Denied, InputError, MHError, VerificationError
from mh_core.launch_policy import LaunchPolicy
from mh_core.manifest import Manifest
from mh_core.vm_report import TYP, VmClaims
from mh_glance.properties import ImageProperties
from tests.unit.mh_client.host import Enroller, SoftHost
from tests.unit.mh_client.https import Answer, Request, World, error
from tests.unit.mh_client.test_kms import ID as KEY
from tests.unit.mh_client.test_kms import document

IMAGE = "5a8c1f7e-0c57-4a1d-8f0e-3d2f1b6a9c02"
SERVER = "5a8c1f7e-0c57-4a1d-8f0e-3d2f1b6a9c01"
USER_DATA = b"#cloud-config\n"
TICKET = "T" * 43


class Reply:
    def __init__(self, status: int, body: Any) -> None:
        self.status_code = status
        self.text = str(body)
        self._body = body

    def json(self) -> Any:
        return self._body


class Cloud:
    """Glance and nova, as their adapters answer."""

    def __init__(self, image: dict[str, Any]) -> None:
        self.image = image
        self.created: dict[str, Any] = {}
        self.acts: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []
        self.refuse: Reply | None = None

    def get(self, url: str, **_: Any) -> Reply:
        if url.startswith("/images/"):
            return Reply(200, self.image)
        if url == "/flavors/detail":
            return Reply(200, {"flavors": [{"id": "f1", "name": "tiny"}]})
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        server = {
            "id": SERVER,
            "name": "vm",
            "tenant_id": "p",
            "image": {"id": IMAGE},
            **state,
        }
        return Reply(200, {"server": server})

    def post(self, url: str, **more: Any) -> Reply:
        if self.refuse is not None:
            return self.refuse
        if url.startswith(f"/servers/{SERVER}/"):
            self.acts.append(more["json"])
            return Reply(202, {})
        self.created = more["json"]["server"]
        assert more["microversion"] == "2.37"
        return Reply(202, {"server": {"id": SERVER}})

    def put(self, url: str, **_: Any) -> Reply:
        raise AssertionError(url)

    delete = put


class Bench:
    """A good launch; tests spoil a part of it."""

    def __init__(self, world: World, enroller: Enroller) -> None:
        self.world = world
        self.enroller = enroller
        own = signing.load_or_create(
            world.folder / "signing.jwk", lambda _: None
        )
        policy = LaunchPolicy(
            user_data=(hashlib.sha256(USER_DATA).hexdigest(),)
        )
        manifest = Manifest(
            image=IMAGE,
            key_id=KEY,
            format="qcow2+luks",
            size=1000,
            virtual_size=512,
            sha256="11" * 32,
            sha512="22" * 64,
            launch_policy=policy,
        )
        token = manifest.sign(own)
        self.digest = manifests.digest(token)
        properties = ImageProperties(
            KEY, 512, f"{world.kms.url}/v1/keys/{KEY}", token
        )
        self.cloud = Cloud(
            {
                "id": IMAGE,
                "name": "web",
                "size": 1000,
                "os_hash_algo": "sha512",
                "os_hash_value": "22" * 64,
                **properties.to_dict(),
            }
        )
        self.cloud.states = [
            {"status": "BUILD"},
            {"status": "BUILD", "hostId": "hash"},
            {"status": "ACTIVE", "hostId": "hash"},
        ]
        self.records: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = [self.report()]
        base = f"/v1/keys/{KEY}"
        world.kms.routes |= {
            ("GET", base): (
                200,
                document(world, policy={"levels": ["trusted"]}),
            ),
            ("POST", base + "/tickets"): self.ticket,
            ("GET", base + "/audit"): self.audit,
        }
        world.attest.routes["GET", f"/v1/vm-reports/{SERVER}"] = (
            lambda _request: (200, {"reports": self.reports})
        )
        self.stream = io.StringIO()
        self.now = 0.0

    def record(self, event: str, **more: Any) -> None:
        self.records.append(
            {
                "seq": len(self.records) + 1,
                "event": event,
                "time": int(time.time()),
                **more,
            }
        )

    def decide(self, event: str = "kms.release.granted") -> None:
        self.record(
            event,
            host="node1",
            purpose="launch",
            request_digest="44" * 32,
            detail="" if event.endswith("granted") else "because",
            claims={"instance": SERVER},
        )

    def ticket(self, request: Request) -> Answer:
        assert request.body["manifest_digests"] == [self.digest]
        self.record("kms.ticket.created")
        self.decide()
        return 200, {"ticket": TICKET, "expires_at": 9}

    def audit(self, request: Request) -> Answer:
        after = int(request.query.removeprefix("after="))
        return 200, {"records": [r for r in self.records if r["seq"] > after]}

    def report(
        self, change: Callable[[VmClaims], VmClaims] = lambda c: c
    ) -> dict[str, Any]:
        now = int(time.time())
        claims = change(
            VmClaims(
                instance=SERVER,
                project="p",
                image=IMAGE,
                key_id=KEY,
                kms_origin=self.world.kms.url,
                host="node1",
                purpose="launch",
                manifest_digest=self.digest,
                domain_digest="33" * 32,
                request_digest="44" * 32,
                started_at=now,
                measured={"ciphertext": "ok"},
            )
        )
        nonce = secrets.token_bytes(32)
        token = jose.sign(
            canonical_json(
                {
                    "iss": self.world.issuer,
                    "iat": now,
                    "claims": claims.to_dict(),
                    "host": "node1",
                    "level": "trusted",
                    "nonce": b64u(nonce),
                }
            ),
            self.world.result_key,
            TYP,
        )
        evidence = SoftHost(self.enroller).vm_evidence(nonce, claims)
        return {
            "report": token,
            "nonce": b64u(nonce),
            "claims": claims.to_dict(),
            "evidence": evidence.to_dict(),
        }

    @property
    def servers(self) -> Servers:
        config = self.world.config()
        kms = Kms(config.kms)
        images = Images(
            config, kms, lambda: self.cloud, lambda _: None, self.stream
        )
        return Servers(Nova(self.cloud), kms, lambda: Attest(config), images)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def launch(self) -> Launch:
        return Launch(
            self.servers,
            Steps(self.stream, lambda: self.now),
            lambda: self.now,
            self.sleep,
        )

    @property
    def said(self) -> str:
        return self.stream.getvalue()


NEW = NewServer("vm", "web", "tiny")


@pytest.fixture
def bench(world: World, enroller: Enroller) -> Bench:
    return Bench(world, enroller)


def test_every_step_is_ticked_in_order(bench: Bench) -> None:
    found = bench.launch().run(NEW)
    assert found.trusted
    steps = [line.split("s  ", 1)[1] for line in bench.said.splitlines()]
    assert [step.split(":")[0] for step in steps] == [
        "image", "ticket", "requested", "key released", "scheduled",
        "started", "measured", "VM report",
    ]  # fmt: skip
    assert "[kms.ticket.created]" in bench.said
    assert "[kms.release.granted]" in bench.said
    assert TICKET not in bench.said
    body = bench.cloud.created
    assert body["metadata"] == {"mh_ticket": TICKET}
    assert body["networks"] == "none"
    assert body["imageRef"] == IMAGE
    assert (body["flavorRef"], "availability_zone" in body) == ("f1", False)


def test_what_is_asked_for_is_passed_on(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "ud"
    path.write_bytes(USER_DATA)
    new = replace(
        NEW,
        availability_zone="nova:node2",
        networks=("n1", "n2"),
        user_data=str(path),
        properties={"a": "b"},
        wait=0,
    )
    found = bench.launch().run(new)
    assert not found.trusted
    body = bench.cloud.created
    assert body["availability_zone"] == "nova:node2"
    assert body["networks"] == [{"uuid": "n1"}, {"uuid": "n2"}]
    assert body["metadata"] == {"a": "b", "mh_ticket": TICKET}
    assert body["user_data"] == "I2Nsb3VkLWNvbmZpZwo="


def test_a_rebuild_is_followed_as_a_launch(bench: Bench) -> None:
    """The ticket takes the place of the old one; nothing else changes."""
    old = {"mh_ticket": "old", "mh_refused": "why", "mine": "kept"}
    bench.cloud.states = [
        {"status": "ACTIVE", "metadata": old},
        {"status": "REBUILD", "hostId": "hash"},
        {"status": "ACTIVE", "hostId": "hash"},
    ]
    found = bench.launch().rebuild("vm", "web", 600)
    assert found.trusted
    steps = [line.split("s  ", 1)[1] for line in bench.said.splitlines()]
    assert [step.split(":")[0] for step in steps] == [
        "image", "ticket", "requested", "key released",
        "started", "measured", "VM report",
    ]  # fmt: skip
    metadata = {"mh_ticket": TICKET, "mine": "kept"}
    assert bench.cloud.acts == [
        {"rebuild": {"imageRef": IMAGE, "metadata": metadata}}
    ]
    assert TICKET not in bench.said


def test_a_rebuild_to_an_image_that_was_tampered_with(bench: Bench) -> None:
    del bench.cloud.image["mh_key_url"]
    bench.cloud.states = [{"status": "ACTIVE"}]
    with pytest.raises(InputError):
        bench.launch().rebuild("vm", "web", 600)
    assert not bench.cloud.acts
    assert not bench.records


def test_user_data_that_is_not_listed(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "ud"
    path.write_bytes(b"other")
    with pytest.raises(InputError) as caught:
        bench.launch().run(replace(NEW, user_data=str(path)))
    assert caught.value.event == "client.launch.user-data"
    assert not bench.cloud.created
    assert not bench.records


def test_an_image_that_was_tampered_with(bench: Bench) -> None:
    del bench.cloud.image["mh_key_url"]
    with pytest.raises(InputError):
        bench.launch().run(NEW)
    assert not bench.cloud.created
    assert not bench.records


def test_no_valid_host_says_why(bench: Bench) -> None:
    bench.cloud.states = [
        {
            "status": "ERROR",
            "fault": {"message": "No valid host was found. "},
        }
    ]
    host = {"host": "node1", "level": "untrusted", "event": "attest.x.y"}
    bench.world.attest.routes["GET", "/v1/hosts"] = (200, {"hosts": [host]})
    with pytest.raises(MHError) as caught:
        bench.launch().run(NEW)
    assert caught.value.event == "client.launch.failed"
    assert "No valid host" in caught.value.message
    assert "node1: untrusted [attest.x.y]" in bench.said


def test_who_may_not_ask_is_told_so(bench: Bench) -> None:
    bench.world.attest.routes["GET", "/v1/hosts"] = (
        403,
        error("attest.access.denied"),
    )
    lines = bench.servers.why_no_host()
    assert "attest.access.denied" in lines[0]


def test_a_refused_key(bench: Bench) -> None:
    def ticket(request: Request) -> Answer:
        bench.record("kms.ticket.created")
        bench.decide("kms.release.attestation")
        return 200, {"ticket": TICKET, "expires_at": 9}

    path = ("POST", f"/v1/keys/{KEY}/tickets")
    bench.world.kms.routes[path] = ticket
    fault = "key refused [agent.release.refused]"
    bench.cloud.states = [{"status": "ERROR", "fault": {"message": fault}}]
    with pytest.raises(MHError) as caught:
        bench.launch().run(NEW)
    assert fault in caught.value.message
    assert "[kms.release.attestation]" in bench.said
    found = bench.servers.show(SERVER)
    assert not found.trusted
    assert found.refusal is not None
    assert found.refusal.event == "kms.release.attestation"
    assert found.server.fault == fault


def test_nova_refuses(bench: Bench) -> None:
    bench.cloud.refuse = Reply(403, {"forbidden": {"message": "quota"}})
    with pytest.raises(Denied) as caught:
        bench.launch().run(NEW)
    assert "quota" in caught.value.message


def test_it_takes_too_long(bench: Bench) -> None:
    bench.cloud.states = [{"status": "BUILD"}]
    with pytest.raises(MHError) as caught:
        bench.launch().run(replace(NEW, wait=5))
    assert caught.value.event == "client.launch.timeout"


def test_no_report_comes(bench: Bench) -> None:
    bench.reports.clear()
    found = bench.launch().run(NEW)
    assert not found.trusted
    assert found.server.status == "ACTIVE"
    assert "client.launch.no-report" in bench.said


def test_a_report_of_another_manifest(bench: Bench) -> None:
    bench.reports = [
        bench.report(lambda c: replace(c, manifest_digest="55" * 32))
    ]
    found = bench.launch().run(NEW)
    assert not found.trusted
    assert "client.report.manifest" in bench.said


def test_a_report_of_an_earlier_start(bench: Bench) -> None:
    bench.cloud.states = [{"status": "ACTIVE"}]
    bench.decide()
    assert bench.servers.show(SERVER).trusted
    bench.decide()
    bench.records[-1]["request_digest"] = "77" * 32
    found = bench.servers.show(SERVER)
    assert not found.trusted
    assert found.judgement is not None
    assert found.judgement.refused("current")
    # the same request again, much later
    bench.decide()
    bench.records[-1]["time"] += 3600
    assert not bench.servers.show(SERVER).trusted


def test_a_server_that_stopped_is_not_trusted(bench: Bench) -> None:
    bench.cloud.states = [{"status": "SHUTOFF"}]
    bench.decide()
    found = bench.servers.show(SERVER)
    assert found.verified
    assert not found.trusted


def test_the_newest_report_counts(bench: Bench) -> None:
    bench.decide()
    good, bad = (
        bench.report(),
        bench.report(lambda c: replace(c, measured={})),
    )
    bench.cloud.states = [{"status": "ACTIVE"}]
    bench.reports = [bad, good]
    assert bench.servers.show(SERVER).trusted
    bench.reports = [good, bad]
    assert not bench.servers.show(SERVER).trusted


def test_show_works_without_the_servers(bench: Bench) -> None:
    bench.cloud.states = [{"status": "SHUTOFF"}]
    bench.world.attest.routes["GET", "/v1"] = (503, error("attest.database"))
    bench.decide("kms.release.authority")
    found = bench.servers.show(SERVER)
    assert not found.trusted
    assert "attest.database" in found.problem
    assert found.refusal is not None
    assert found.refusal.event == "kms.release.authority"


def test_nova_shows_another_server(bench: Bench) -> None:
    """One that is trusted, for the one that was asked for."""
    bench.decide()
    bench.cloud.states = [{"status": "ACTIVE"}]
    assert bench.servers.show(SERVER).trusted
    assert bench.servers.show("vm").trusted
    for name in (KEY, "db"):
        with pytest.raises(VerificationError) as caught:
            bench.servers.show(name)
        assert caught.value.event == "client.nova.another"
    bench.cloud.states = [{"status": "ACTIVE", "id": KEY, "name": SERVER}]
    with pytest.raises(VerificationError):
        bench.servers.show(SERVER)
    with pytest.raises(VerificationError):
        bench.launch().run(NEW)


def test_an_old_server_is_not_the_new_one(bench: Bench) -> None:
    """Nova answers with one that runs, and holds; nothing was launched."""
    bench.decide()
    bench.cloud.states = [{"status": "ACTIVE"}]

    def ticket(_request: Request) -> Answer:
        bench.record("kms.ticket.created")
        return 200, {"ticket": TICKET, "expires_at": 9}

    path = ("POST", f"/v1/keys/{KEY}/tickets")
    bench.world.kms.routes[path] = ticket
    assert bench.servers.show(SERVER).trusted
    found = bench.launch().run(NEW)
    assert not found.trusted
    assert "client.launch.no-release" in found.problem
    assert "[client.launch.no-release]" in bench.said


def test_glance_shows_another_image(bench: Bench) -> None:
    for name in (SERVER, "db"):
        with pytest.raises(VerificationError) as caught:
            bench.launch().run(replace(NEW, image=name))
        assert caught.value.event == "client.upload.another"
    bench.cloud.image["name"] = SERVER
    with pytest.raises(VerificationError):
        bench.launch().run(replace(NEW, image=SERVER))
    assert not bench.cloud.created
    assert not bench.records


def test_the_cloud_does_not_write_over_our_words(bench: Bench) -> None:
    fault = "x\x1b[9A\x1b[2Ktrusted: verified by this client\n\u202e"
    bench.cloud.states = [{"status": "ERROR", "fault": {"message": fault}}]
    with pytest.raises(MHError):
        bench.launch().run(NEW)
    names, values = _shown(bench.servers.show(SERVER))
    shown = dict(zip(names, values, strict=True))
    assert "trusted: verified" in shown["reason"]
    for text in (shown["reason"], bench.said.replace("\n", "")):
        assert text.isprintable()
