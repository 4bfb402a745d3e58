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

"""May this host carry trusted launches? The agent's findings and ours."""

import threading
import time
from collections.abc import Callable, Iterable

from oslo_log import log as logging

from mh_core.errors import Denied, MHError
from mh_core.verdict import Event
from mh_nova.hook.agent_client import AgentClient

LOG = logging.getLogger(__name__)
TRAIT = "CUSTOM_MH_TRUSTED_LAUNCH"


class Guard:
    """Cached findings; an empty list is the only yes.

    :param own: findings of the hook itself, which last as long as the
        process (changed nova methods, a base directory elsewhere).
    :param ttl: seconds an answer of the agent's is used again.
    """

    def __init__(
        self,
        client: AgentClient,
        own: Iterable[Event],
        ttl: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._own = tuple(own)
        self._ttl = ttl
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[Event, ...] | None = None
        self._until = 0.0
        self._logged: tuple[Event, ...] | None = None

    def findings(self, fresh: bool = False) -> tuple[Event, ...]:
        """Everything that speaks against trusted launches here, now.

        :param fresh: ask the agent, whatever is cached.
        """
        with self._lock:
            now = self._clock()
            if fresh or self._known is None or now >= self._until:
                self._known = self._own + self._ask()
                self._until = self._clock() + self._ttl
                self._log(self._known)
            return self._known

    def trusted(self) -> bool:
        return not self.findings()

    def require(self) -> None:
        """:raises Denied: with the first finding."""
        for event in self.findings(fresh=True):
            raise Denied(event.id, event.detail or "refused")

    def _ask(self) -> tuple[Event, ...]:
        try:
            status = self._client.status()
        except MHError as error:
            return (Event(error.event, error.message),)
        events = tuple(Event(f.event, f.message) for f in status.findings)
        if not status.trusted and not events:
            return (
                Event(
                    "hook.guard.untrusted",
                    "this host's trust agent gives no reason",
                ),
            )
        # Findings beside trusted=true are the agent's warnings
        return () if status.trusted else events

    def _log(self, events: tuple[Event, ...]) -> None:
        if events == self._logged:
            return
        self._logged = events
        if not events:
            LOG.info("This host may carry trusted launches")
        for event in events:
            LOG.warning(
                "This host may not carry trusted launches: %s [%s]",
                event.detail,
                event.id,
            )
