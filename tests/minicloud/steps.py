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

"""Steps that depend on each other, run in parallel where they can."""

from __future__ import annotations

import collections.abc
import concurrent.futures
import dataclasses
import time

from tests.minicloud.pids import GIVE_UP

Report = collections.abc.Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class Step:
    name: str
    action: collections.abc.Callable[[], object]
    after: tuple[str, ...] = ()


def run_all(
    steps: collections.abc.Sequence[Step], report: Report | None = None
) -> None:
    """Run every step once the steps it names are done.

    At the first failure, or an interrupt, nothing more is begun, the steps
    under way give up their waits, and it is raised when they have ended.
    """
    plan = _Plan(steps, report)
    with concurrent.futures.ThreadPoolExecutor(len(steps) or 1) as pool:
        try:
            plan.run(pool)
        except BaseException:
            GIVE_UP.set()
            pool.shutdown(wait=True, cancel_futures=True)
            GIVE_UP.clear()
            raise


class _Plan:
    def __init__(
        self, steps: collections.abc.Sequence[Step], report: Report | None
    ) -> None:
        self.waiting = {step.name: step for step in steps}
        self.done: set[str] = set()
        self.running: dict[concurrent.futures.Future[object], str] = {}
        self.report = report
        self.begun = time.monotonic()

    def run(self, pool: concurrent.futures.Executor) -> None:
        while self.waiting or self.running:
            for step in list(self.waiting.values()):
                if self.done.issuperset(step.after):
                    del self.waiting[step.name]
                    self.running[pool.submit(step.action)] = step.name
            if not self.running:
                raise ValueError(f"never begun: {sorted(self.waiting)}")
            ended, _ = concurrent.futures.wait(
                self.running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in ended:
                name = self.running.pop(future)
                future.result()
                self.done.add(name)
                if self.report is not None:
                    self.report(name, time.monotonic() - self.begun)
