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

"""Commands and logs, heard while they are written."""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import subprocess
import threading
import typing

#: Seconds between looks at a file.
PAUSE = 0.1

Heard = collections.abc.Callable[[str], None]


def run(
    argv: collections.abc.Sequence[str],
    env: collections.abc.Mapping[str, str],
    timeout: float,
    heard: Heard | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with its output.

    :param heard: called with each line of its standard error at once.
    :raises subprocess.TimeoutExpired: it was killed.
    """
    with subprocess.Popen(
        argv,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdout is None or process.stderr is None:
            raise AssertionError("both are pipes")
        late = threading.Timer(timeout, process.kill)
        late.start()
        lines: list[str] = []

        def listen(stream: typing.TextIO) -> None:
            for line in stream:
                lines.append(line)
                if heard is not None:
                    heard(line.rstrip("\n"))

        ear = threading.Thread(target=listen, args=(process.stderr,))
        ear.start()
        try:
            output = process.stdout.read()
            code = process.wait()
        finally:
            process.kill()
            ear.join()
            running = late.is_alive()
            late.cancel()
    if not running:
        raise subprocess.TimeoutExpired(argv, timeout, output, "".join(lines))
    return subprocess.CompletedProcess(argv, code, output, "".join(lines))


@contextlib.contextmanager
def tail(path: pathlib.Path, heard: Heard) -> collections.abc.Iterator[None]:
    """While inside, hear each whole line that is added to a file."""
    ended = threading.Event()
    offset = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        nonlocal offset
        last = False
        while not last:
            last = ended.wait(PAUSE)
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    offset += len(line)
                    heard(line.decode(errors="replace").rstrip("\n"))

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
