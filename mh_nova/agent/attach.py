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
"""attach, attached; and the volumes of every start.

A volume's key is asked for by a request of its own, purpose ``attach``: so
the owner's release policy says whether volumes may be used at all, the
record names them, and a host without a good state gets none.  Steps of an
attachment, with the id each refuses by:

1. the host may carry trusted guests, and the instance is ours
   (``agent.guard.*``, ``agent.record.unknown``);
2. the device is a volume at a path that one may have, blank or with a
   header of ours (``agent.volume.*``);
3. the admit decision about the device (``agent.admit.*``);
4. the key server releases the volume's key to this host, by a quote made
   for this request (``agent.kms.*``, ``agent.release.*``);
5. the key opens the volume; a blank one gets its header
   (``agent.volume.key``, ``agent.volume.write``);
6. the record; then the secret, until ``attached``.

At a start 2, 4 and 5 come after the release for the start, and the admit
decision sees the whole domain; so they do where a running guest comes in, and
there no volume may be blank (``agent.volume.blank``).
"""

import logging

from mh_core import volume
from mh_core.errors import Conflict, Denied, MHError
from mh_core.secret import Secret
from mh_nova.agent import domain_volume
from mh_nova.agent.admit import admit_volume, domain_digest, parse
from mh_nova.agent.attempt import Attempt, Opened
from mh_nova.agent.domain_volume import ExpectedVolume
from mh_nova.agent.keys import volume_request
from mh_nova.agent.reason import named
from mh_nova.agent.store import InstanceRecord
from mh_nova.agent.volumes import Volumes
from mh_nova.agent.work import Work

LOG = logging.getLogger(__name__)
EVENT = "agent.attach"
GRANTED = EVENT + ".granted"
DONE = EVENT + ".done"
FAILED = EVENT + ".failed"
MADE = "agent.volume.made"


class Attaching(Work):
    """The verbs around an attachment."""

    def attach(self, instance: str, xml: str) -> tuple[str, str]:
        """
        :param xml: the ``<disk>`` that is plugged in next.
        :returns: event id and a sentence for the log.
        :raises MHError: by the steps in the module's list.
        """
        with self._attempts.own(instance):
            # 1
            self._p.guard.require()
            record = self._p.store.instance(instance)
            if not record.made or self._attempts.get(instance) is not None:
                raise Conflict(
                    EVENT + ".busy", "the instance is being started or made"
                )
            attempt = self._attempt_to_attach(record, ())
            try:
                with named():
                    return self._attach(record, xml)
            except MHError as exc:
                try:
                    self._refused(attempt, exc)
                finally:
                    self._p.secrets.drop(instance)
                raise

    def _attach(self, record: InstanceRecord, xml: str) -> tuple[str, str]:
        # 2
        one = domain_volume.of(parse(xml))
        if one is None:
            raise Denied("agent.volume.path", "not a disk with a volume")
        volumes = Volumes(self._p.conf)
        volumes.check(one)
        # 3
        verdict = admit_volume(xml, one)
        for event in verdict.events[1:]:
            LOG.warning("%s %s %s", event.id, record.instance, event.detail)
        verdict.require()
        # 4, 5
        keys, opened = self._volume_keys(record, (one,))
        # 6
        audit = self._p.journal.write(
            GRANTED,
            record.instance,
            volume=one.id,
            device=domain_digest(xml),
            request=opened.request.digest().hex(),
            kms_audit=opened.payload.audit,
        )
        self._p.secrets.define(record.instance, keys)
        return GRANTED, f"{audit}; key server: {opened.payload.audit}"

    def attached(self, instance: str, ok: bool) -> None:
        """The secret goes; the guest, where it runs, goes on."""
        with self._attempts.own(instance):
            if self._attempts.get(instance) is None:
                # else a start, begun since, takes it out with its own
                self._p.secrets.drop(instance)
            self._p.journal.write(
                DONE if ok else FAILED, instance, durable=False
            )

    def _attempt_to_attach(
        self, record: InstanceRecord, volumes: tuple[str, ...]
    ) -> Attempt:
        url = self._keys.check_url(record)
        return Attempt(record, url, volume_request(record, url, volumes))

    def _volume_keys(
        self, record: InstanceRecord, found: tuple[ExpectedVolume, ...]
    ) -> tuple[dict[str, Secret], Opened]:
        """Steps 4 and 5.

        :param found: at least one, looked at.  With a live migration none
            gets a header: a guest has them open.
        :returns: libvirt secret uuid to key; the release.
        """
        attempt = self._attempt_to_attach(
            record, tuple(one.id for one in found)
        )
        opened = self._keys.open(attempt)
        volumes, keys = Volumes(self._p.conf), {}
        for one in found:
            key = opened.payload.overlay_keys[volume.wanted(one.id).name]
            if volumes.ready(one, key, record.incoming):
                self._p.journal.write(MADE, record.instance, volume=one.id)
            keys[one.secret] = key
        return keys, opened

    def _volumes_of(
        self, record: InstanceRecord, xml: str, others: set[str]
    ) -> tuple[ExpectedVolume, ...]:
        """Step 2 of every volume in a domain.

        :param others: paths of the instance's own disks.
        """
        found = domain_volume.claimed(parse(xml), others)
        volumes = Volumes(self._p.conf)
        for one in found:
            volumes.check(one, record.incoming)
        return found
