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

The end-to-end tests mostly wait for a cloud; the others mostly compute. So
the two go side by side, and whichever lane is free sooner takes the later
modules of the end-to-end tests, with one more cloud in a network of its own.
What the groups of that lane print is kept until each has ended, so that the
two do not mix.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parents[1]
E2E = TOP / "tests" / "e2e"
#: The first module that needs nothing of those before it, but for a cloud.
LATER = "test_F"
#: pytest: tests ran, and some failed.
FAILED = 1
#: A network with a loopback and nothing else.
ALONE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "-")


@dataclasses.dataclass(frozen=True)
class Group:
    """
    :param alone: has a network, and a cloud's folder, of its own.
    :param kept: what it prints is kept until it has ended.
    :param again: what failed is run once more by itself, since a busy
        machine lets real parts miss their time; what fails twice is the
        verdict, and what did not is there to read.
    """

    name: str
    paths: tuple[str, ...]
    alone: bool = False
    kept: bool = False
    again: bool = True

    def pytest(self, *more: str) -> int:
        cache = f"cache_dir=run/cache/pytest-{self.name}"
        env = dict(os.environ)
        if self.alone:
            env["MH_CLOUD_BASE"] = str(TOP / "run" / "cloud2")
        # else some GiB of the functional tests stay, and are read by each
        # search of the end-to-end tests for what must not be on a disk
        with tempfile.TemporaryDirectory(
            prefix="mh-", ignore_cleanup_errors=True
        ) as folder:
            done = subprocess.run(
                [*(ALONE if self.alone else ()), sys.executable]
                + ["-m", "pytest", "-q", "-o", cache, "--durations=25"]
                + [f"--basetemp={folder}/t", *more, *self.paths],
                stdout=subprocess.PIPE if self.kept else None,
                stderr=subprocess.STDOUT if self.kept else None,
                env=env,
                text=True,
                errors="replace",
                check=False,
            )
        if done.stdout:
            print(done.stdout, flush=True)
        return done.returncode

    def run(self) -> bool:
        begin = time.monotonic()
        print(f"== {self.name}", flush=True)
        code = self.pytest()
        if code == FAILED and self.again:
            print(f"== {self.name}: what failed, once more", flush=True)
            code = self.pytest(
                "--last-failed", "--last-failed-no-failures=none"
            )
        took = time.monotonic() - begin
        print(f"== {self.name}: {took:.0f} s, exit {code}", flush=True)
        return code == 0


def lanes() -> tuple[tuple[Group, ...], ...]:
    """The end-to-end tests are divided where networks can be."""
    unit = Group("unit", ("tests/unit",), kept=True, again=False)
    functional = Group("functional", ("tests/functional",), kept=True)
    minicloud = Group("minicloud", ("tests/minicloud",))
    whole = sorted(f"tests/e2e/{path.name}" for path in E2E.glob("test_*.py"))
    probe = subprocess.run([*ALONE, "true"], check=False)
    if probe.returncode:
        return (unit, functional), (minicloud, Group("e2e", tuple(whole)))
    cut = f"tests/e2e/{LATER}"
    sooner = tuple(path for path in whole if path < cut)
    later = tuple(path for path in whole if path >= cut)
    return (
        (unit, functional, Group("e2e-2", later, alone=True, kept=True)),
        (minicloud, Group("e2e-1", sooner)),
    )


def lane(groups: tuple[Group, ...]) -> list[str]:
    """Groups in order; those that failed, which keep none from running."""
    return [group.name for group in groups if not group.run()]


def main() -> int:
    """0 only where everything passed."""
    failed: list[str] = []
    found = lanes()
    with concurrent.futures.ThreadPoolExecutor(len(found)) as pool:
        for names in pool.map(lane, found):
            failed += names
    if failed:
        print("failed: " + ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
