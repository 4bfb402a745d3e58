#!/usr/bin/env python3
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
"""Every test, fast ones first; the first group that fails is the verdict."""

import subprocess
import sys
import time

GROUPS = ("tests/unit", "tests/functional", "tests/minicloud", "tests/e2e")


def main() -> int:
    """Run the groups in order; 0 only where all of them passed."""
    failed = []
    for group in GROUPS:
        begin = time.monotonic()
        print(f"== {group}", flush=True)
        code = subprocess.call([sys.executable, "-m", "pytest", "-q", group])
        print(f"== {group}: {time.monotonic() - begin:.0f} s", flush=True)
        if code:
            failed.append(group)
            if group != GROUPS[-1]:
                break
    if failed:
        print("failed: " + ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
