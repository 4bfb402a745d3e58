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
"""What the demo says: a tick, the time and the event id of each step."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import json
import pathlib
import sys
import time
import traceback
import typing

KINDS = ("step", "refusal", "search")


@dataclasses.dataclass
class Line:
    """One thing that was to happen.

    :param kind: one of :data:`KINDS`.
    :param event: id by which the responsible component recorded it.
    :param seconds: how long it took.
    """

    kind: str
    name: str
    ok: bool = False
    seconds: float = 0.0
    event: str = ""
    detail: str = ""


class Report:
    """Prints while it happens, and once more as a table at the end."""

    def __init__(self, out: typing.TextIO = sys.stdout) -> None:
        self.lines: list[Line] = []
        self._out = out

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    @contextlib.contextmanager
    def happen(self, kind: str, name: str) -> collections.abc.Iterator[Line]:
        """A step; it is missing unless the block ends without an error."""
        line = Line(kind, name)
        self.lines.append(line)
        begin = time.monotonic()
        try:
            yield line
            line.ok = True
        except Exception as error:
            line.detail = f"{type(error).__name__}: {error}"
            self._where = traceback.format_exc()
            raise
        finally:
            line.seconds = time.monotonic() - begin
            self.say(self.format(line))

    def missing(self, kind: str, name: str, why: str) -> None:
        """Something that could not even be tried."""
        line = Line(kind, name, detail=why)
        self.lines.append(line)
        self.say(self.format(line))

    @property
    def ok(self) -> bool:
        return bool(self.lines) and all(line.ok for line in self.lines)

    @staticmethod
    def format(line: Line) -> str:
        mark = "\N{CHECK MARK}" if line.ok else "\N{BALLOT X}"
        text = f" {mark} {line.seconds:6.1f} s  {line.name}"
        if line.event:
            text += f"  [{line.event}]"
        if line.detail:
            text += f"\n              {line.detail[:1200]}"
        return text

    def table(self) -> None:
        """Steps, refusals and searches, all as expected or not."""
        self.say("")
        width = max((len(line.name) for line in self.lines), default=10)
        for kind in KINDS:
            lines = [line for line in self.lines if line.kind == kind]
            good = sum(line.ok for line in lines)
            name = {"search": "searches"}.get(kind, kind + "s")
            self.say(f"{name:<10} {good} of {len(lines)} as expected")
            for line in lines:
                mark = "ok    " if line.ok else "FAILED"
                self.say(
                    f"  {mark}  {line.name:<{width}}  "
                    f"{line.seconds:6.1f} s  {line.event}"
                )

    def save(self, path: pathlib.Path) -> None:
        """The same as JSON."""
        document = {
            "ok": self.ok,
            "lines": [dataclasses.asdict(line) for line in self.lines],
        }
        path.write_text(json.dumps(document, indent=1) + "\n")
