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

"""Looking at, waiting for and ending processes by their pid."""

from __future__ import annotations

import collections.abc
import os
import pathlib
import signal
import threading
import time

Ready = collections.abc.Callable[[], bool]

#: Set while what is under way should be given up: every wait ends.
GIVE_UP = threading.Event()


class CloudError(Exception):
    """Something of the minicloud did not work; says what and where."""


def stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a pid, None if there is none."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def reap(pid: int) -> None:
    """Collect the exit status of a child; others' children are not ours."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except (ChildProcessError, OSError):
        return


def ancestors(pid: int) -> list[int]:
    """The parents of a process, the nearest first."""
    found = []
    while pid > 1:
        try:
            text = pathlib.Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            break
        pid = int(text.rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def pids() -> list[int]:
    return [int(p) for p in os.listdir("/proc") if p.isdigit()]


def wait_until(
    test: Ready, timeout: float, what: str, pause: float = 0.05
) -> None:
    """Wait for a test to hold; say what was waited for if it does not."""
    end = time.monotonic() + timeout
    while not test():
        if GIVE_UP.is_set():
            raise CloudError(f"{what}: given up")
        if time.monotonic() > end:
            raise CloudError(f"{what}: not within {timeout:.0f} s")
        time.sleep(pause)
        pause = min(pause * 1.2, 0.5)


def end_pids(
    targets: collections.abc.Iterable[int],
    timeout: float = 5.0,
    signals: collections.abc.Sequence[signal.Signals] = (
        signal.SIGTERM,
        signal.SIGKILL,
    ),
) -> None:
    """Ask processes to end, each by its pid, and make them if they don't.

    :param signals: ``KILL`` alone, where it is to be as in a crash.
    """
    left = {
        pid: found[1] for pid in targets if (found := stat(pid)) is not None
    }

    def gone() -> bool:
        for pid, started in list(left.items()):
            reap(pid)
            found = stat(pid)
            if found is None or found[1] != started or found[0] in "ZX":
                del left[pid]
        return not left

    for number in signals:
        for pid in list(left):
            send(pid, number)
        try:
            wait_until(gone, timeout, "end of processes")
        except CloudError:
            continue
        return
    if left:
        raise CloudError(f"processes {sorted(left)} cannot be ended")


def send(pid: int, number: signal.Signals, group: bool = False) -> None:
    try:
        if group:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def group_members(leader: int) -> list[int]:
    """The living members of a process group."""
    found = []
    for pid in pids():
        try:
            if os.getpgid(pid) != leader:
                continue
        except ProcessLookupError:
            continue
        state = stat(pid)
        if state is not None and state[0] not in "ZX":
            found.append(pid)
    return found
