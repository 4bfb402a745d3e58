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
"""start, started: the gate of every start."""

import logging
from dataclasses import replace

from mh_core.errors import Conflict, InputError, MHError, NotFound
from mh_nova.agent import admit as admit_module
from mh_nova.agent.admit import Facts, admit
from mh_nova.agent.attach import Attaching
from mh_nova.agent.attempt import Attempt, Opened, Stage
from mh_nova.agent.facts import (
    base_path,
    expected_disks,
    secret_keys,
    tpm_secret,
    vm_claims,
)
from mh_nova.agent.keys import key_request
from mh_nova.agent.make import awaits
from mh_nova.agent.measure import Measured, without_base
from mh_nova.agent.paths import CONSOLE_LOG
from mh_nova.agent.reason import named
from mh_nova.agent.saved import saved_domain
from mh_nova.agent.work import EVENT

LOG = logging.getLogger(__name__)
STARTED = EVENT + ".started"
GRANTED = "agent.start.granted"


class Starting(Attaching):
    """The verbs around a start."""

    def start(self, instance: str, xml: str, purpose: str) -> tuple[str, str]:
        """The admit decision, then the secrets.

        :param xml: the final domain XML.
        :returns: event id and a sentence for the log.
        :raises Conflict: ``agent.start.awaited``.
        """
        with self._attempts.own(instance):
            self._not_awaited(instance)
            return self._decide(instance, xml, purpose)

    def _not_awaited(self, instance: str) -> None:
        """:raises Conflict: ``agent.start.awaited``."""
        if awaits(self._p.store.instance(instance)):
            raise Conflict(
                "agent.start.awaited",
                "the disk is blank: its guest is to come from another host",
            )

    def _decide(
        self, instance: str, xml: str, purpose: str
    ) -> tuple[str, str]:
        with self._attempts.own(instance):
            attempt = self._attempt_to_start(instance, purpose)
            try:
                with named():
                    return self._start(attempt, xml, purpose)
            except MHError as exc:
                try:
                    self._refused(attempt, exc)
                finally:
                    self._give_up(instance)
                raise

    def _attempt_to_start(self, instance: str, purpose: str) -> Attempt:
        """The launch under way, if it will do; else a new attempt."""
        attempt = self._attempts.get(instance)
        if (
            attempt is not None
            and attempt.stage is not Stage.PREPARED
            # a launch that was left is no leave to start again
            and attempt.request.purpose == purpose
        ):
            return attempt
        ahead = self._ahead.take(instance)
        record = self._p.store.instance(instance)
        if not record.made:
            raise Conflict(
                "agent.start.not-made", "the instance's disks are not made"
            )
        url = self._keys.check_url(record)
        request = key_request(record, url, purpose, "")
        attempt = Attempt(record, url, request, stage=Stage.MADE)
        if ahead is not None and ahead.request == request:
            attempt.key = ahead.key
        self._attempts.put(attempt)
        return attempt

    def _ready(self, attempt: Attempt) -> tuple[Opened, Measured]:
        """Headers, key and base of one record, looked at again."""
        record = attempt.record
        self._p.guard.require()
        for disk in record.disks:
            if disk.drive and not disk.size:
                # written after libvirt has the domain, by the verb drive
                continue
            base = base_path(self._p.root, record, disk)
            self._p.overlays.require(record.instance, disk, base)
        opened = attempt.opened
        if opened is None or not opened.fresh():
            opened = self._keys.open(attempt)
        return opened, self._measured(attempt, opened)

    def _start(
        self, attempt: Attempt, xml: str, purpose: str
    ) -> tuple[str, str]:
        record = attempt.record
        opened, measured = self._ready(attempt)
        disks = expected_disks(self._p.root, record)
        volumes = self._volumes_of(record, xml, {one.path for one in disks})
        facts = Facts(
            instance=record.instance,
            purpose=purpose,
            disks=disks,
            volumes=volumes,
            policies=(
                measured.manifest.launch_policy,
                opened.payload.launch_policy,
            ),
            user_data_digest=record.user_data_digest,
            console_log=self._p.root.disk(record.instance, CONSOLE_LOG),
            emulators=tuple(self._conf.emulators),
            firmwares=tuple(self._conf.firmwares),
            tpm=tpm_secret(record),
        )
        audit = self._admitted(attempt, opened, xml, facts)
        keys = secret_keys(record, opened)
        if volumes:
            # a release of its own, once the guest is to start
            keys |= self._volume_keys(record, volumes)[0]
        self._p.secrets.define(record.instance, keys, facts.tpm)
        attempt.stage = Stage.STARTING
        return GRANTED, f"{audit}; key server: {opened.payload.audit}"

    def _admitted(
        self, attempt: Attempt, opened: Opened, xml: str, facts: Facts
    ) -> str:
        """The decision, about a saved guest as well, and its record, whose
        number it returns."""
        record = attempt.record
        self._admit(xml, facts)
        if self._p.libvirt is not None:
            saved = saved_domain(
                self._p.libvirt,
                self._p.guard.save_dir,
                record.instance,
                xml,
            )
            if saved is not None:
                self._admit(saved, facts)
        attempt.domain_digest = admit_module.domain_digest(xml)
        audit = self._p.journal.write(
            admit_module.PASSED,
            record.instance,
            purpose=facts.purpose,
            domain=attempt.domain_digest,
            request=opened.request.digest().hex(),
            kms_audit=opened.payload.audit,
        )
        # before any secret is where a guest could start with it
        self._p.leases.begin(record, str(attempt.url.origin), opened)
        return audit

    @staticmethod
    def _admit(xml: str, facts: Facts) -> None:
        verdict = admit(xml, facts)
        for event in verdict.events[1:]:
            LOG.warning("%s %s %s", event.id, facts.instance, event.detail)
        verdict.require()

    def _measured(self, attempt: Attempt, opened: Opened) -> Measured:
        record = attempt.record
        if not any(disk.base for disk in record.disks):
            attempt.measured = without_base(
                opened.payload, record.manifest, opened.request
            )
            return attempt.measured
        with self._p.bases.base(record.image) as hashed:
            measured = attempt.measured
            # what was decided on this very payload about this very content
            # would be decided again
            if measured is None or (hashed.size, hashed.sha256) != (
                measured.manifest.disk_size,
                measured.manifest.disk_sha256,
            ):
                measured = self._measure(attempt, opened, hashed)
            return measured

    def _arrived_running(self, instance: str) -> None:
        """A live migration is over: its disks are those of a guest."""
        try:
            record = self._p.store.instance(instance)
        except (NotFound, InputError):
            return
        if record.incoming:
            self._p.store.save_instance(replace(record, incoming=False))

    def started(self, instance: str, ok: bool) -> None:
        """Secrets go; where the guest runs, its report is made."""
        with self._attempts.own(instance):
            self._p.secrets.drop(instance)
            self._p.leases.started(instance)
            attempt = self._attempts.drop(instance)
            if attempt is not None:
                self._p.bases.leave(attempt.record.image, instance)
            if not ok:
                self._p.journal.write(
                    EVENT + ".failed", instance, durable=False
                )
                return
            self._arrived_running(instance)
            if (
                attempt is None
                or attempt.stage is not Stage.STARTING
                or attempt.measured is None
            ):
                # the guest runs, so it is too late to refuse: an agent that
                # restarted meanwhile, or a caller that skipped the gate and
                # then had no secrets
                self._p.journal.write(EVENT + ".unknown", instance)
                return
            self._p.journal.write(
                STARTED,
                instance,
                durable=False,
                domain=attempt.domain_digest,
            )
            self._p.reporter.submit(vm_claims(attempt, int(self._p.clock())))
