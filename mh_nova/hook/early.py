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
"""A launch's key, asked for while nova is still busy with its database.

Nova calls ``prepare_for_spawn`` as soon as a host has claimed an instance,
and ``spawn`` when block devices and ports are ready.  What the agent needs
is known at the first of them, so that the release runs beside the rest.

Nothing is decided here: whatever goes wrong, ``spawn`` prepares again, and
hears why.  What was given up never reaches the agent afterwards, where it
would end the launch that goes on without it, or come after the instance was
forgotten: each preparation passes a :class:`Gate` right before it tells the
agent, and who gives it up shuts that.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from oslo_log import log as logging

from mh_core.errors import Conflict, MHError
from mh_nova.hook.disks import Disks

LOG = logging.getLogger(__name__)
#: As many as nova builds at once by default.
WORKERS = 10
#: Longest time between the two calls, s; the agent keeps a key no longer.
MAX_AGE = 60.0


class Gate:
    """Open until it is shut, which waits for whoever is passing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shut = False

    @contextmanager
    def passing(self) -> Iterator[None]:
        """:raises Conflict: ``hook.launch.given-up``."""
        with self._lock:
            if self._shut:
                raise Conflict(
                    "hook.launch.given-up", "the early preparation came late"
                )
            yield

    def shut(self, wait: bool = True) -> bool:
        """:returns: False: not shut, since somebody passes; not with
        ``wait``."""
        if not self._lock.acquire(blocking=wait):
            return False
        self._shut = True
        self._lock.release()
        return True


@dataclass(frozen=True)
class _Begun:
    """
    :param more: the disks beside the root disk that were named.
    :param at: s, monotonic.
    """

    more: Disks
    at: float
    gate: Gate
    future: "Future[None]"

    def stale(self) -> bool:
        return time.monotonic() - self.at > MAX_AGE

    def over(self) -> bool:
        """It is too old, and told the agent, or never will."""
        return self.stale() and (
            self.future.done() or self.gate.shut(wait=False)
        )


class Early:
    """Preparations that nobody has asked for yet, one of an instance."""

    def __init__(self, workers: int = WORKERS) -> None:
        self._lock = threading.Lock()
        self._begun: dict[str, _Begun] = {}
        self._workers = ThreadPoolExecutor(workers, "mh-early")

    def begin(
        self, instance: str, more: Disks, work: Callable[[Gate], None]
    ) -> None:
        """
        :param instance: uuid.
        :param work: prepares it with the agent, through the gate; an
            ``MHError`` is for :meth:`take` to answer.
        """
        self.drop(instance)
        gate = Gate()
        begun = _Begun(
            more, time.monotonic(), gate, self._workers.submit(work, gate)
        )
        with self._lock:
            for other in [n for n, b in self._begun.items() if b.over()]:
                del self._begun[other]
            self._begun[instance] = begun

    def take(self, instance: str, more: Disks) -> bool:
        """Wait for what was begun; False: prepare it yourself."""
        with self._lock:
            begun = self._begun.pop(instance, None)
        if begun is None or begun.future.cancel():
            return False
        if begun.stale():
            begun.gate.shut()
            return False
        try:
            begun.future.result()
        except Exception as error:  # noqa: BLE001
            # whatever it was, the same is done again where it can be told
            LOG.debug("Not prepared early: %s", _said(error))
            return False
        return begun.more == more and not begun.stale()

    def drop(self, instance: str) -> None:
        """The launch is over before it began: the agent has heard of it
        when this returns, or never will."""
        with self._lock:
            begun = self._begun.pop(instance, None)
        if begun is not None and not begun.future.cancel():
            begun.gate.shut()


def _said(error: BaseException) -> str:
    """Ours is redacted; of another only the kind is told."""
    return str(error) if isinstance(error, MHError) else type(error).__name__
