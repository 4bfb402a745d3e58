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

"""sweep, abandoned: what is left where somebody ended in the middle.

Whoever dies, agent or nova-compute, leaves files, secrets and records; the
next start of either takes away what nobody waits for any more.
"""

import logging
import os
import threading
import time

from mh_core.errors import MHError
from mh_nova.agent.attempt import Attempt, Attempts
from mh_nova.agent.copies import Copying
from mh_nova.agent.facts import base_path
from mh_nova.agent.make import INCOMING
from mh_nova.agent.paths import BASE_DIR, NEW, PART, SUFFIX, UNPACKED
from mh_nova.agent.reason import named
from mh_nova.agent.rescue import Rescuing

LOG = logging.getLogger(__name__)
EVENT = "agent.recover"
#: nova's name for an instance's directory until a move is confirmed.
_RESIZE = "_resize"
#: Seconds that a caller waits for the verbs of the dead to end.
_PATIENCE = 2.0


class Recovering(Rescuing, Copying):
    """The verbs after a death."""

    def recover(self) -> None:
        """The agent begins: nothing is under way, and what an agent before
        it left half written goes, with its records of bases that nova has
        removed since."""
        self.sweep()
        try:
            instances = os.listdir(self._p.root.path)
        except OSError:
            return
        for directory in sorted(instances):
            for name in self._p.root.names(directory):
                if name.endswith(NEW) or (
                    directory == BASE_DIR
                    and name.endswith(SUFFIX + PART + UNPACKED)
                ):
                    LOG.warning("%s.left: %s removed", EVENT, name)
                    self._jobs.unlink(directory, name)
        self._finish_plans()
        bases = set(self._p.root.names(BASE_DIR))
        for base in self._p.store.bases():
            if base not in bases:
                # a file that comes again is hashed again
                self._p.store.drop_base(base)

    def _finish_plans(self) -> None:
        """A disk was about to be changed: was it?

        Its headers are believed in so far as they are those of either
        record, both of which are the agent's own.
        """
        for instance, record in list(self._p.store.planned()):
            if record is not None:
                try:
                    for disk in record.disks:
                        base = base_path(self._p.root, record, disk)
                        self._p.overlays.require(instance, disk, base)
                    self._p.store.save_instance(record)
                    LOG.warning("%s.planned: %s: done", EVENT, instance)
                except MHError as exc:
                    LOG.warning("%s.planned: %s: %s", EVENT, instance, exc)
            self._p.store.drop_plan(instance)

    def sweep(self) -> None:
        """nova-compute begins anew: nobody waits for anything.

        1. copies end, and their files go;
        2. so does every launch and start that is under way: its secrets,
           its half download, its release.  A verb that still works for a
           caller that is gone ends first, without keeping nova-compute;
        3. but for live migrations, which may go on between two libvirts:
           of those only the secrets go, which QEMU has read by then.
        """
        # 1
        super().sweep()
        # 2, 3
        busy = self._attempts.busy()
        threads = [
            threading.Thread(
                target=self._give_up_one,
                args=(attempts, instance, begun.get(instance)),
                name="give-up",
                daemon=True,
            )
            for attempts, begun in (
                (self._attempts, self._attempts.all()),
                (self._side.attempts, self._side.attempts.all()),
            )
            # a verb that works may be about to begin one
            for instance in {*begun, *busy}
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + _PATIENCE
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _give_up_one(
        self, attempts: Attempts, instance: str, known: Attempt | None
    ) -> None:
        """
        :param known: of before; None: whatever there is, once the verb that
            works has ended.
        """
        with self._attempts.own(instance), attempts.own(instance):
            attempt = attempts.get(instance)
            if attempt is None or attempt is not (known or attempt):
                # it has ended by itself, or a new one has begun
                return
            if attempt.request.purpose == INCOMING:
                self._p.secrets.drop(instance)
                return
            if attempts is self._attempts:
                self._give_up(instance)
            else:
                self._side.drop(instance)
            try:
                self._p.journal.write(
                    EVENT + ".given-up",
                    instance,
                    "nova-compute began anew",
                    durable=False,
                    purpose=attempt.request.purpose,
                )
            except MHError as exc:
                LOG.error("%s: %s", instance, exc)

    def abandoned(self) -> list[str]:
        """Instances on record of which this host has nothing else: neither
        a directory, nor a domain, nor a launch under way.

        nova knows which of them are gone; those it says so of are to be
        forgotten.

        :raises Unavailable: ``agent.libvirt``, ``agent.os``.
        """
        with named():
            there = set(os.listdir(self._p.root.path))
        out = []
        for instance in self._p.store.instances():
            if there & {instance, instance + _RESIZE}:
                continue
            if self._attempts.get(instance) is not None:
                continue
            if (
                self._p.libvirt is None
                or self._p.libvirt.domain_xml(instance) is None
            ):
                out.append(instance)
        return out
