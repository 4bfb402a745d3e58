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
"""One launch or start that is under way: what the agent holds in memory."""

import enum
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from mh_core.payload import ReleasePayload
from mh_core.request import KeyRequest
from mh_nova.agent.kms import KeyUrl
from mh_nova.agent.measure import Measured
from mh_nova.agent.store import InstanceRecord

#: A wrapped key, or an opened one, older than this is asked for again, s.
MAX_AGE = 60.0


class Stage(enum.Enum):
    """prepared → made → starting → (started: nothing is held any more)."""

    PREPARED = "prepared"
    MADE = "made"
    STARTING = "starting"


@dataclass(frozen=True)
class Wrapped:
    """A JWE that has not been opened.

    :param obtained: seconds, monotonic.
    :param asked: seconds of boot time: a lease counts from then.
    """

    jwe: str
    obtained: float
    asked: float


@dataclass(frozen=True)
class Opened:
    """A release that passed every check of ``release``.

    :param asked: as of what was opened.
    """

    request: KeyRequest
    payload: ReleasePayload
    opened: float
    asked: float

    def fresh(self) -> bool:
        return time.monotonic() - self.opened < MAX_AGE


@dataclass
class Attempt:
    """
    :param key: the answer that is under way, if one was asked for.
    :param measured: by the payload in ``opened``.
    """

    record: InstanceRecord
    url: KeyUrl
    request: KeyRequest
    stage: Stage = Stage.PREPARED
    key: "Future[Wrapped] | None" = None
    opened: Opened | None = None
    measured: Measured | None = None
    domain_digest: str = ""


@dataclass
class Attempts:
    """All attempts of this host; one verb at a time for each instance."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turns: dict[str, threading.RLock] = field(default_factory=dict)
    _all: dict[str, Attempt] = field(default_factory=dict)

    @contextmanager
    def own(self, instance: str) -> Iterator[None]:
        with self._lock:
            turn = self._turns.setdefault(instance, threading.RLock())
        with turn:
            yield

    def get(self, instance: str) -> Attempt | None:
        with self._lock:
            return self._all.get(instance)

    def busy(self) -> set[str]:
        """Instances for which a verb works just now."""
        with self._lock:
            turns = list(self._turns.items())
        found = set()
        for instance, turn in turns:
            if turn.acquire(blocking=False):
                turn.release()
            else:
                found.add(instance)
        return found

    def all(self) -> dict[str, Attempt]:
        with self._lock:
            return dict(self._all)

    def put(self, attempt: Attempt) -> None:
        with self._lock:
            self._all[attempt.record.instance] = attempt

    def drop(self, instance: str) -> Attempt | None:
        with self._lock:
            attempt = self._all.pop(instance, None)
        if attempt is not None and attempt.key is not None:
            attempt.key.cancel()
        return attempt

    def expire(self) -> None:
        """Let go of every opened release that is too old."""
        with self._lock:
            for attempt in self._all.values():
                if attempt.opened is not None and not attempt.opened.fresh():
                    attempt.opened = None
