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
"""prepare, make, disks: from an image to the disks of an instance."""

import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mh_core.config_drive import swap_header
from mh_core.errors import Conflict, Denied, InputError, MHError, NotFound
from mh_nova.agent.admit import ROOT
from mh_nova.agent.attempt import Attempt, Opened, Stage, Wrapped
from mh_nova.agent.facts import (
    base_path,
    disk_answer,
)
from mh_nova.agent.keys import key_request
from mh_nova.agent.kms import KeyUrl
from mh_nova.agent.measure import Measured, verify_manifest, without_base
from mh_nova.agent.measurers.base import HashedFile
from mh_nova.agent.reason import named
from mh_nova.agent.store import DiskRecord, InstanceRecord
from mh_nova.agent.unpack import unpacked
from mh_nova.agent.work import EVENT, Work

SWAP = "disk.swap"
#: Purpose of a key request for disks that a running guest is moved to.
INCOMING = "migrate-in"


class Making(Work):
    """The verbs before a start."""

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
            self._here(record)
            url = self._keys.check_url(record)
            before = self._before(instance)
            known = {
                (disk.name, disk.luks_uuid): disk.sha256
                for disk in (before.disks if before is not None else ())
            }
            there = [self._uuid_of(record, disk) for disk in record.disks]
            # an instance whose disks exist can still be started where
            # this attempt, say to fetch its base again, fails
            made = all(
                found or disk.drive
                for disk, found in zip(record.disks, there, strict=True)
            )
            record = replace(
                record,
                compat=url.compat,
                disks=tuple(
                    replace(
                        disk,
                        luks_uuid=found or disk.luks_uuid,
                        sha256=known.get((disk.name, found), ""),
                    )
                    for disk, found in zip(record.disks, there, strict=True)
                ),
                made=made,
            )
            # a root disk that came by a cold migration is there already
            incoming = purpose == INCOMING and not self._has_root(record)
            record = replace(
                record, incoming=incoming or _awaited(before, record)
            )
            record, key = self._asked(record, url, purpose, ticket, any(there))
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
            attempt.key = key or self._keys.ask(attempt)
            self._attempts.put(attempt)

    def _here(self, record: InstanceRecord) -> None:
        """:raises Denied: ``agent.prepare.host``."""
        if record.host != self._conf.host:
            raise Denied("agent.prepare.host", "prepared for another host")

    def _asked(
        self,
        record: InstanceRecord,
        url: KeyUrl,
        purpose: str,
        ticket: str,
        there: bool,
    ) -> tuple[InstanceRecord, "Future[Wrapped] | None"]:
        """What was released ahead for this very launch, if anything was.

        :param there: there are disks, and what they are called stands.
        :returns: the record, with the disks that the release is for; it.
        """
        ahead = self._ahead.take(record.instance)
        if ahead is None:
            return record, None
        names = {disk.name: disk.luks_uuid for disk in ahead.record.disks}
        same = record
        if not there:
            same = replace(
                record,
                disks=tuple(
                    replace(
                        disk, luks_uuid=names.get(disk.name, disk.luks_uuid)
                    )
                    for disk in record.disks
                ),
            )
        if key_request(same, url, purpose, ticket) != ahead.request:
            return record, None
        return same, ahead.key

    def _before(self, instance: str) -> InstanceRecord | None:
        """What is on record: the digests of disks that are only read, and
        whether a guest is still to come."""
        try:
            return self._p.store.instance(instance)
        except (NotFound, InputError):
            return None

    def _uuid_of(self, record: InstanceRecord, disk: DiskRecord) -> str:
        """LUKS uuid of a disk that is there; empty where it is to come."""
        found = self._p.overlays.inspect(
            record.instance, disk.name, base_path(self._p.root, record, disk)
        )
        return "" if found is None else found.luks_uuid

    def _has_root(self, record: InstanceRecord) -> bool:
        return any(
            self._uuid_of(record, disk)
            for disk in record.disks
            if disk.name == ROOT
        )

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
                    with named():
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
        if any(disk.base for disk in record.disks):
            opened, measured = self._make_base(attempt)
        elif record.incoming or self._has_root(record):
            # a disk of an instance that was unshelved: it came from
            # another host, or its content will, with the guest itself
            opened = self._keys.open(attempt)
            measured = without_base(
                opened.payload, record.manifest, opened.request
            )
            attempt.measured = measured
        else:
            raise Denied(
                "agent.make.base", "a new disk lies over its image's base"
            )
        self._p.bases.leave(record.image, record.instance)
        # the key server holds this host to be the instance's from now on
        self._p.leases.begin(record, str(attempt.url.origin), opened)
        self._drives_allowed(record, opened, measured)
        made = tuple(
            self._make_disk(record, disk, opened, measured)
            for disk in record.disks
        )
        attempt.record = replace(record, disks=made, made=True)
        self._p.store.save_instance(attempt.record)
        attempt.stage = Stage.MADE

    def _make_base(self, attempt: Attempt) -> tuple[Opened, Measured]:
        """The measuring decision, and the base in its place."""
        record = attempt.record
        with self._p.bases.candidate(
            record.image, self._conf.measure_timeout
        ) as hashed:
            # not before: while a hash takes its time, what is kept is the JWE
            opened = self._keys.open(attempt)
            with self._disk(attempt, opened, hashed) as base:
                measured = self._measure(attempt, opened, base)
                self._p.bases.adopt(record.image, base)
        return opened, measured

    @contextmanager
    def _disk(
        self, attempt: Attempt, opened: Opened, hashed: HashedFile
    ) -> Iterator[HashedFile]:
        """What came, or the disk in it where that is an OVA.

        :raises Denied: ``agent.measure.*``, ``agent.unpack.*``.
        """
        record = attempt.record
        manifest = verify_manifest(
            opened.payload, record.manifest, opened.request
        )
        if manifest.container is None or (hashed.size, hashed.sha256) == (
            # the base of an earlier launch
            manifest.disk_size,
            manifest.disk_sha256,
        ):
            yield hashed
            return
        with unpacked(
            self._p.root, record.image, manifest, attempt.url, hashed
        ) as disk:
            yield disk

    def _make_disk(
        self,
        record: InstanceRecord,
        disk: DiskRecord,
        opened: Opened,
        measured: Measured,
    ) -> DiskRecord:
        """
        :returns: as it is to be on record.
        :raises NotFound: ``agent.config-drive.missing``.
        :raises Denied: ``agent.header.*``, ``agent.overlay.*``.
        """
        if disk.drive and not disk.size and not record.incoming:
            # made at the start, by the verb drive
            return disk
        key = opened.payload.overlay_keys[disk.name]
        base = base_path(self._p.root, record, disk)
        if disk.base and disk.size < measured.manifest.virtual_size:
            raise Denied(
                "agent.overlay.size",
                f"the flavor's disk ({disk.size} bytes) is smaller than the "
                f"image ({measured.manifest.virtual_size})",
            )
        if self._p.overlays.inspect(record.instance, disk.name, base) is None:
            if disk.drive:
                raise NotFound(
                    "agent.config-drive.missing",
                    "the config drive did not come with the instance",
                )
            content = b""
            if disk.name == SWAP:
                content = swap_header(disk.size, uuid.uuid4())
            self._p.overlays.write(record.instance, disk, key, base, content)
        else:
            self._p.overlays.require(record.instance, disk, base)
            self._p.overlays.unlocks(record.instance, disk.name, key)
            if disk.drive and not disk.sha256:
                # it came from another host; from now on it stays as it is
                return replace(
                    disk,
                    sha256=self._p.overlays.digest(record.instance, disk.name),
                )
        return disk

    @staticmethod
    def _drives_allowed(
        record: InstanceRecord, opened: Opened, measured: Measured
    ) -> None:
        """Before anything is made; what it holds is decided when it is."""
        policies = (
            measured.manifest.launch_policy,
            opened.payload.launch_policy,
        )
        if any(disk.drive for disk in record.disks) and not all(
            policy.config_drives for policy in policies
        ):
            raise Denied(
                "agent.config-drive.policy",
                "the launch policy allows no config drive",
            )

    def disks(self, instance: str) -> list[dict[str, Any]]:
        """Each disk that exists, or will at the start, and the secrets it
        opens with.

        :raises NotFound: ``agent.record.unknown``.
        :raises Denied: ``agent.header.*``.
        """
        record = self._p.store.instance(instance)
        out = []
        for disk in record.disks:
            base = base_path(self._p.root, record, disk)
            found = self._p.overlays.inspect(instance, disk.name, base)
            if found is None and not disk.drive:
                continue
            out.append(disk_answer(record, disk))
        return out


def awaits(record: InstanceRecord) -> bool:
    """Its blank root disk is for a guest that runs elsewhere: until that is
    here, nothing else starts with it."""
    return record.incoming and not any(disk.base for disk in record.disks)


def _awaited(before: InstanceRecord | None, record: InstanceRecord) -> bool:
    """It is that very disk that is now prepared for something."""
    if before is None or not awaits(before):
        return False
    blank = {disk.luks_uuid for disk in before.disks if disk.name == ROOT}
    return any(disk.luks_uuid in blank for disk in record.disks)
