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
"""snapshot-check, snapshot, register: a disk becomes an image."""

import hashlib
import logging
import os
import threading
import time
import uuid

from mh_core import jose
from mh_core import manifest as manifests
from mh_core.errors import Conflict, Denied, InputError, MHError, Unavailable
from mh_core.manifest import Manifest
from mh_core.secret import Secret
from mh_core.snapshot import SnapshotClaims, jwe_digest, key_apv
from mh_nova.agent.attempt import Attempt, Opened
from mh_nova.agent.bases import holds, lease
from mh_nova.agent.copies import ROOT, Copying, root_disk
from mh_nova.agent.jobs import SNAPSHOT, Job, Snapshot
from mh_nova.agent.measure import Measured
from mh_nova.agent.store import DiskRecord

LOG = logging.getLogger(__name__)
EVENT = "agent.snapshot"
_CHUNK = 1024 * 1024
#: Seconds that a beginning nova-compute waits for keys to be registered.
_PATIENCE = 5.0


class Snapshotting(Copying):
    """The verbs of a snapshot."""

    def snapshot_check(self, instance: str) -> None:
        """Would a snapshot be allowed now?  Nothing is made.

        :raises MHError: as :meth:`snapshot`.
        """
        with self._attempts.own(instance):
            self._granted(instance, "snapshot")

    def snapshot(self, instance: str, image: str) -> None:
        """Begin a snapshot.

        1. the key server releases the instance's keys for ``snapshot``, and
           they open its own disk;
        2. the launch policies, manifest's and release's, allow it;
        3. in the background: a new key, an empty image under it, filled by
           the guest's own QEMU, or, where none runs, by qemu-img;
        4. the image is what it should be, and its ciphertext is hashed;
        5. a manifest, signed by a key that lives for this signature;
        6. the new key is wrapped to the transport key of that release, and
           forgotten.

        :param image: Glance id of the image to be.
        :raises MHError: of the key server; ``agent.release.*``,
            ``agent.measure.*``, ``agent.header.*``,
            ``agent.snapshot.policy``, ``agent.copy.busy``.
        """
        with self._attempts.own(instance):
            self._jobs.free(instance)
            # 1, 2
            attempt, opened, measured = self._granted(instance, "snapshot")
            running = self._block_copy().running(instance)
            self._p.journal.write(
                EVENT + ".begun",
                instance,
                image=image,
                running=running,
                request=attempt.request.digest().hex(),
                kms_audit=opened.payload.audit,
            )
            # 3 to 6
            self._jobs.begin(
                instance,
                SNAPSHOT + image,
                lambda job: self._snapshot(
                    job, image, attempt, opened, measured, running
                ),
            )

    def _snapshot(
        self,
        job: Job,
        image: str,
        attempt: Attempt,
        opened: Opened,
        measured: Measured,
        running: bool,
    ) -> Snapshot:
        instance = job.instance
        source = root_disk(attempt)
        target = DiskRecord(job.name, source.size, str(uuid.uuid4()), False)
        key = Secret(os.urandom(32))
        try:
            # 3
            self._p.overlays.write(instance, target, key, None)
            if running:
                self._block_copy().run(
                    instance,
                    self._p.root.disk(instance, ROOT),
                    self._p.root.disk(instance, job.name),
                    key,
                    job.cancelled,
                )
            else:
                self._convert(job, attempt, opened, key)
            # 4
            self._p.overlays.require(instance, target, None)
            self._p.overlays.unlocks(instance, job.name, key)
            return self._sealed(job, image, attempt, opened, measured, key)
        except MHError as exc:
            self._jobs.unlink(instance, job.name)
            self._refused(attempt, exc)
            raise

    def _sealed(
        self,
        job: Job,
        image: str,
        attempt: Attempt,
        opened: Opened,
        measured: Measured,
        key: Secret,
    ) -> Snapshot:
        """Steps 4 to 6, on a file that nobody can write any more."""
        record, payload = attempt.record, opened.payload
        fd = self._p.root.open(job.instance, job.name)
        try:
            os.fchown(fd, os.geteuid(), os.getegid())
            os.fchmod(fd, 0o444)
            lease(fd)
            size, sha256, sha512 = _digests(fd, job)
            if not holds(fd):
                raise Denied(
                    EVENT + ".writer", "the file was written to meanwhile"
                )
            # 5
            manifest = Manifest(
                image=image,
                key_id=str(uuid.uuid4()),
                format="qcow2+luks",
                size=size,
                virtual_size=root_disk(attempt).size,
                sha256=sha256,
                sha512=sha512,
                launch_policy=measured.manifest.launch_policy,
            )
            signer = jose.generate_key()
            token = manifest.sign(signer)
            # 6
            jwe = jose.wrap(
                key.reveal(),
                payload.transport_jwk,
                key_apv(manifest.key_id, payload.audit),
            )
            claims = SnapshotClaims(
                key_id=manifest.key_id,
                image=image,
                manifest_digest=manifests.digest(token),
                signer=jose.public(signer),
                jwe_digest=jwe_digest(jwe),
                source_key_id=record.key_id,
                source_image=record.image,
                source_manifest=opened.request.manifest_digest,
                kms_origin=payload.kms_origin,
                instance=record.instance,
                project=record.project,
                host=record.host,
                release=payload.audit,
                taken_at=int(self._p.clock()),
            )
            self._p.journal.write(
                EVENT + ".measured",
                record.instance,
                image=image,
                key_id=claims.key_id,
                sha256=sha256,
                size=size,
            )
        except (OSError, InputError) as exc:
            os.close(fd)
            raise Denied(
                EVENT + ".measure", "the copy cannot be measured"
            ) from exc
        except MHError:
            os.close(fd)
            raise
        return Snapshot(
            fd,
            attempt.url,
            claims,
            token,
            jwe,
            size,
            manifest.virtual_size,
            sha512,
        )

    def storing(self, instance: str) -> None:
        """The caller knows of the image, and stores it from here on: should
        it not be heard of again, the key is owed to the key server.

        :raises Conflict: ``agent.snapshot.not-ready``.
        """
        job, _made = self._finished(instance)
        job.owed = True

    def _finished(self, instance: str) -> tuple[Job, Snapshot]:
        job = self._jobs.get(instance)
        made = job.future.result() if job.future.done() else None
        if made is None:
            raise Conflict(EVENT + ".not-ready", "no snapshot is ready")
        return job, made

    def register(self, instance: str) -> None:
        """The image is stored: bring its key to the tenant's key server.

        :raises Conflict: ``agent.snapshot.not-ready``.
        :raises MHError: of the key server, ``agent.kms.*``.
        """
        job, made = self._finished(instance)
        if not holds(made.fd):
            raise Denied(
                EVENT + ".writer", "the file was written to meanwhile"
            )
        self._register(job, made)

    def sweep(self) -> None:
        """nova-compute began anew. What its predecessor may have stored is
        registered all the same: an image without a key opens for nobody,
        and looks like one that does.  A key without an image does no harm.
        """
        threads = [
            threading.Thread(
                target=self._settle, args=owed, name="settle", daemon=True
            )
            for owed in self._jobs.owed()
            if holds(owed[1].fd)
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + _PATIENCE
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        super().sweep()

    def _settle(self, job: Job, made: Snapshot) -> None:
        try:
            self._register(job, made)
        except MHError as exc:
            LOG.warning("%s.unregistered: %s: %s", EVENT, job.instance, exc)

    def _register(self, job: Job, made: Snapshot) -> None:
        """:raises MHError: of the key server, ``agent.kms.*``."""
        self._p.guard.require()
        try:
            self._upload(made)
        except Unavailable:
            # it may have been the answer that was lost
            self._upload(made)
        job.owed = False
        self._p.journal.write(
            EVENT + ".registered",
            job.instance,
            image=made.claims.image,
            key_id=made.claims.key_id,
        )

    def _upload(self, made: Snapshot) -> None:
        self._p.kms.upload(made.url, made.claims, made.manifest, made.jwe)


def _digests(fd: int, job: Job) -> tuple[int, str, str]:
    """Size, SHA-256 and SHA-512 (hex) of a file.

    :raises Denied: ``agent.snapshot.cancelled``.
    """
    first, second, size = hashlib.sha256(), hashlib.sha512(), 0
    while data := os.pread(fd, _CHUNK, size):
        if job.cancelled.is_set():
            raise Denied(EVENT + ".cancelled", "the snapshot was given up")
        first.update(data)
        second.update(data)
        size += len(data)
    return size, first.hexdigest(), second.hexdigest()
