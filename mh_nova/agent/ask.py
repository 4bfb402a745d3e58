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
"""ask-start, ask-launch: would this start be refused?

Asked while the guest that it ends, or the disk that it replaces, is there
still. Steps, with the id each refuses by:

1. the host may carry trusted guests (``agent.guard.*``);
2. the disks that stay have the headers they should have
   (``agent.header.*``; a start only);
3. the key server releases the keys, by a quote made for this request
   (``agent.kms.*``, ``agent.release.*``): host policy, release policy,
   revocation and launch ticket have had their say, and its record is made;
4. the image's manifest is signed by a key that this release names, and one
   that it allows (``agent.measure.manifest-*``, ``agent.measure.image``).

The release is kept for the start that follows; see :mod:`.ahead`. Nothing
of the instance's record has changed but the lease that its guest runs by,
where the release ended that one.
"""

from mh_core.errors import Conflict, MHError
from mh_nova.agent.attempt import Attempt, Opened, Stage
from mh_nova.agent.facts import base_path
from mh_nova.agent.keys import key_request
from mh_nova.agent.make import Making
from mh_nova.agent.measure import verify_manifest
from mh_nova.agent.reason import named
from mh_nova.agent.start import Starting
from mh_nova.agent.store import InstanceRecord

START = "start"
LAUNCH = "launch"


class Asking(Making, Starting):
    """The verbs before whatever cannot be taken back."""

    def ask_start(self, instance: str) -> None:
        """
        :raises NotFound: ``agent.record.unknown``.
        :raises MHError: by the steps in the module's list.
        """
        with self._attempts.own(instance):
            record = self._p.store.instance(instance)
            if not record.made:
                raise Conflict(
                    "agent.start.not-made", "the instance's disks are not made"
                )
            self._not_awaited(instance)
            url = self._keys.check_url(record)
            request = key_request(record, url, START, "")
            before = self._ahead.get(instance)
            if before is not None and before.request == request:
                # a soft reboot asks, and so does the hard one it becomes
                self._p.guard.require()
                return
            self._ask(Attempt(record, url, request, stage=Stage.MADE), True)

    def ask_launch(self, record: InstanceRecord, ticket: str) -> None:
        """
        :param record: as nova gave it, for ``prepare``.
        :raises MHError: ``agent.prepare.host``, and by the steps in the
            module's list.
        """
        with self._attempts.own(record.instance):
            self._here(record)
            url = self._keys.check_url(record)
            request = key_request(record, url, LAUNCH, ticket)
            self._ask(Attempt(record, url, request), False)

    def _ask(self, attempt: Attempt, there: bool) -> None:
        """:param there: its disks are."""
        record = attempt.record
        self._ahead.take(record.instance)
        try:
            with named():
                # 1
                self._p.guard.require()
                # 2
                for disk in record.disks:
                    if there and not (disk.drive and not disk.size):
                        base = base_path(self._p.root, record, disk)
                        self._p.overlays.require(record.instance, disk, base)
                # 3
                key = attempt.key = self._keys.ask(attempt)
                opened = self._keys.open(attempt)
                if there:
                    # the guest runs, and from now on by this release's lease
                    self._p.leases.begin(
                        record, str(attempt.url.origin), opened
                    )
                # 4
                try:
                    verify_manifest(
                        opened.payload, record.manifest, opened.request
                    )
                except MHError:
                    self._goes_on(attempt, opened)
                    raise
        except MHError as exc:
            self._refused(attempt, exc)
            raise
        self._ahead.put(attempt, key)

    def _goes_on(self, attempt: Attempt, opened: Opened) -> None:
        """There will be no launch: the guest goes on, by this release's
        lease where that took the place of its own.

        Not before: the lease that the guest has is named in the receipt for
        its disk.
        """
        record, origin = attempt.record, str(attempt.url.origin)
        known = self._p.leases.of(record.instance)
        if known is not None and (
            (known.key_id, known.origin) == (record.key_id, origin)
        ):
            self._p.leases.begin(record, origin, opened)
