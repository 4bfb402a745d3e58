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
"""Rescue: another image is started beside the instance's own disk.

The rescue image has a record, a key and a manifest of its own; the
instance's record stays what it is. Steps before anything is made, with the
id each refuses by:

1. the instance's own key is released for the purpose ``rescue``
   (``rescue-plain`` for an image in the clear), so its release policy has
   the last word (``agent.kms.refused``);
2. the rescue image's manifest is signed by a key that the *instance's* key
   server names: whoever else signs images cannot read this disk
   (``agent.rescue.stranger``);
3. the rescue image's own key is released to this host, and the image is the
   one its manifest describes (as at any launch).

At the start both keys are released again unless they are fresh, both
images' launch policies hold, and the admit decision sees the disks of both.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mh_core import manifest as manifest_module
from mh_core.errors import (
    Denied,
    InputError,
    MHError,
    NotFound,
    VerificationError,
)
from mh_core.launch_policy import LaunchPolicy
from mh_core.manifest import Manifest
from mh_nova.agent.admit import Facts
from mh_nova.agent.attempt import Attempt, Attempts, Opened, Stage
from mh_nova.agent.drive import Driving
from mh_nova.agent.facts import expected_disks, secret_keys
from mh_nova.agent.make import Making
from mh_nova.agent.measure import Measured
from mh_nova.agent.parts import Parts
from mh_nova.agent.paths import CONSOLE_LOG
from mh_nova.agent.start import GRANTED, Starting
from mh_nova.agent.store import InstanceRecord, Store

EVENT = "agent.rescue"
RESCUE = "rescue"
PLAIN = "rescue-plain"
DISK = "disk.rescue"
DRIVE = "disk.config.rescue"


class _Side(Making, Starting, Driving):
    """The rescue images' records and attempts, apart from the instances'."""

    def attempt(self, instance: str) -> Attempt:
        return self._attempt_to_start(instance, RESCUE)

    def ready(self, attempt: Attempt) -> tuple[Opened, Measured]:
        return self._ready(attempt)

    def record(self, instance: str) -> InstanceRecord | None:
        try:
            return self._p.store.instance(instance)
        except NotFound:
            return None

    def drop(self, instance: str) -> None:
        """What is under way; the record stays."""
        self._give_up(instance)

    def forget(self, instance: str) -> None:
        self._give_up(instance)
        self._p.store.drop_instance(instance)

    @property
    def attempts(self) -> Attempts:
        return self._attempts

    def stop(self) -> None:
        self._keys.stop()

    def expire(self) -> None:
        self._attempts.expire()


class Rescuing(Making, Starting, Driving):
    """The verbs of a rescue; other starts are left to :class:`Starting`."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._side = _Side(
            dataclasses.replace(
                parts, store=Store(parts.store.root / "rescue")
            )
        )

    def prepare_rescue(self, record: InstanceRecord, ticket: str) -> None:
        """As ``prepare``, for the rescue image of an instance that is
        there.

        :raises NotFound: ``agent.record.unknown``.
        """
        with self._attempts.own(record.instance):
            # of an instance of ours, in the same project
            known = self._p.store.instance(record.instance)
            if known.project != record.project:
                raise Denied(EVENT + ".project", "another project's instance")
            self._side.prepare(record, RESCUE, ticket)

    def make_rescue(
        self, instance: str, downloaded: bool
    ) -> list[dict[str, Any]]:
        """The steps in the module's list, then the rescue disk.

        :returns: the rescue image's disks, as ``disks``.
        """
        with self._attempts.own(instance):
            attempt = self._allowed(instance, RESCUE)
            try:
                record = self._side.record(instance)
                if record is None:
                    raise NotFound(
                        EVENT + ".not-prepared", "no rescue was prepared"
                    )
                self._signed_by_own(attempt, record)
                return self._side.make(instance, downloaded)
            except MHError as exc:
                self._end(attempt, exc)
                raise

    def allow_plain(self, instance: str) -> None:
        """Step 1 alone, for a rescue image in the clear.

        :raises MHError: ``agent.kms.refused`` and the like.
        """
        with self._attempts.own(instance):
            self._side.forget(instance)
            self._allowed(instance, PLAIN)

    def end_rescue(self, instance: str) -> None:
        """The rescue that was allowed will not start, or has failed."""
        with self._attempts.own(instance):
            attempt = self._attempts.get(instance)
            if attempt is not None:
                if attempt.request.purpose not in (RESCUE, PLAIN):
                    # another start, whose secrets stay, and which ends it
                    return
                self._give_up(instance)
            self._side.forget(instance)
            self._p.journal.write(EVENT + ".ended", instance, durable=False)

    def _allowed(self, instance: str, purpose: str) -> Attempt:
        """Step 1."""
        attempt = self._attempt_to_start(instance, purpose)
        try:
            self._p.guard.require()
            opened = attempt.opened
            if opened is None or not opened.fresh():
                opened = self._keys.open(attempt)
            # the guest runs, and from now on by this release's lease
            self._p.leases.begin(
                attempt.record, str(attempt.url.origin), opened
            )
        except MHError as exc:
            self._end(attempt, exc)
            raise
        return attempt

    def _end(self, attempt: Attempt, error: MHError) -> None:
        """Refused: nothing of the rescue stays."""
        instance = attempt.record.instance
        try:
            self._refused(attempt, error)
        finally:
            self._give_up(instance)
            self._side.forget(instance)

    @staticmethod
    def _signed_by_own(attempt: Attempt, rescue: InstanceRecord) -> None:
        """Step 2."""
        opened = attempt.opened
        keys = () if opened is None else opened.payload.manifest_keys
        try:
            Manifest.verify(rescue.manifest, keys)
        except (InputError, VerificationError) as exc:
            raise Denied(
                EVENT + ".stranger",
                "the rescue image is not signed by a key that the "
                f"instance's key server names ({exc.event})",
            ) from exc

    # -- the start -------------------------------------------------------

    def _start(
        self, attempt: Attempt, xml: str, purpose: str
    ) -> tuple[str, str]:
        if purpose == RESCUE:
            return self._start_rescue(attempt, xml)
        if purpose == PLAIN:
            return self._start_plain(attempt, xml)
        return super()._start(attempt, xml, purpose)

    def _facts(
        self,
        record: InstanceRecord,
        purpose: str,
        policies: tuple[LaunchPolicy, ...],
    ) -> Facts:
        return Facts(
            instance=record.instance,
            purpose=purpose,
            disks=expected_disks(self._p.root, record),
            policies=policies,
            user_data_digest=record.user_data_digest,
            console_log=self._p.root.disk(record.instance, CONSOLE_LOG),
            emulators=tuple(self._conf.emulators),
            firmwares=tuple(self._conf.firmwares),
            root=DISK,
        )

    def _start_rescue(self, attempt: Attempt, xml: str) -> tuple[str, str]:
        instance = attempt.record.instance
        other = self._side.attempt(instance)
        try:
            opened, measured = self._ready(attempt)
            self._signed_by_own(attempt, other.record)
            more, rescue = self._side.ready(other)
            facts = self._facts(
                attempt.record,
                RESCUE,
                (*_policies(opened, measured), *_policies(more, rescue)),
            )
            facts = dataclasses.replace(
                facts,
                disks=(
                    *facts.disks,
                    *expected_disks(self._p.root, other.record),
                ),
            )
            audit = self._admitted(attempt, opened, xml, facts)
        except MHError:
            self._side.drop(instance)
            raise
        # the owner sees in the report what the disk was opened beside
        measured.verdicts[RESCUE] = manifest_module.digest(
            other.record.manifest
        )
        self._p.secrets.define(
            instance,
            secret_keys(attempt.record, opened)
            | secret_keys(other.record, more),
        )
        attempt.stage = other.stage = Stage.STARTING
        return GRANTED, f"{audit}; key server: {opened.payload.audit}"

    def _start_plain(self, attempt: Attempt, xml: str) -> tuple[str, str]:
        record = attempt.record
        opened, measured = self._ready(attempt)
        facts = dataclasses.replace(
            self._facts(record, PLAIN, _policies(opened, measured)),
            plain=self._p.root.disk(record.instance, DISK),
        )
        audit = self._admitted(attempt, opened, xml, facts)
        measured.verdicts[RESCUE] = "plain"
        self._p.secrets.define(record.instance, secret_keys(record, opened))
        attempt.stage = Stage.STARTING
        return GRANTED, f"{audit}; key server: {opened.payload.audit}"

    def drive(
        self,
        instance: str,
        name: str,
        files: Mapping[str, bytes],
        also: tuple[LaunchPolicy, ...] = (),
    ) -> None:
        if name != DRIVE:
            super().drive(instance, name, files, also)
            return
        with self._attempts.own(instance):
            # the instance's own policies hold for a rescue, too
            attempt, opened, policies = self._starting(instance, "disk")
            if attempt.request.purpose != RESCUE:
                raise Denied(
                    "agent.config-drive.policy",
                    "a plain rescue image gets no config drive",
                )
            self._side.drive(instance, name, files, policies)

    def started(self, instance: str, ok: bool) -> None:
        """A start that is no rescue ends the rescue before it."""
        with self._attempts.own(instance):
            attempt = self._attempts.get(instance)
            purpose = "" if attempt is None else attempt.request.purpose
            super().started(instance, ok)
            if ok and purpose not in ("", RESCUE, PLAIN):
                self._side.forget(instance)
            else:
                self._side.drop(instance)

    def disks(self, instance: str) -> list[dict[str, Any]]:
        """With those of a rescue image, where there is one."""
        found = super().disks(instance)
        if self._side.record(instance) is not None:
            found += self._side.disks(instance)
        return found


def _policies(
    opened: Opened, measured: Measured
) -> tuple[LaunchPolicy, LaunchPolicy]:
    return measured.manifest.launch_policy, opened.payload.launch_policy
