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
"""flatten: a disk that needs its base no longer."""

import os
from dataclasses import replace

from mh_core.errors import Conflict, Denied, MHError
from mh_nova.agent.attempt import Attempt, Opened
from mh_nova.agent.copies import ROOT, Copying, root_disk
from mh_nova.agent.jobs import FLATTENED, Job
from mh_nova.agent.store import DiskRecord

EVENT = "agent.flatten"


class Flattening(Copying):
    """The verb that unshelve needs."""

    def flatten(self, instance: str) -> None:
        """Begin to make the root disk one that has no base.

        The image it was made of is about to be deleted. The new file has
        the same LUKS uuid, and so the same key, and another master key.

        :raises MHError: of the key server; as :meth:`snapshot`.
        """
        with self._attempts.own(instance):
            self._jobs.free(instance)
            if self._block_copy().running(instance):
                raise Conflict(EVENT + ".running", "the guest runs")
            attempt, opened, _measured = self._granted(instance, "flatten")
            self._jobs.begin(
                instance,
                FLATTENED,
                lambda job: self._flatten(job, attempt, opened),
            )

    def _flatten(self, job: Job, attempt: Attempt, opened: Opened) -> None:
        instance, source = job.instance, root_disk(attempt)
        if not source.base:
            return
        flat = replace(source, base=False)
        target = replace(flat, name=job.name)
        key = opened.payload.overlay_keys[ROOT]
        try:
            self._p.overlays.write(instance, target, key, None)
            self._convert(job, attempt, opened, key)
            self._p.overlays.require(instance, target, None)
            self._p.overlays.unlocks(instance, job.name, key)
            with self._attempts.own(instance):
                self._replace_disk(job, flat)
        except MHError as exc:
            self._jobs.unlink(instance, job.name)
            self._refused(attempt, exc)
            raise
        self._p.journal.write(
            EVENT + ".done",
            instance,
            request=opened.request.digest().hex(),
            kms_audit=opened.payload.audit,
        )

    def _replace_disk(self, job: Job, flat: DiskRecord) -> None:
        """With the instance's turn: file and record, and the launch that is
        under way, know of no base from here on."""
        instance = job.instance
        record = self._p.store.instance(instance)
        record = replace(
            record,
            disks=tuple(
                flat if disk.name == ROOT else disk for disk in record.disks
            ),
        )
        self._p.store.plan_instance(record)
        try:
            with self._p.root.directory(instance) as directory:
                os.rename(
                    job.name, ROOT, src_dir_fd=directory, dst_dir_fd=directory
                )
                os.fsync(directory)
        except OSError as exc:
            raise Denied(
                "agent.copy.write", "the copy cannot be put in place"
            ) from exc
        self._p.store.save_instance(record)
        attempt = self._attempts.get(instance)
        if attempt is not None:
            attempt.record = record
