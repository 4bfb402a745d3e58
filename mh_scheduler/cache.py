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
"""Trust states of hosts, kept for as long as the answer says.

No thread of its own: whoever needs a host that is not there asks, for all
such hosts in one request, and others who need some meanwhile wait for that
one and look again.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mh_core.errors import MHError, Unavailable

UNKNOWN = "unknown"


@dataclass(frozen=True)
class State:
    """One host's state.

    :param level: ``trusted``, ``boot-only``, ``untrusted`` or ``unknown``.
    :param event: the attestation server's reason.
    :param expires: on the monotonic clock, seconds.
    """

    level: str
    event: str
    expires: float


@dataclass(frozen=True)
class Reply:
    """The attestation server's word; ``expires_in`` in seconds."""

    level: str
    event: str
    expires_in: int


Ask = Callable[[Sequence[str], float], Mapping[str, Reply]]


class TrustCache:
    """States by host name.

    :param ask: one question, for at most ``max_batch`` hosts, within the
        given seconds; raises :class:`mh_core.errors.MHError`.
    :param max_ttl: longest life of a state, seconds.
    :param timeout: longest wait of one look-up, seconds.
    :param retry_after: seconds of silence after a failed question.
    :param clock: monotonic, seconds.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        max_ttl: float,
        max_batch: int,
        timeout: float,
        retry_after: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._max_ttl = max_ttl
        self._max_batch = max_batch
        self._timeout = timeout
        self._retry_after = retry_after
        self._clock = clock
        self._states: dict[str, State] = {}
        self._flight = threading.Lock()
        self._silent_until = float("-inf")
        self._failure: MHError | None = None

    def known(self) -> Mapping[str, State]:
        """What is there, expired or not; asks nobody."""
        return self._states

    def states(
        self, hosts: Sequence[str]
    ) -> tuple[Mapping[str, State], MHError | None]:
        """States to look hosts up in, and why some could not be learnt.

        An entry may have expired (then it could not be renewed): the caller
        compares ``expires`` with its own reading of the clock.
        """
        states, now = self._states, self._clock()
        missing = [
            host
            for host in hosts
            if (found := states.get(host)) is None or found.expires <= now
        ]
        if not missing:
            return states, None
        return self._learn(missing, now + self._timeout)

    def _learn(
        self, missing: Sequence[str], deadline: float
    ) -> tuple[Mapping[str, State], MHError | None]:
        # One question at a time; what it brought is looked at first.
        if not self._flight.acquire(timeout=self._timeout):
            return self._states, Unavailable(
                "scheduler.cache.busy", "another question takes too long"
            )
        try:
            now = self._clock()
            left = [
                host
                for host in dict.fromkeys(missing)
                if (found := self._states.get(host)) is None
                or found.expires <= now
            ]
            if not left:
                return self._states, None
            if now < self._silent_until:
                return self._states, self._failure
            try:
                self._question(left, deadline)
            except MHError as exc:
                self._failure = exc
                self._silent_until = self._clock() + self._retry_after
                return self._states, exc
            return self._states, None
        finally:
            self._flight.release()

    def _question(self, hosts: Sequence[str], deadline: float) -> None:
        # A new dictionary each time: readers hold the old one unchanged.
        now = self._clock()
        states = {
            host: state
            for host, state in self._states.items()
            if state.expires + self._max_ttl > now
        }
        try:
            for start in range(0, len(hosts), self._max_batch):
                some = hosts[start : start + self._max_batch]
                # Life counts from before the question, not from the answer.
                asked = self._clock()
                if asked >= deadline:
                    raise Unavailable(
                        "scheduler.cache.timeout", "no time for all hosts"
                    )
                replies = self._ask(some, deadline - asked)
                for host in some:
                    reply = replies.get(host)
                    if reply is None:
                        states.pop(host, None)
                        continue
                    life = min(max(reply.expires_in, 0), self._max_ttl)
                    states[host] = State(
                        reply.level, reply.event, asked + life
                    )
        finally:
            self._states = states
