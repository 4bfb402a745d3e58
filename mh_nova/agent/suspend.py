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
"""suspend: may a guest's memory be written to this host's disk?"""

from mh_core.errors import Denied
from mh_nova.agent.work import Work

EVENT = "agent.suspend"
GRANTED = EVENT + ".granted"


class Suspending(Work):
    """libvirt writes the memory; the agent looks at where."""

    def suspend(self, instance: str) -> None:
        """
        :raises NotFound: ``agent.record.unknown``.
        :raises Denied: ``agent.suspend.clear``.
        """
        with self._attempts.own(instance):
            self._p.store.instance(instance)
            kind = self._p.guard.kind(self._p.guard.save_dir)
            if not kind.safe:
                raise Denied(
                    EVENT + ".clear",
                    "its memory would be written in the clear: libvirt's "
                    "save directory is not encrypted on this host",
                )
            self._p.journal.write(
                GRANTED, instance, durable=True, storage=kind.value
            )
