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
"""What every verb works with: the parts, the attempts under way, the keys."""

from mh_core.errors import MHError
from mh_nova.agent import measure as measure_module
from mh_nova.agent.ahead import Ahead
from mh_nova.agent.attempt import Attempt, Attempts, Opened
from mh_nova.agent.keys import Keys
from mh_nova.agent.measure import Measured, measure
from mh_nova.agent.measurers.base import HashedFile
from mh_nova.agent.parts import Parts

EVENT = "agent.launch"


class Work:
    """Shared by the verbs of one host."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._conf = parts.conf.agent
        self._attempts = Attempts()
        self._ahead = Ahead()
        self._keys = Keys(
            parts.kms,
            parts.prover,
            # challenge and release, each within the time allowed
            3 * self._conf.timeout + 10,
            parts.clock,
        )

    def _give_up(self, instance: str) -> None:
        """End whatever was under way for an instance."""
        self._p.secrets.drop(instance)
        attempt = self._attempts.drop(instance)
        if attempt is not None:
            self._p.bases.leave(attempt.record.image, instance)

    def _refused(self, attempt: Attempt, error: MHError) -> None:
        self._p.journal.write(
            error.event,
            attempt.record.instance,
            error.message,
            request=attempt.request.digest().hex(),
        )

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
