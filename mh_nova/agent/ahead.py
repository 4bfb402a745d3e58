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
"""Releases that were obtained before anything was touched.

A hard reboot ends the guest that runs, a rebuild its disk as well. What the
key server says of the start that follows is asked for while both are there
still, and that start uses the answer: one release, and a refusal that costs
nothing. What is kept is the JWE; it opens again at the gate.
"""

import threading
import time
from concurrent.futures import Future

from mh_nova.agent.attempt import MAX_AGE, Attempt, Wrapped


class Ahead:
    """At most one for each instance, for at most :data:`MAX_AGE`.

    Nothing hangs on them: a start that finds none asks by itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: dict[str, tuple[Attempt, float]] = {}

    def put(self, attempt: Attempt, key: "Future[Wrapped]") -> None:
        """
        :param attempt: whose release was opened and found good.
        :param key: that release, still wrapped.
        """
        attempt.opened = attempt.measured = None
        attempt.key = key
        with self._lock:
            self._all[attempt.record.instance] = (
                attempt,
                key.result().obtained,
            )

    def get(self, instance: str) -> Attempt | None:
        """To look at."""
        with self._lock:
            self._expire()
            return self._all.get(instance, (None, 0.0))[0]

    def take(self, instance: str) -> Attempt | None:
        """Whatever begins for the instance now takes it, or ends it."""
        with self._lock:
            self._expire()
            return self._all.pop(instance, (None, 0.0))[0]

    def expire(self) -> None:
        with self._lock:
            self._expire()

    def _expire(self) -> None:
        oldest = time.monotonic() - MAX_AGE
        for instance in [
            name for name, (_, at) in self._all.items() if at < oldest
        ]:
            del self._all[instance]
