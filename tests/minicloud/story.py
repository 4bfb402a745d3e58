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
"""The main job, step by step, as the README tells it.

Each step is a method that returns the event id by which the responsible
component recorded it, and raises where that is not what happened.  The demo
prints them; the end-to-end tests run the same ones.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import re
import typing

from tests.minicloud import debian_image, guest, heard
from tests.minicloud.process import CloudError
from tests.minicloud.world import TRUSTED_FLAVOR, TrustedImage, World

AGENT_LOG = "var/lib/mystery-hill/agent/audit.log"
#: Granted by :mod:`mh_kms.release`.
GRANTED = "kms.release.granted"


def find(
    records: list[dict[str, typing.Any]], event: str, **members: typing.Any
) -> str:
    """The newest record of an event, as ``event#sequence``."""
    for record in reversed(records):
        flat = {**record, **(record.get("record") or {})}
        if flat.get("event") == event and all(
            str(value) in json.dumps(flat) for value in members.values()
        ):
            return f"{event}#{flat.get('seq', '?')}"
    raise CloudError(f"no record of {event} {members}")


@dataclasses.dataclass
class Story:
    """What one step made and a later one uses."""

    world: World
    say: collections.abc.Callable[[str], None] = lambda text: None
    key: dict[str, typing.Any] = dataclasses.field(default_factory=dict)
    image: TrustedImage | None = None
    server: typing.Any = None
    compat_image: TrustedImage | None = None

    @property
    def disk_image(self) -> TrustedImage:
        if self.image is None:
            raise CloudError("no image: an earlier step failed")
        return self.image

    def ready(self) -> TrustedImage:
        """What the first four steps leave, whether they were told or not:
        host 1 enrolled, the flavor, the key, the image."""
        if self.image is None:
            self.enrol()
            self.flavor()
            self.tenant_key()
            self.tenant_image()
        return self.disk_image

    # 1
    def enrol(self) -> str:
        """Operator enrols host 1: EK, AK, certificate, policy learnt."""
        host = self.world.product.enrol(self.world.node1)
        if host["level"] != "trusted":
            raise CloudError(f"node1 is {host['level']}: {host['event']}")
        self.world.agent_ready(self.world.node1)
        return find(self.world.attest_audit(), "attest.enrol.enrolled")

    def flavor(self) -> str:
        """Operator makes the flavor m1.tiny.trusted."""
        self.world.flavors()
        found = self.world.admin.compute.find_flavor(TRUSTED_FLAVOR)
        specs = self.world.admin.compute.fetch_flavor_extra_specs(found)
        if specs.extra_specs.get("trust:trusted_host") != "trusted":
            raise CloudError(f"extra specs: {specs.extra_specs}")
        specs_of = f"/v2.1/flavors/{found.id}/os-extra_specs"
        return self._nova_request(f"POST {specs_of}", f"GET {specs_of}")

    # 2
    def tenant_key(self) -> str:
        """Tenant makes a key; wrapped to the key server, never on disk."""
        self.key = self.world.create_key("demo")
        return find(self.world.kms_audit(self.key["id"]), "kms.key.created")

    # 3
    def tenant_image(self) -> str:
        """Tenant encrypts an image, signs its manifest, uploads it."""
        self.image = self.world.create_image("demo", self.key)
        records = self.world.kms_audit(self.key["id"])
        return find(records, "kms.deliver.delivered")

    # 4 to 6
    def launch(self) -> str:
        """Tenant launches it: scheduled on host 1, key released there."""
        log = self.world.node1.folder / AGENT_LOG
        with heard.tail(log, self._agent_record):
            done = self.world.product.openstack(
                "tenant",
                *("trusted", "server", "create", "demo", "-f", "json"),
                *("--image", self.disk_image.id, "--flavor", TRUSTED_FLAVOR),
                hear=self._say_more,
            )
        shown = json.loads(done.stdout)
        self.server = self.world.admin.compute.get_server(shown["id"])
        self.world.servers.append(self.server)
        if self.server.status != "ACTIVE":
            raise CloudError(f"{shown}")
        if self.server.hypervisor_hostname != self.world.node1.name:
            raise CloudError(f"on {self.server.hypervisor_hostname}")
        return find(
            self.world.kms_audit(self.disk_image.key_id),
            GRANTED,
            instance=self.server.id,
        )

    def _say_more(self, text: str) -> None:
        self.say(f"              {text}")

    def _agent_record(self, line: str) -> None:
        """What host 1's agent writes down about the launch."""
        record = json.loads(line.split("\t")[0])
        if "instance" in record:
            self._say_more(f"node1: {record['event']}#{record['seq']}")

    def _nova_request(self, *asked: str) -> str:
        """The id under which Nova's API logged the newest such request."""
        log = self.world.cloud.where.log / "nova.log"
        lines = log.read_text(errors="replace").splitlines()
        for one in asked:
            pattern = re.compile(rf"(req-[0-9a-f-]{{36}}) .*\"{one}")
            for line in reversed(lines):
                found = pattern.search(line)
                if found:
                    return f"nova {found.group(1)}"
        raise CloudError(f"Nova logged no {asked[0]}")

    # 8
    def report(self) -> str:
        """Tenant's own client verifies the VM report of host 1."""
        shown = self.world.product.answer(
            "tenant", "trusted", "server", "show", self.server.id
        )
        if not shown["verdict"].startswith("trusted"):
            raise CloudError(json.dumps(shown, indent=1))
        return find(
            self.world.attest_audit(),
            "attest.vm-report.accepted",
            instance=self.server.id,
        )

    # 9 a
    def console(self) -> str:
        """The guest's own line, read through Nova's console API."""
        guest.wait_console(
            self.world.tenant, self.server, self.disk_image.token
        )
        return self._nova_request(
            f"POST /v2.1/servers/{self.server.id}/action"
        )

    # 9 b
    def debian(self) -> str:
        """The same with Debian: its kernel, a boot loader, partitions."""
        world = self.world
        disk = debian_image.build(world.product.base.parent / "debian")
        path = world.product.workstation / "debian.qcow2"
        path.write_bytes(disk.path.read_bytes())
        flavor = "m1.small.trusted"
        if world.admin.compute.find_flavor(flavor) is None:
            world.product.openstack(
                "admin",
                *("trusted", "flavor", "create", flavor),
                *("--ram", "512", "--vcpus", "1", "--disk", "2"),
            )
        image = world.create_image(
            "debian", self.key, disk=(path, disk.token, b"")
        )
        server = world.launch("debian", image, flavor=flavor)
        if server.status != "ACTIVE":
            raise CloudError(guest.fault(server))
        guest.wait_console(world.tenant, server, disk.token, timeout=180)
        event = find(
            world.kms_audit(image.key_id), GRANTED, instance=server.id
        )
        world.delete(server)
        return event

    # the seed's own request
    def bare_ak(self) -> str:
        """The same launch by the seed's bare-AK request."""
        world = self.world
        key = world.create_key("seed", "--compat")
        image = world.create_image("seed", key, "--compat")
        self.compat_image = image
        if "/data-encryption-key/request/" not in image.key_url:
            raise CloudError(image.key_url)
        server = world.boots("seed", image)
        event = find(
            world.kms_audit(image.key_id), GRANTED, instance=server.id
        )
        world.delete(server)
        return event

    def bare_ak_is_off(self) -> str:
        """A bare-AK request for a key that does not allow it is refused."""
        world = self.world
        url = self.key["compat_url"].removeprefix(world.kms.origin)
        answer = world.post_ak(url)
        if (answer["status"], answer["event"]) != (403, "kms.release.compat"):
            raise CloudError(f"{answer}")
        return str(answer["event"])

    def steps(
        self,
    ) -> list[tuple[str, collections.abc.Callable[[], str]]]:
        """In order; a name is the first line of the docstring."""
        methods = [
            self.enrol,
            self.flavor,
            self.tenant_key,
            self.tenant_image,
            self.launch,
            self.report,
            self.console,
            self.debian,
            self.bare_ak,
            self.bare_ak_is_off,
        ]
        return [
            ((method.__doc__ or "").splitlines()[0].rstrip("."), method)
            for method in methods
        ]
