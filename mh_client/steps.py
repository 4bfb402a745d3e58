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
"""Ticks on standard error, as the steps of a launch happen."""

import time
from collections.abc import Callable
from typing import TextIO


def printable(text: str) -> str:
    """Without what a terminal obeys.

    Much of what is shown is the cloud's words, which could otherwise
    overwrite ours.
    """
    return "".join(c if c.isprintable() else " " for c in text)


class Steps:
    """
    :param clock: seconds, monotonic.
    """

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._start = clock()
        encoding = (getattr(stream, "encoding", None) or "ascii").lower()
        self._good, self._bad = (
            ("✓", "✗") if "utf" in encoding else ("ok", "NO")
        )

    def tick(self, step: str, detail: str = "", event: str = "") -> None:
        self._line(self._good, step, detail, event)

    def cross(self, step: str, detail: str = "", event: str = "") -> None:
        self._line(self._bad, step, detail, event)

    def note(self, text: str) -> None:
        self._stream.write(f"  {printable(text)}\n")
        self._stream.flush()

    def _line(self, mark: str, step: str, detail: str, event: str) -> None:
        taken = self._clock() - self._start
        words = f"{mark} {taken:6.1f} s  {step}"
        if detail:
            words += f": {detail}"
        if event:
            words += f"  [{event}]"
        self._stream.write(printable(words) + "\n")
        self._stream.flush()
