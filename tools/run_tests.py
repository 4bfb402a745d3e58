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
"""Every test, in two lanes at once, the fast ones first in each.

The end-to-end tests mostly wait for a cloud; the others mostly compute. What
the latter print is kept until each group has ended, so that the two do not
mix.
"""

import concurrent.futures
import subprocess
import sys
import time

UNIT = "tests/unit"
#: pytest: tests ran, and some failed.
FAILED = 1
KEPT = (UNIT, "tests/functional")
LANES = (KEPT, ("tests/minicloud", "tests/e2e"))


def pytest(group: str, *more: str) -> int:
    """One run; its output at once, or where it would mix, at its end."""
    cache = f"cache_dir=run/cache/pytest-{group.rpartition('/')[2]}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", cache]
        + ["--durations=15", *more, group],
        stdout=subprocess.PIPE if group in KEPT else None,
        stderr=subprocess.STDOUT if group in KEPT else None,
        text=True,
        errors="replace",
        check=False,
    )
    if done.stdout:
        print(done.stdout, flush=True)
    return done.returncode


def run(group: str) -> bool:
    """One group of tests.

    What failed is run once more by itself, since a busy machine lets real
    parts miss their time; what fails twice is the verdict, and what did not
    is there to read.
    """
    begin = time.monotonic()
    if group not in KEPT:
        print(f"== {group}", flush=True)
    code = pytest(group)
    if code == FAILED and group != UNIT:
        print(f"== {group}: what failed, once more", flush=True)
        code = pytest(group, "--last-failed", "--last-failed-no-failures=none")
    print(f"== {group}: {time.monotonic() - begin:.0f} s", flush=True)
    return code == 0


def lane(groups: tuple[str, ...]) -> list[str]:
    """Groups in order, to the first that fails, which is returned."""
    for group in groups:
        if not run(group):
            return [group]
    return []


def main() -> int:
    """0 only where everything passed."""
    failed: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(len(LANES)) as pool:
        for found in pool.map(lane, LANES):
            failed += found
    if failed:
        print("failed: " + ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
