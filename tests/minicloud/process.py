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

"""Processes that are known by their pid, their logs and their readiness.

Each process leads a session of its own and is recorded in a file with its
pid and its start time, so that a later run never ends a stranger that got
the same pid.  Nothing is ever ended by name.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import threading

from tests.minicloud.pids import (
    CloudError,
    Ready,
    group_members,
    pids,
    reap,
    send,
    stat,
    wait_until,
)

MARKER = "MH_MINICLOUD"

Words = collections.abc.Sequence[str | os.PathLike[str]]


@dataclasses.dataclass(frozen=True)
class Record:
    """What identifies one process: a pid alone can be used again."""

    name: str
    pid: int
    started: int
    stamp: str

    def state(self) -> str:
        """The state letter of the process, or an empty string."""
        found = stat(self.pid)
        if found is None or found[1] != self.started:
            return ""
        return found[0]

    def alive(self) -> bool:
        return self.state() not in ("", "Z", "X")


class Supervisor:
    """Starts, finds and ends the processes of one base directory."""

    def __init__(
        self, records: pathlib.Path, logs: pathlib.Path, base: pathlib.Path
    ) -> None:
        self.records = records
        self.logs = logs
        self.mark = f"{MARKER}={base}"
        self._lock = threading.Lock()

    def record(self, name: str) -> Record | None:
        try:
            data = json.loads((self.records / f"{name}.json").read_text())
            return Record(name, data["pid"], data["started"], data["stamp"])
        except (OSError, ValueError, KeyError):
            return None

    def names(self) -> list[str]:
        if not self.records.is_dir():
            return []
        return sorted(p.stem for p in self.records.glob("*.json"))

    def alive(self, name: str) -> bool:
        record = self.record(name)
        if record is None:
            return False
        reap(record.pid)
        return record.alive()

    def pid(self, name: str) -> int:
        record = self.record(name)
        if record is None or not record.alive():
            raise CloudError(f"{name} does not run")
        return record.pid

    def log(self, name: str) -> pathlib.Path:
        return self.logs / f"{name}.log"

    def start(
        self,
        name: str,
        argv: Words,
        *,
        env: collections.abc.Mapping[str, str],
        inputs: collections.abc.Iterable[pathlib.Path] = (),
        cwd: pathlib.Path | None = None,
        ready: Ready | None = None,
        timeout: float = 60.0,
    ) -> bool:
        """Start a process unless it runs already just as asked.

        `inputs` are its configuration files: when one of them, the command
        or the environment differs from what the running process was
        started with, it is started anew.  Returns whether it was started.
        """
        words = [str(word) for word in argv]
        stamp = _stamp(words, env, inputs)
        record = self.record(name)
        if record is not None and record.alive():
            if record.stamp == stamp:
                return False
            self.stop(name)
        environment = dict(env)
        environment[MARKER] = self.mark.partition("=")[2]
        with self._lock, open(self.log(name), "ab") as log:
            child = subprocess.Popen(
                words,
                env=environment,
                cwd=cwd or self.logs.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._write(name, child.pid, stamp)
        # The child is collected by `reap`, in this run or by init.
        child.returncode = 0
        if ready is not None:
            self.await_ready(name, ready, timeout)
        return True

    def command(
        self,
        name: str,
        argv: Words,
        env: collections.abc.Mapping[str, str],
        stdin: bytes = b"",
        timeout: float = 300.0,
    ) -> None:
        """Run a command to its end; its output goes to the log `name`."""
        words = [str(word) for word in argv]
        with open(self.log(name), "ab") as log:
            child = subprocess.Popen(
                words,
                env=dict(env) | {MARKER: self.mark.partition("=")[2]},
                cwd=self.logs.parent,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(stdin)
                child.stdin.close()
        try:
            wait_until(lambda: child.poll() is not None, timeout, words[0])
        except BaseException:
            send(child.pid, signal.SIGKILL, group=True)
            child.wait()
            raise
        if child.returncode:
            raise CloudError(
                f"{' '.join(words[:4])} failed with status "
                f"{child.returncode}; its log is {self.log(name)}\n"
                + self.tail(name)
            )

    def await_ready(self, name: str, ready: Ready, timeout: float) -> None:
        def test() -> bool:
            if ready():
                return True
            if not self.alive(name):
                raise CloudError(
                    f"{name} ended while starting; "
                    f"its log is {self.log(name)}\n" + self.tail(name)
                )
            return False

        try:
            wait_until(test, timeout, f"{name} to be ready")
        except CloudError as error:
            if "ended while" in str(error):
                raise
            raise CloudError(
                f"{error}; its log is {self.log(name)}\n" + self.tail(name)
            ) from None

    def stop(
        self,
        name: str,
        timeout: float = 5.0,
        first: signal.Signals = signal.SIGTERM,
    ) -> None:
        """End a process and its group; nothing happens if it is gone."""
        record = self.record(name)
        if record is None:
            return
        if self._busy(record):
            send(record.pid, first, group=True)
            try:
                wait_until(lambda: not self._busy(record), timeout, name)
            except CloudError:
                send(record.pid, signal.SIGKILL, group=True)
                wait_until(lambda: not self._busy(record), 10, name)
        (self.records / f"{name}.json").unlink(missing_ok=True)

    def kill(self, name: str) -> None:
        """End a process at once, as a crash would."""
        self.stop(name, first=signal.SIGKILL)

    def marked(self) -> list[int]:
        """Processes that carry our mark, recorded or not."""
        mark = self.mark.encode()
        found = []
        for pid in pids():
            try:
                text = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if pid != os.getpid() and mark in text.split(b"\0"):
                found.append(pid)
        return found

    def tail(self, name: str, lines: int = 25) -> str:
        try:
            text = self.log(name).read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _busy(self, record: Record) -> bool:
        """Whether the process or any of its group is left.

        The number of a group is not given away while it has members, so a
        group without its leader is still the recorded one.
        """
        reap(record.pid)
        found = stat(record.pid)
        if found is not None and found[1] != record.started:
            return False
        return record.alive() or bool(group_members(record.pid))

    def _write(self, name: str, pid: int, stamp: str) -> None:
        found = stat(pid)
        started = found[1] if found else 0
        path = self.records / f"{name}.json"
        new = path.with_suffix(".new")
        new.write_text(
            json.dumps({"pid": pid, "started": started, "stamp": stamp})
        )
        new.replace(path)


def _stamp(
    words: list[str],
    env: collections.abc.Mapping[str, str],
    inputs: collections.abc.Iterable[pathlib.Path],
) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([words, sorted(env.items())]).encode())
    for path in inputs:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
