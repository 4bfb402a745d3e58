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
"""Progress of long steps, on standard error only.

Standard output belongs to the command's result (``-f json``).
"""

import time
from typing import Protocol, TextIO


class Progress(Protocol):
    """What a long step reports to.

    ``update`` is called with units done so far and in all, ``finish`` once.
    """

    def update(self, done: int, total: int) -> None: ...

    def finish(self) -> None: ...


class Silent:
    """Reports to nobody."""

    def update(self, done: int, total: int) -> None:
        return

    def finish(self) -> None:
        return


class Bar:
    """A bar on a terminal; one line at the end everywhere else.

    :param stream: usually ``sys.stderr``.
    :param label: what is done, e.g. ``encrypt``.
    """

    WIDTH = 30

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream = stream
        self._label = label
        self._tty = stream.isatty()
        self._shown = -1
        self._share = 0
        self._start = time.monotonic()

    def update(self, done: int, total: int) -> None:
        self._share = 100 if total <= 0 else min(100, 100 * done // total)
        if self._tty and self._share != self._shown:
            self._shown = self._share
            self._stream.write("\r" + self._line())
            self._stream.flush()

    def _line(self) -> str:
        full = self.WIDTH * self._share // 100
        bar = "=" * full + " " * (self.WIDTH - full)
        return f"{self._label:<8} [{bar}] {self._share:3d}%"

    def finish(self) -> None:
        """End the line; nothing is claimed beyond what was reported."""
        taken = time.monotonic() - self._start
        start = "\r" if self._tty else ""
        self._stream.write(f"{start}{self._line()}  {taken:.1f} s\n")
        self._stream.flush()
