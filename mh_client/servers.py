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
"""Trusted servers: start one, and check afterwards what was started."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mh_client.attest import Attest
from mh_client.audit import Entry, entry
from mh_client.images import Images, TrustedImage
from mh_client.kms import Kms
from mh_client.leases import Tenure
from mh_client.nova import Nova, Server
from mh_client.reports import Judgement, judge
from mh_core.errors import MHError, NotFound

EVENT = "client.server"
#: In nova's fault where placement or a filter left no host.
NO_HOST = "No valid host"
#: Metadata that the host sets where it refused the last start.
REFUSED = "mh_refused"
RUNNING = "ACTIVE"
#: Purposes of a release that a report is made for.
STARTS = ("launch", "start", "migrate-in")


@dataclass(frozen=True)
class Finding:
    """A server, its image, and what its reports are worth.

    :param problem: why image or report could not be judged; empty if they
        were.
    :param decisions: of the key server about this instance, oldest first.
    :param hosts: where no host was found, what the attestation server says
        of each.
    :param tenure: which hosts may run it, as the key server says.
    """

    server: Server
    image: TrustedImage | None
    judgement: Judgement | None
    decisions: tuple[Entry, ...]
    problem: str = ""
    hosts: tuple[str, ...] = ()
    tenure: Tenure | None = None

    @property
    def verified(self) -> bool:
        """The report of the last start holds."""
        return self.judgement is not None and self.judgement.passed

    @property
    def trusted(self) -> bool:
        """What runs now was verified."""
        return self.verified and self.server.status == RUNNING

    @property
    def refusal(self) -> Entry | None:
        """The key server's last word, where it was no."""
        last = self.decisions[-1] if self.decisions else None
        return last if last and not last.granted else None


class Servers:
    def __init__(
        self,
        nova: Nova,
        kms: Kms,
        attest: Callable[[], Attest],
        images: Images,
    ) -> None:
        self.nova = nova
        self.kms = kms
        self.images = images
        self._attest = attest

    @property
    def attest(self) -> Attest:
        return self._attest()

    def decisions(
        self, key_id: str, instance: str, after: int = 0
    ) -> Iterator[Entry]:
        """Key releases to one instance, oldest first."""
        for record in self.kms.audit(key_id, after):
            one = entry(record)
            if one.instance == instance and one.release and one.of_key:
                yield one

    def judge(self, server: Server, image: TrustedImage) -> Judgement | None:
        """The newest report about a server; ``None`` where there is none.

        :raises MHError: ``client.attest.*``, or the server's answer.
        """
        authority = self.attest.authority()
        policy = self.kms.key(image.properties.key_id).policy
        try:
            reports = self.attest.reports(server.id)
        except NotFound:
            return None
        if not reports:
            return None
        return judge(
            reports[-1],
            authority=authority,
            instance=server.id,
            project=server.project,
            image=image,
            kms_origin=self.kms.origin(),
            levels=tuple(policy.get("levels", ())),
            granted=self._granted(image.properties.key_id, server.id),
        )

    def current(self, server: Server, image: TrustedImage) -> TrustedImage:
        """What the server's disk was made of: another image than nova's
        after an unshelve, whose snapshot nova has deleted.

        The newest report only says which key to ask the key server about;
        what comes back is verified, and must be of this server.
        """
        try:
            reports = self.attest.reports(server.id)
            claims = reports[-1].get("claims") if reports else None
            key_id = claims.get("key_id") if isinstance(claims, dict) else ""
            if not key_id or key_id == image.properties.key_id:
                return image
            made = self.images.provenance(str(key_id))
        except MHError:
            # then the report is not of the image, and is refused
            return image
        if made.claims.instance != server.id:
            return image
        return self.images.from_provenance(made)

    def _granted(self, key_id: str, instance: str) -> Entry | None:
        """The last release for a start."""
        found = [
            one
            for one in self.decisions(key_id, instance)
            if one.granted and one.purpose in STARTS
        ]
        return found[-1] if found else None

    def show(self, name: str) -> Finding:
        """Works for servers in any state; never raises for a bad report.

        :raises MHError: the server itself is not found.
        """
        server = self.nova.find(name)
        image: TrustedImage | None = None
        judgement: Judgement | None = None
        decisions: tuple[Entry, ...] = ()
        tenure: Tenure | None = None
        problems = []
        try:
            image = self.images.show(server.image)
        except MHError as exc:
            problems.append(f"image: {exc}")
        if image is not None:
            image = self.current(server, image)
            try:
                decisions = tuple(
                    self.decisions(image.properties.key_id, server.id)
                )
            except MHError as exc:
                problems.append(f"key server: {exc}")
            try:
                tenure = self.kms.tenure(image.properties.key_id, server.id)
            except MHError as exc:
                problems.append(f"lease: {exc}")
            try:
                judgement = self.judge(server, image)
            except MHError as exc:
                problems.append(f"report: {exc}")
        hosts = self.why_no_host() if NO_HOST in server.fault else []
        return Finding(
            server,
            image,
            judgement,
            decisions,
            "; ".join(problems),
            tuple(hosts),
            tenure,
        )

    def revoke(self, name: str, key: str | None, revoked: bool) -> Tenure:
        """No host may start the server, or go on with it past its lease.

        :param name: id or name; a server that nova no longer shows by id.
        :param key: id of its key, where its image is gone.
        :raises MHError: no such server or image; the key server's answer.
        """
        try:
            server = self.nova.find(name)
        except NotFound:
            if key is None:
                raise
            instance = name
        else:
            instance = server.id
            key = key or self.images.show(server.image).properties.key_id
        return self.kms.revoke(key, instance, revoked)

    def why_no_host(self) -> list[str]:
        """What the attestation server says of each host, if we may ask."""
        try:
            hosts = self.attest.hosts()
        except MHError as exc:
            return [f"the attestation server does not say: {exc}"]
        return [_host_line(host) for host in hosts] or [
            "no host is enrolled at the attestation server"
        ]


def _host_line(host: dict[str, Any]) -> str:
    words = f"{host.get('host')}: {host.get('level', 'unknown')}"
    event = host.get("event")
    return f"{words} [{event}]" if event else words
