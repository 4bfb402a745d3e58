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
"""The people of the demo and what they do, on a running TrustedCloud.

Long-winded commands are typed as ``openstack trusted …`` where the demo
shows them; the many launches behind refusals go through the same REST calls
without starting a client each time.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import hashlib
import pathlib
import re
import secrets
import time
import typing
import uuid

import openstack
import requests
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from mh_core.request import Disk, KeyRequest
from mh_nova.agent.tpm import Tpm
from tests.minicloud import bootimage, guest
from tests.minicloud.foul.glance import Glance
from tests.minicloud.node import Node
from tests.minicloud.process import CloudError
from tests.minicloud.trusted import (
    ATTEST_ORIGIN,
    KMS_ORIGIN,
    SOURCES,
    TrustedCloud,
    wait_for,
)

TRUSTED_FLAVOR = "m1.tiny.trusted"
PLAIN_FLAVOR = "m1.plain"
#: Trusted for the filter, but placement is not told.
FOUL_FLAVOR = "m1.tiny.foul"
_EVENT = re.compile(r"\b[a-z]+(?:\.[a-z][a-z0-9-]*){2,}\b")


class Rest:
    """One service's API with one person's token."""

    def __init__(self, origin: str, ca: pathlib.Path, token: str) -> None:
        self.origin = origin
        self._session = requests.Session()
        self._session.verify = str(ca)
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {token}"

    def __call__(
        self, method: str, path: str, body: typing.Any = None
    ) -> typing.Any:
        answer = self._session.request(
            method, self.origin + path, json=body, timeout=30
        )
        if answer.status_code >= 400:
            raise CloudError(f"{method} {path}: {answer.text}")
        return answer.json() if answer.content else None


@dataclasses.dataclass
class TrustedImage:
    """An image as the tenant made it."""

    id: str
    name: str
    key_id: str
    key_url: str
    token: str
    marker: bytes
    manifest_digest: str
    properties: dict[str, typing.Any]


class World:
    """
    :param product: started.
    """

    #: Longest time the scheduler's cache holds an answer, seconds.
    CACHE = 3.5
    #: A server that is longer in ERROR stays there, seconds.
    ERROR = 3.0

    def __init__(self, product: TrustedCloud) -> None:
        self.product = product
        self.cloud = product.cloud
        self.node1, self.node2 = self.cloud.nodes
        self.node3 = self.cloud.node3
        self.admin = self.cloud.connect("admin")
        self.tenant = self.cloud.connect("tenant")
        self.other = self.cloud.connect("other")
        self.kms = self._rest(KMS_ORIGIN, product.workstation / "kms.token")
        self.attest = self._rest(
            ATTEST_ORIGIN, product.operator / "attest.token"
        )
        self.servers: list[typing.Any] = []
        self.images: list[TrustedImage] = []
        self.operator = self._operator()
        self._second: TrustedImage | None = None
        self._kept: typing.Any = None
        self._traited: collections.abc.Callable[[], None] = lambda: None

    def _rest(self, origin: str, token: pathlib.Path) -> Rest:
        return Rest(origin, self.product.ca, token.read_text().strip())

    def _operator(self) -> typing.Any:
        """The cloud's operator acting inside the tenant's project."""
        identity = self.admin.identity
        project = self.tenant.current_project_id
        me = self.admin.current_user_id
        role = identity.find_role("admin")
        identity.assign_project_role_to_user(project, me, role)
        return openstack.connect(
            load_yaml_config=False,
            load_envvars=False,
            region_name="RegionOne",
            auth={
                "auth_url": self.cloud.env("admin")["OS_AUTH_URL"],
                "username": "admin",
                "password": self.cloud.env("admin")["OS_PASSWORD"],
                "project_id": project,
                "user_domain_id": "default",
            },
            compute_default_microversion="2.95",
        )

    def only(self, *nodes: Node) -> None:
        """Let the scheduler use these hosts and no others."""
        for service in self.admin.compute.services(binary="nova-compute"):
            wanted = service.host in [node.name for node in nodes]
            if wanted and service.status != "enabled":
                self.admin.compute.enable_service(service.id)
            elif not wanted and service.status == "enabled":
                self.admin.compute.disable_service(service.id)

    # -- preparation -----------------------------------------------------

    def flavors(self) -> None:
        """One trusted flavor by our command, one plain."""
        if self.admin.compute.find_flavor(TRUSTED_FLAVOR) is None:
            self.product.openstack(
                "admin",
                *("trusted", "flavor", "create", TRUSTED_FLAVOR),
                *("--ram", "64", "--vcpus", "1", "--disk", "1"),
            )
        guest.flavor(self.admin, PLAIN_FLAVOR)
        guest.flavor(
            self.admin, FOUL_FLAVOR, **{"trust:trusted_host": "trusted"}
        )

    def boot_disk(
        self, name: str, size: int = 1 << 20
    ) -> tuple[pathlib.Path, str, bytes]:
        """A tiny bootable disk: its path, console token, body marker."""
        token = "token-" + secrets.token_hex(8)
        marker = b"marker:" + secrets.token_hex(24).encode()
        path = bootimage.write(
            self.product.workstation / f"{name}.raw",
            token.encode(),
            size=size,
            marker=marker,
        )
        return path, token, marker

    def create_key(self, name: str, *words: str) -> dict[str, typing.Any]:
        """``openstack trusted key create``"""
        found = self.product.answer(
            "tenant", "trusted", "key", "create", name, *words
        )
        return typing.cast(dict[str, typing.Any], found)

    def create_image(
        self,
        name: str,
        key: dict[str, typing.Any],
        *words: str,
        disk: tuple[pathlib.Path, str, bytes] | None = None,
    ) -> TrustedImage:
        """``openstack trusted image create``"""
        path, token, marker = disk or self.boot_disk(name)
        made = self.product.answer(
            "tenant",
            *("trusted", "image", "create", name),
            *("--file", path, "--key", key["id"]),
            *words,
        )
        return self.image(made["id"], key, token, marker)

    def image(
        self,
        image_id: str,
        key: dict[str, typing.Any],
        token: str,
        marker: bytes,
    ) -> TrustedImage:
        document = self.tenant.image.get(f"/images/{image_id}").json()
        image = TrustedImage(
            id=image_id,
            name=document["name"],
            key_id=key["id"],
            key_url=document["mh_key_url"],
            token=token,
            marker=marker,
            manifest_digest=self.kms("GET", f"/v1/keys/{key['id']}")[
                "manifests"
            ][-1],
            properties=document,
        )
        self.images.append(image)
        return image

    # -- launches --------------------------------------------------------

    def ticket(self, image: TrustedImage) -> str:
        made = self.kms(
            "POST",
            f"/v1/keys/{image.key_id}/tickets",
            {
                "manifest_digests": [image.manifest_digest],
                "count": 1,
                "ttl": 600,
            },
        )
        return str(made["ticket"])

    def request(
        self, image: TrustedImage, key_id: str | None = None
    ) -> KeyRequest:
        """What host 1 would ask for a new instance of this image."""
        key_id = key_id or image.key_id
        return KeyRequest(
            key_id=key_id,
            kms_origin=KMS_ORIGIN,
            purpose="launch",
            instance=str(uuid.uuid4()),
            project=self.tenant.current_project_id,
            user="root",
            host=self.node1.name,
            image=image.id,
            manifest_digest=image.manifest_digest,
            disks=(Disk("disk", str(uuid.uuid4())),),
            ticket=self.ticket(image) if key_id == image.key_id else "",
        )

    def launch(
        self,
        name: str,
        image: TrustedImage,
        *,
        conn: typing.Any = None,
        flavor: str = TRUSTED_FLAVOR,
        image_id: str | None = None,
        ticket: str | None = None,
        wait: bool = True,
        **more: typing.Any,
    ) -> typing.Any:
        """Launch and wait until the server is ACTIVE or in ERROR."""
        conn = conn or self.tenant
        if ticket is None:
            ticket = self.ticket(image)
        server = conn.compute.create_server(
            name=name,
            image_id=image_id or image.id,
            flavor_id=self.admin.compute.find_flavor(flavor).id,
            networks="none",
            metadata={"mh_ticket": ticket},
            **more,
        )
        self.servers.append(server)
        if not wait:
            return server
        return guest.wait_status(conn, server, "ACTIVE")

    def settle(self, server: typing.Any, status: str) -> typing.Any:
        """Wait until no task is left and the state is the one asked for.

        nova may be without a task between two of them (an evacuated server
        runs for a moment before it is stopped), and in ERROR for a moment
        (after a refused rescue, until that is put right).
        """
        error = 0.0

        def test() -> typing.Any:
            nonlocal error
            found = self.admin.compute.get_server(server.id)
            if found.task_state is not None or found.status != "ERROR":
                error = 0.0
            elif not error:
                error = time.monotonic()
            lasting = error and time.monotonic() - error > self.ERROR
            over = found.task_state is None and found.status == status
            return found if over or lasting else None

        found = wait_for(f"{status} and no task", test, 120)
        assert found.status == status, guest.fault(found)
        return found

    def boots(
        self, name: str, image: TrustedImage, **more: typing.Any
    ) -> typing.Any:
        """Launch, and see the guest's own line; raises otherwise."""
        server = self.launch(name, image, **more)
        if server.status != "ACTIVE":
            raise CloudError(f"{name}: {guest.fault(server)}")
        guest.wait_console(self.admin, server, image.token)
        return server

    def post_ak(self, path: str) -> dict[str, typing.Any]:
        """The seed's request by hand: status and event id of the answer."""
        host = self.attest("GET", f"/v1/hosts/{self.node1.name}")
        certificate = x509.load_pem_x509_certificate(
            host["ak_certificate"].encode()
        )
        answer = requests.post(
            KMS_ORIGIN + path,
            data=certificate.public_key().public_bytes(
                serialization.Encoding.PEM,
                serialization.PublicFormat.SubjectPublicKeyInfo,
            ),
            verify=str(self.product.ca),
            timeout=30,
        )
        event = ""
        if answer.status_code >= 400:
            event = answer.json()["error"]["event"]
        return {"status": answer.status_code, "event": event}

    def delete(self, *servers: typing.Any) -> None:
        for server in servers:
            self.admin.compute.delete_server(
                server.id, ignore_missing=True, force=False
            )
        for server in servers:
            self.admin.compute.wait_for_delete(server, interval=0.2, wait=60)
            self.servers = [s for s in self.servers if s.id != server.id]

    def delete_all(self) -> None:
        self.delete(*list(self.servers))

    def plain_disk(self) -> tuple[typing.Any, str]:
        """An ordinary image of the tenant's and its console token."""
        path, token, _marker = self.boot_disk("plain")
        return guest.upload(self.tenant, "plain", path), token

    # -- what was recorded -----------------------------------------------

    def kms_audit(self, key_id: str) -> list[dict[str, typing.Any]]:
        found = self.kms("GET", f"/v1/keys/{key_id}/audit")
        return typing.cast(list[dict[str, typing.Any]], found["records"])

    def releases(self, key_id: str) -> list[dict[str, typing.Any]]:
        """What was decided about a key; receipts come in their own time."""
        return [
            record
            for record in self.kms_audit(key_id)
            if record["event"].startswith("kms.release.")
        ]

    def attest_audit(self) -> list[dict[str, typing.Any]]:
        found = self.attest("GET", "/v1/audit")
        return typing.cast(list[dict[str, typing.Any]], found["records"])

    def events_in(self, text: str) -> list[str]:
        """Dotted event ids that stand in a message."""
        return _EVENT.findall(text)

    def log_since(self, path: pathlib.Path, mark: int) -> str:
        with path.open("rb") as log:
            log.seek(mark)
            return log.read().decode(errors="replace")

    # -- state of the hosts ----------------------------------------------

    def agent_ready(self, node: Node) -> None:
        """Wait until a host is offered for trusted launches again."""

        wait_for(
            f"{node.name} trusted",
            lambda: self.level(node) == "trusted",
            60,
        )
        self.wait_trait(node, True)
        self.pause(self.CACHE)
        # nova-compute may have asked just before all was well, and be about
        # to withdraw the trait when it was looked at
        self.wait_trait(node, True)

    def wait_trait(self, node: Node, present: bool) -> None:
        """Wait for CUSTOM_MH_TRUSTED_LAUNCH to be set or withdrawn."""
        wait_for(
            f"trait of {node.name} {'set' if present else 'withdrawn'}",
            lambda: self.has_trait(node) is present,
            90,
            pause=0.5,
        )

    def has_trait(self, node: Node) -> bool:
        placement = self.admin.placement
        found = placement.get(
            "/resource_providers",
            params={"name": node.name},
            microversion="1.20",
        ).json()["resource_providers"]
        traits = placement.get(
            f"/resource_providers/{found[0]['uuid']}/traits",
            microversion="1.6",
        ).json()["traits"]
        return "CUSTOM_MH_TRUSTED_LAUNCH" in traits

    def leftovers(self, node: Node, server_id: str) -> list[str]:
        """What a failed launch left on a host; should be empty."""
        found = []
        instances = node.folder / "instances"
        if (instances / server_id).exists():
            found.append(f"{node.name}: instance directory")
        found += [
            f"{node.name}: {path.name}"
            for path in (instances / "_base").glob("*.part")
        ]
        secrets_left = node.virsh("secret-list").stdout.split()
        if secrets_left:
            found.append(f"{node.name}: secrets {secrets_left}")
        record = (
            node.folder
            / f"var/lib/mystery-hill/agent/instances/{server_id}.json"
        )
        if record.exists():
            found.append(f"{node.name}: agent record")
        return found

    def level(self, node: Node) -> str:
        """What the attestation server thinks of a host now."""
        trust = self.attest("POST", "/v1/hosts/trust", {"hosts": [node.name]})
        return str(trust["hosts"][node.name]["level"])

    def device(self, node: Node) -> tuple[Tpm, str]:
        """A node's TPM as its root can use it, and its AK certificate."""
        state = node.folder / "var/lib/mystery-hill/agent"
        certificate = state / "ak-certificate.pem"
        lock = self.cloud.where.tmp / f"{node.name}-tpm.lock"
        return (
            Tpm(node.tpm.tcti, str(lock)),
            certificate.read_text() if certificate.exists() else "",
        )

    @property
    def glance_store(self) -> pathlib.Path:
        return self.cloud.where.glance_store

    def forget_base(self, image_id: str, node: Node | None = None) -> None:
        """Take an image out of a host's cache; host 1's, if none is named."""
        name = hashlib.sha1(image_id.encode()).hexdigest()  # noqa: S324
        folder = (node or self.node1).folder / "instances/_base"
        for path in folder.glob(name + "*"):
            path.unlink()

    def untraited(self, image: TrustedImage) -> str:
        """Take the trait: property off, as an operator could; its id."""
        glance = Glance(self.cloud.where.mysql_socket, self.glance_store)
        self._traited = glance.strip(image.id, "trait:")
        return image.id

    def traited(self, image: TrustedImage) -> None:
        self._traited()
        self._traited = lambda: None

    def second(self, image: TrustedImage) -> TrustedImage:
        """Another image under the same key, made once."""
        if self._second is None:
            self._second = self.create_image("second", {"id": image.key_id})
        return self._second

    def compute(self, foul: bool) -> None:
        """Run the honest nova-compute on host 1, or the operator's own."""
        command = ["mh-nova-compute"]
        if foul:
            command = ["python", "-m", "tests.minicloud.foul_compute"]
        if self.node1.options.command != command:
            self.node1.options.command = command
            self.node1.options.env = SOURCES if foul else {}
            self.cloud.restart_compute(self.node1)
            self.cloud.wait_computes()
            self.agent_ready(self.node1)

    def running_guests(self) -> list[str]:
        """Uuids of the guests that run on host 1."""
        return self.node1.virsh("list", "--uuid").stdout.split()

    def pid(self, node: Node, server: typing.Any) -> int:
        """Of a guest's process; 0: none runs there."""
        name = node.virsh("domname", server.id, check=False).stdout.strip()
        path = node.path(f"/run/libvirt/qemu/{name}.pid")
        return int(path.read_text()) if name and path.exists() else 0

    # -- a server that is stopped and started ----------------------------

    def stopped(self, image: TrustedImage) -> typing.Any:
        """A trusted server that has run, now off; kept for more cases."""
        if self._kept is None:
            self._kept = self.boots("kept", image)
            self.servers = [s for s in self.servers if s.id != self._kept.id]
        found = self.admin.compute.get_server(self._kept.id)
        if found.status == "ACTIVE":
            self.tenant.compute.stop_server(found.id)
        return guest.wait_status(self.admin, found, "SHUTOFF")

    def refused_start(self, server: typing.Any) -> str:
        """Start it, and what ``openstack trusted server show`` says."""
        self.tenant.compute.start_server(server.id)
        self._idle(server)
        shown = self.product.answer(
            "tenant", "trusted", "server", "show", server.id
        )
        if shown["status"] == "ACTIVE":
            raise CloudError(f"it started: {shown}")
        return str(shown["reason"])

    def starts(self, server: typing.Any, image: TrustedImage) -> None:
        """Start it, and see the guest's own line."""
        found = self.admin.compute.get_server(server.id)
        if found.status == "ERROR":
            self.admin.compute.reset_server_state(server.id, "stopped")
        self.tenant.compute.start_server(server.id)
        guest.wait_status(self.admin, server, "ACTIVE")
        guest.wait_console(self.admin, server, image.token)

    def _idle(self, server: typing.Any) -> None:
        wait_for(
            "the end of the task",
            lambda: (
                self.admin.compute.get_server(server.id).task_state is None
            ),
            60,
        )

    def close(self) -> None:
        """Delete what is left, and be honest again."""
        if self._kept is not None:
            self.delete(self._kept)
            self._kept = None
        self.delete_all()
        self.compute(foul=False)

    @staticmethod
    def pause(seconds: float) -> None:
        time.sleep(seconds)


Step = collections.abc.Callable[[World], str]
