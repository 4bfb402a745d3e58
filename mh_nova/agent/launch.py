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
"""The launch side: prepare → make → start → started → forget.

Each verb of the socket ends here.  What decides stands elsewhere:
:mod:`.release` (is this the answer to our question), :mod:`.measure` (may
this image run), :mod:`.admit` (may this domain start); this module orders
them, and writes every decision to the audit log before it acts on it.
"""

import logging
import threading
from dataclasses import replace
from typing import Any

from mh_core.errors import Conflict, Denied, MHError
from mh_nova.agent import admit as admit_module
from mh_nova.agent import measure as measure_module
from mh_nova.agent.admit import Facts, admit
from mh_nova.agent.attempt import Attempt, Attempts, Opened, Stage
from mh_nova.agent.facts import (
    base_path,
    config_drive_digest,
    disk_answer,
    expected_disks,
    secret_keys,
    vm_claims,
)
from mh_nova.agent.keys import Keys, key_request
from mh_nova.agent.measure import Measured, measure
from mh_nova.agent.measurers.base import HashedFile
from mh_nova.agent.parts import Parts
from mh_nova.agent.paths import CONFIG_DRIVE, CONSOLE_LOG
from mh_nova.agent.store import DiskRecord, InstanceRecord

LOG = logging.getLogger(__name__)
EVENT = "agent.launch"
STARTED = EVENT + ".started"
GRANTED = "agent.start.granted"
_SWEEP = 5.0


