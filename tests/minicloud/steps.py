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

    The first failure is raised when all that had begun has ended; nothing
    is begun after it.
    """
    begun = time.monotonic()
    waiting = {step.name: step for step in steps}
    done: set[str] = set()
    running: dict[concurrent.futures.Future[object], str] = {}
    failure: BaseException | None = None
    with concurrent.futures.ThreadPoolExecutor(len(waiting) or 1) as pool:
        while waiting or running:
            if failure is None:
                for step in list(waiting.values()):
                    if done.issuperset(step.after):
                        del waiting[step.name]
                        running[pool.submit(step.action)] = step.name
            if not running:
                break
            ended, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in ended:
                name = running.pop(future)
                error = future.exception()
                if error is not None:
                    failure = failure or error
                    continue
                done.add(name)
                if report is not None:
                    report(name, time.monotonic() - begun)
    if failure is not None:
        raise failure
    if waiting:
        raise ValueError(f"steps that cannot begin: {sorted(waiting)}")
