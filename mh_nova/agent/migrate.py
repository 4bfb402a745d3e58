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
"""migrate-out, migrate-in: a guest that moves while it runs.

The source decides whether its guest's memory may leave; the destination
decides whether the guest may run there.  Neither believes the other, nor
nova: the source believes the attestation server, whose key the operator
pinned, and the destination its own TPM, the tenant's key server and the
domain XML that libvirt is about to start.
"""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from mh_core import jose
from mh_core.errors import (
    Conflict,
    Denied,
    InputError,
    MHError,
    NotFound,
    Unavailable,
    VerificationError,
)
from mh_core.migration import MigrationRequest, MigrationResult, pinned_name
from mh_nova.agent.attempt import Stage
from mh_nova.agent.authority import ask
from mh_nova.agent.make import INCOMING
from mh_nova.agent.migration_tls import Certified, MigrationTls
from mh_nova.agent.start import Starting

LOG = logging.getLogger(__name__)
EVENT = "agent.migrate"
GRANTED = EVENT + ".granted"


class Migrating(Starting):
    """The verbs around a live migration."""

    def _tls(self) -> MigrationTls:
        if self._p.migration is None or not self._p.migration.enabled:
            raise Denied(
                EVENT + ".disabled",
                "live migration is not set up on this host",
            )
        return self._p.migration

    def migration(self) -> Certified:
        """Could this host be either end of a live migration, now?

        :raises Denied: ``agent.migrate.disabled|certificate``,
            ``agent.guard.*``.
        """
        found = self._tls().certified()
        self._p.guard.require()
        return found

    def migrate_out(self, instance: str, destination: str) -> dict[str, Any]:
        """The gate: may this guest's memory go to that host?

        1. the instance is one of ours, with its disks, on this host;
        2. this host is sound, and has a migration certificate
           (``agent.guard.*``, ``agent.migrate.certificate``);
        3. the destination is another host (``agent.migrate.destination``);
        4. the attestation server, asked with a quote of ours over its nonce
           and a challenge of our own, vouches for the destination
           (``agent.migrate.refused``, ``agent.migrate.unavailable``);
        5. its answer is signed by the pinned key, to this very question,
           with a level that is enough (``agent.migrate.result``), and the
           CA it names is the one that QEMU will use
           (``agent.migrate.ca``);
        6. the audit record.

        :param destination: the cloud's name of the host.
        :returns: ``{"event", "detail", "tls_name", "expires_at"}``; a
            connection that expects exactly ``tls_name`` talks to the key
            in the result and to no other.
        :raises MHError: as in the list.
        """
        request = MigrationRequest(
            instance, self._conf.host, destination, os.urandom(32)
        )
        with self._attempts.own(instance):
            try:
                return self._migrate_out(request)
            except MHError as exc:
                self._p.journal.write(
                    exc.event, instance, exc.message, destination=destination
                )
                raise

    def _migrate_out(self, request: MigrationRequest) -> dict[str, Any]:
        # 1
        record = self._p.store.instance(request.instance)
        if not record.made:
            raise Conflict(
                EVENT + ".not-made", "the instance's disks are not made"
            )
        # 2
        certified = self.migration()
        # 3
        if request.destination == request.source:
            raise Denied(
                EVENT + ".destination", "the guest is on that host already"
            )
        # 4
        token = self._vouched(request)
        # 5
        result = self._verify(token, request)
        if result.ca_sha256 != certified.ca_sha256:
            raise Denied(
                EVENT + ".ca",
                "the migration CA has changed since this host's certificate",
            )
        # 6
        audit = self._p.journal.write(
            GRANTED,
            request.instance,
            destination=request.destination,
            host_id=result.host_id,
            level=result.level,
            key=jose.thumbprint(result.tls_jwk),
            request=request.digest().hex(),
        )
        return {
            "event": GRANTED,
            "detail": audit,
            "tls_name": pinned_name(result.tls_jwk),
            "expires_at": result.expires_at,
        }

    def _vouched(self, request: MigrationRequest) -> str:
        """Step 4: the token, unverified."""

        def body(nonce: bytes) -> dict[str, Any]:
            evidence = self._p.prover.migration_evidence(
                nonce, request.digest()
            )
            return {
                "request": request.to_dict(),
                "evidence": evidence.to_dict(),
            }

        fields = ask(self._conf, EVENT, "migration", "/v1/migrations", body)
        try:
            token = fields.text("result", maximum=16384)
            fields.end()
        except InputError as exc:
            raise Denied(EVENT + ".answer", exc.message) from exc
        return token

    def _verify(
        self, token: str, request: MigrationRequest
    ) -> MigrationResult:
        """Step 5."""
        conf = self._p.conf.migration
        try:
            key = jose.public(
                json.loads(Path(conf.authority_jwk_file).read_bytes())
            )
        except (OSError, ValueError, InputError) as exc:
            raise Unavailable(
                EVENT + ".authority",
                "[migration] authority_jwk_file is not a usable key",
            ) from exc
        try:
            return MigrationResult.verify(
                token,
                key,
                issuer=conf.issuer or self._conf.attest_url,
                request=request,
                levels=tuple(conf.levels),
                now=int(self._p.clock()),
            )
        except (InputError, VerificationError) as exc:
            raise Denied(
                EVENT + ".result", f"{exc.message} ({exc.event})"
            ) from exc

    def migrate_offer(self, instance: str, destination: str) -> None:
        """Before a destination asks for the keys: it may hold a second
        lease.  It decides nothing else; empty takes it back.

        :raises MHError: of the key server.
        """
        if self._p.handover is None:
            return
        if destination:
            # before: what nobody remembers, nobody takes back
            self._offered(instance, True)
        self._p.handover.handover(instance, destination)
        if not destination:
            self._offered(instance, False)

    def _offered(self, instance: str, offered: bool) -> None:
        with self._attempts.own(instance):
            record = self._p.store.instance(instance)
            self._p.store.save_instance(replace(record, offered=offered))

    def migrate_left(self, instance: str) -> None:
        """The guest runs elsewhere: its lease here is over.

        :raises MHError: of the key server.
        """
        if self._p.handover is not None:
            self._p.handover.left(instance)

    def unfinished(self) -> tuple[list[str], list[str]]:
        """Of live migrations that nobody has said to be over: instances
        whose disks were made here, and those whose destination was offered
        a lease."""
        incoming, offered = [], []
        for instance in self._p.store.instances():
            try:
                record = self._p.store.instance(instance)
            except (NotFound, InputError):
                # dropped meanwhile, or damaged: what needs it will say so
                continue
            if record.incoming:
                incoming.append(instance)
            if record.offered:
                offered.append(instance)
        return incoming, offered

    def migrate_in(self, instance: str, xml: str) -> tuple[str, str]:
        """libvirt is about to start an incoming guest: the start's gate.

        1. the instance was prepared for this, and its disks were made
           (``agent.migrate.not-expected``);
        2. from there on as at every start, with the key asked for again
           unless it is fresh.

        :param xml: what libvirt will start, as its hook was given it.
        :returns: event id and a sentence for the log.
        """
        with self._attempts.own(instance):
            # 1
            attempt = self._attempts.get(instance)
            if (
                attempt is None
                or attempt.request.purpose != INCOMING
                or attempt.stage is Stage.PREPARED
            ):
                raise Conflict(
                    EVENT + ".not-expected",
                    "no live migration of this instance is expected here",
                )
            # 2
            return self._decide(instance, xml, INCOMING)