class Launcher:
    """All launches of this host."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._conf = parts.conf.agent
        self._attempts = Attempts()
        self._keys = Keys(
            parts.kms,
            parts.prover,
            # challenge and release, each within the time allowed
            3 * self._conf.timeout + 10,
            parts.clock,
        )
        self._stopped = threading.Event()
        self._sweeper = threading.Thread(
            target=self._sweep, name="sweep", daemon=True
        )

    def start_threads(self) -> None:
        self._sweeper.start()

    def stop(self) -> None:
        self._stopped.set()
        self._keys.stop()
        self._p.bases.close()

    def _sweep(self) -> None:
        while not self._stopped.wait(_SWEEP):
            self._attempts.expire()
            self._p.bases.prune()

    # -- prepare ---------------------------------------------------------

    def prepare(
        self, record: InstanceRecord, purpose: str, ticket: str
    ) -> None:
        """Begin: ask for the key and follow the download, both at once.

        :param record: as nova gave it; the LUKS uuids in it are chosen
            here.
        :raises MHError: ``agent.guard.*``, ``agent.prepare.host``,
            ``agent.kms.key-url|origin``, ``agent.header.*``.
        """
        instance = record.instance
        with self._attempts.own(instance):
            self._give_up(instance)
            self._p.guard.require()
            if record.host != self._conf.host:
                raise Denied("agent.prepare.host", "prepared for another host")
            url = self._keys.check_url(record)
            there = [self._uuid_of(record, disk) for disk in record.disks]
            record = replace(
                record,
                compat=url.compat,
                disks=tuple(
                    replace(disk, luks_uuid=found or disk.luks_uuid)
                    for disk, found in zip(record.disks, there, strict=True)
                ),
                # an instance whose disks exist can still be started where
                # this attempt, say to fetch its base again, fails
                made=all(there),
            )
            self._p.store.save_instance(record)
            attempt = Attempt(
                record, url, key_request(record, url, purpose, ticket)
            )
            self._p.journal.write(
                EVENT + ".prepared",
                instance,
                durable=False,
                request=attempt.request.digest().hex(),
                image=record.image,
                key_id=record.key_id,
            )
            self._p.bases.follow(record.image, instance)
            attempt.key = self._keys.ask(attempt)
            self._attempts.put(attempt)

    def _uuid_of(self, record: InstanceRecord, disk: DiskRecord) -> str:
        """LUKS uuid of a disk that is there; empty where it is to come."""
        found = self._p.overlays.inspect(
            record.instance, disk.name, base_path(self._p.root, record, disk)
        )
        return "" if found is None else found.luks_uuid

    def _give_up(self, instance: str) -> None:
        """End whatever was under way for an instance."""
        self._p.secrets.drop(instance)
        attempt = self._attempts.drop(instance)
        if attempt is not None:
            self._p.bases.leave(attempt.record.image, instance)

    # -- make ------------------------------------------------------------

    def make(self, instance: str, downloaded: bool) -> list[dict[str, Any]]:
        """The measuring decision, then the disks.

        :param downloaded: nova has written the whole image to ``.part``.
        :returns: the answer of :meth:`disks`.
        """
        with self._attempts.own(instance):
            attempt = self._attempts.get(instance)
            if attempt is None:
                if not self._p.store.instance(instance).made:
                    raise Conflict(
                        "agent.make.not-prepared",
                        "the launch was not prepared, or the agent has "
                        "restarted since",
                    )
                return self.disks(instance)
            if downloaded:
                self._p.bases.downloaded(attempt.record.image)
            if attempt.stage is Stage.PREPARED:
                try:
                    self._make(attempt)
                except MHError as exc:
                    try:
                        self._refused(attempt, exc)
                    finally:
                        self._p.bases.reject(attempt.record.image, instance)
                        self._give_up(instance)
                    raise
            return self.disks(instance)

    def _make(self, attempt: Attempt) -> None:
        record = attempt.record
        with self._p.bases.candidate(
            record.image, self._conf.measure_timeout
        ) as hashed:
            # not before: while a hash takes its time, what is kept is the JWE
            opened = self._keys.open(attempt)
            measured = self._measure(attempt, opened, hashed)
            self._p.bases.adopt(record.image, hashed)
        self._p.bases.leave(record.image, record.instance)
        for disk in record.disks:
            self._make_disk(record, disk, opened, measured)
        attempt.record = replace(record, made=True)
        self._p.store.save_instance(attempt.record)
        attempt.stage = Stage.MADE

    def _make_disk(
        self,
        record: InstanceRecord,
        disk: DiskRecord,
        opened: Opened,
        measured: Measured,
    ) -> None:
        key = opened.payload.overlay_keys[disk.name]
        base = base_path(self._p.root, record, disk)
        if disk.base and disk.size < measured.manifest.virtual_size:
            raise Denied(
                "agent.overlay.size",
                f"the flavor's disk ({disk.size} bytes) is smaller than the "
                f"image ({measured.manifest.virtual_size})",
            )
        if self._p.overlays.inspect(record.instance, disk.name, base) is None:
            self._p.overlays.write(record.instance, disk, key, base)
        else:
            self._p.overlays.require(record.instance, disk, base)
            self._p.overlays.unlocks(record.instance, disk.name, key)

    def _measure(
        self, attempt: Attempt, opened: Opened, hashed: HashedFile
    ) -> Measured:
        record = attempt.record
        attempt.measured = measure(
            opened.payload,
            record.manifest,
            opened.request,
            hashed,
            self._p.measurers,
        )
        self._p.journal.write(
            measure_module.PASSED,
            record.instance,
            # the admit record, which follows, is the durable one
            durable=False,
            request=opened.request.digest().hex(),
            sha256=hashed.sha256,
            kms_audit=opened.payload.audit,
        )
        return attempt.measured

    def _refused(self, attempt: Attempt, error: MHError) -> None:
        self._p.journal.write(
            error.event,
            attempt.record.instance,
            error.message,
            request=attempt.request.digest().hex(),
        )

    # -- disks -----------------------------------------------------------

    def disks(self, instance: str) -> list[dict[str, Any]]:
        """Each disk that exists, and the secrets it opens with.

        :raises NotFound: ``agent.record.unknown``.
        :raises Denied: ``agent.header.*``.
        """
        record = self._p.store.instance(instance)
        out = []
        for disk in record.disks:
            base = base_path(self._p.root, record, disk)
            if self._p.overlays.inspect(instance, disk.name, base) is None:
                continue
            out.append(disk_answer(instance, disk))
        return out

    # -- start -----------------------------------------------------------

    def start(self, instance: str, xml: str, purpose: str) -> tuple[str, str]:
        """The admit decision, then the secrets.

        :param xml: the final domain XML.
        :returns: event id and a sentence for the log.
        """
        with self._attempts.own(instance):
            attempt = self._attempt_to_start(instance, purpose)
            try:
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
        record = self._p.store.instance(instance)
        if not record.made:
            raise Conflict(
                "agent.start.not-made", "the instance's disks are not made"
            )
        url = self._keys.check_url(record)
        attempt = Attempt(
            record,
            url,
            key_request(record, url, purpose, ""),
            stage=Stage.MADE,
        )
        self._attempts.put(attempt)
        return attempt

    def _start(
        self, attempt: Attempt, xml: str, purpose: str
    ) -> tuple[str, str]:
        record = attempt.record
        self._p.guard.require()
        for disk in record.disks:
            base = base_path(self._p.root, record, disk)
            self._p.overlays.require(record.instance, disk, base)
        opened = attempt.opened
        if opened is None or not opened.fresh():
            opened = self._keys.open(attempt)
        with self._p.bases.base(record.image) as hashed:
            measured = attempt.measured
            # what was decided on this very payload about this very content
            # would be decided again
            if measured is None or (hashed.size, hashed.sha256) != (
                measured.manifest.size,
                measured.manifest.sha256,
            ):
                measured = self._measure(attempt, opened, hashed)
        facts = Facts(
            instance=record.instance,
            purpose=purpose,
            disks=expected_disks(self._p.root, record),
            policies=(
                measured.manifest.launch_policy,
                opened.payload.launch_policy,
            ),
            config_drive=self._p.root.disk(record.instance, CONFIG_DRIVE),
            config_drive_sha256=config_drive_digest(
                self._p.root, record.instance
            ),
            user_data_digest=record.user_data_digest,
            console_log=self._p.root.disk(record.instance, CONSOLE_LOG),
            emulators=tuple(self._conf.emulators),
        )
        verdict = admit(xml, facts)
        for event in verdict.events[1:]:
            LOG.warning("%s %s %s", event.id, record.instance, event.detail)
        verdict.require()
        attempt.domain_digest = admit_module.domain_digest(xml)
        audit = self._p.journal.write(
            admit_module.PASSED,
            record.instance,
            purpose=purpose,
            domain=attempt.domain_digest,
            request=opened.request.digest().hex(),
            kms_audit=opened.payload.audit,
        )
        self._p.secrets.define(record.instance, secret_keys(record, opened))
        attempt.stage = Stage.STARTING
        return GRANTED, f"{audit}; key server: {opened.payload.audit}"

    # -- afterwards ------------------------------------------------------

    def started(self, instance: str, ok: bool) -> None:
        """Secrets go; where the guest runs, its report is made."""
        with self._attempts.own(instance):
            self._p.secrets.drop(instance)
            attempt = self._attempts.drop(instance)
            if attempt is not None:
                self._p.bases.leave(attempt.record.image, instance)
            if not ok:
                self._p.journal.write(
                    EVENT + ".failed", instance, durable=False
                )
                return
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

    def forget(self, instance: str) -> None:
        """The instance is gone: secrets, record, what is under way."""
        with self._attempts.own(instance):
            self._give_up(instance)
            self._p.store.drop_instance(instance)
            self._p.journal.write(
                EVENT + ".forgotten", instance, durable=False
            )
