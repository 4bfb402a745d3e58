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
"""copy, end, sweep: what a snapshot and a flattening have in common.

Whose keys: those of a release for this very purpose, by the agent's own
record of the instance, which must open the instance's own disk.  What the
cloud's metadata says of key servers meanwhile is not looked at.
"""

import logging
import os
from typing import Any

from mh_core.errors import Conflict, Denied, MHError, NotFound, Unavailable
from mh_core.manifest import claimed_driver
from mh_core.secret import Secret
from mh_nova.agent.attempt import Attempt, Opened, Stage
from mh_nova.agent.blockcopy import BlockCopy
from mh_nova.agent.facts import base_path
from mh_nova.agent.jobs import PATIENCE, SNAPSHOT, Job, Jobs
from mh_nova.agent.keys import key_request
from mh_nova.agent.measure import Measured, without_base
from mh_nova.agent.parts import Parts
from mh_nova.agent.reason import reason
from mh_nova.agent.store import DiskRecord
from mh_nova.agent.tool import Layer, convert
from mh_nova.agent.work import Work

LOG = logging.getLogger(__name__)
ROOT = "disk"


class Copying(Work):
    """The verbs around a copy of an instance's disk."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._jobs = Jobs(parts.root)

    def _block_copy(self) -> BlockCopy:
        """:raises Unavailable: ``agent.libvirt``."""
        if self._p.libvirt is None:
            raise Unavailable("agent.libvirt", "no libvirt is used")
        return BlockCopy(self._p.libvirt, self._p.secrets)

    def _granted(
        self, instance: str, purpose: str
    ) -> tuple[Attempt, Opened, Measured]:
        """A release for this purpose, whose keys open the instance's disk.

        :raises MHError: it is recorded.
        """
        self._p.guard.require()
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
        try:
            opened = self._keys.open(attempt)
            for disk in record.disks:
                base = base_path(self._p.root, record, disk)
                self._p.overlays.require(instance, disk, base)
                self._p.overlays.unlocks(
                    instance,
                    disk.name,
                    opened.payload.overlay_keys[disk.name],
                )
            measured = self._of_base(attempt, opened)
            policies = (
                measured.manifest.launch_policy,
                opened.payload.launch_policy,
            )
            if purpose == "snapshot" and not all(
                policy.snapshots for policy in policies
            ):
                raise Denied(
                    "agent.snapshot.policy",
                    "the image's launch policy does not allow snapshots",
                )
        except MHError as exc:
            self._refused(attempt, exc)
            raise
        return attempt, opened, measured

    def _of_base(self, attempt: Attempt, opened: Opened) -> Measured:
        """The manifest that holds, and the base opens with the key."""
        record = attempt.record
        if not any(disk.base for disk in record.disks):
            return without_base(
                opened.payload, record.manifest, opened.request
            )
        with self._p.bases.base(record.image) as hashed:
            return self._measure(attempt, opened, hashed)

    def _convert(
        self, job: Job, attempt: Attempt, opened: Opened, key: Secret
    ) -> None:
        """The instance's chain into the job's file, with qemu-img.

        :raises MHError: ``agent.tool.*``, ``agent.path.*``.
        """
        record = attempt.record
        source = root_disk(attempt)
        fds: list[int] = []
        try:
            fds.append(self._p.root.open(job.instance, ROOT))
            fds.append(self._p.root.open(job.instance, job.name, os.O_RDWR))
            top = Layer(fds[0], opened.payload.overlay_keys[ROOT])
            target = Layer(fds[1], key)
            if not source.base:
                convert(top, None, target, job.cancelled)
            else:
                with self._p.bases.base(record.image) as hashed:
                    base = Layer(
                        hashed.fd,
                        opened.payload.dek,
                        claimed_driver(record.manifest),
                    )
                    convert(top, base, target, job.cancelled)
            os.fsync(fds[1])
        except OSError as exc:
            raise Denied(
                "agent.copy.write",
                f"the copy cannot be written: {reason(exc)}",
            ) from exc
        finally:
            for fd in fds:
                os.close(fd)

    def copy(self, instance: str) -> dict[str, Any]:
        """How the instance's copy goes; waits a moment for its end.

        :raises MHError: why there is none.
        """
        job = self._jobs.get(instance)
        try:
            made = job.future.result(PATIENCE)
        except TimeoutError:
            return {"done": False, "image": {}}
        if made is None:
            return {"done": True, "image": {}}
        return {
            "done": True,
            "image": {
                "key_id": made.claims.key_id,
                "key_url": f"{made.url.origin}/v1/keys/{made.claims.key_id}",
                "manifest": made.manifest,
                "size": made.size,
                "virtual_size": made.virtual_size,
                "sha512": made.sha512,
            },
        }

    def end_copy(self, instance: str) -> None:
        """Clear the instance's copy away, whatever became of it."""
        self._jobs.end(instance)

    def sweep(self) -> None:
        """nova-compute, or the agent, begins anew: nobody waits for copies."""
        self._jobs.end_all()
        for instance, name in self._jobs.leftovers():
            LOG.warning("agent.copy.left: %s: %s removed", instance, name)
            if self._p.libvirt is not None and name.startswith(SNAPSHOT):
                self._block_copy().abandon(
                    instance, self._p.root.disk(instance, ROOT)
                )
            self._jobs.unlink(instance, name)


def root_disk(attempt: Attempt) -> DiskRecord:
    """:raises NotFound: ``agent.overlay.missing``."""
    for disk in attempt.record.disks:
        if disk.name == ROOT:
            return disk
    raise NotFound("agent.overlay.missing", "the instance has no root disk")
