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
"""Runs the measuring process, and believes it as little as it can.

The process gets an open socket and its own program.  Over the socket it may
ask for blocks of the disk, and answer once: this side serves the blocks,
counts and times them, and reads the answer strictly.  Whatever a disk does
to that process, it ends there.
"""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from mh_core.encoding import parse_json
from mh_core.errors import Denied, InputError, Unavailable
from mh_core.fields import DIGEST, LINE, Fields
from mh_reader import program
from mh_reader.export import Source

EVENT = "reader.run"
#: Bytes of one block; the same number stands in ``inside/blocks.py``.
BLOCK = 256 * 1024
MEASURES = ("modules", "boot", "all")
_MOST_ANSWER = 2 << 20
_START = 30.0
_STATUS = re.compile(r"^(\w+):[ \t]*(.*)$", re.M)


@dataclass(frozen=True)
class Limits:
    """
    :param seconds: wall clock, and processor time, of the whole run.
    :param memory: bytes of address space beyond the program's own.
    :param entries: names of files that are looked at.
    :param user: user and group id the process has where it is root's.
    """

    seconds: int = 600
    memory: int = 512 << 20
    entries: int = 4_000_000
    user: int = 65534
    group: int = 65534


def run(
    source: Source,
    measure: str,
    names: Sequence[str] = (),
    limits: Limits | None = None,
    expected: str = "",
) -> dict[str, str]:
    """Measure a disk.

    :param measure: one of :data:`MEASURES`.
    :param names: for ``modules``: ``<volume>:<path>``, or a path that is
        on one volume only.
    :param expected: digest of the program, see :mod:`.program`.
    :returns: full module name to SHA-256 (hex).
    :raises Denied: ``reader.run.disk``: the disk cannot be measured so;
        ``reader.run.ended``: the process was ended by what it read;
        ``reader.run.protocol``; ``reader.program.digest``.
    :raises Unavailable: ``reader.run.start``, ``reader.run.seal``,
        ``reader.run.time``, ``reader.program.*``, ``reader.nbd.*``.
    """
    if measure not in MEASURES:
        raise InputError(EVENT + ".measure", "not something to measure")
    limits = limits or Limits()
    ours, theirs = socket.socketpair()
    with program.opened(expected) as code, ours:
        with theirs:
            child = _start(code, theirs.fileno(), limits)
        try:
            talk = _Talk(ours, source, limits)
            # opened while it is still ours to look at
            path = f"/proc/{child.pid}/status"
            with open(path, encoding="ascii") as status:
                talk.sealed(status)
            talk.job(measure, names)
            return talk.answer()
        except EOFError as exc:
            child.kill()
            code_ = child.wait()
            raise Denied(
                EVENT + ".ended",
                f"the measuring process ended ({_how(code_)}); the disk "
                "cannot be measured",
            ) from exc
        except FileNotFoundError as exc:
            raise Unavailable(
                EVENT + ".seal", "the reader cannot be looked at"
            ) from exc
        finally:
            child.kill()
            child.wait()


def _how(code: int) -> str:
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _start(
    code: program.Program, channel: int, limits: Limits
) -> "subprocess.Popen[bytes]":
    arguments = [
        str(number)
        for number in (
            channel,
            limits.user,
            limits.group,
            limits.memory,
            limits.seconds,
        )
    ]
    fds = [channel, code.archive]
    for use, (module, fd) in code.libraries.items():
        arguments.append(f"{use}={module}={fd}")
        fds.append(fd)
    try:
        return subprocess.Popen(
            # -I -S: no environment, no site-packages, no user's files
            [
                *(sys.executable, "-I", "-S", "-B"),
                f"/proc/self/fd/{code.archive}",
                *arguments,
            ],
            pass_fds=fds,
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError as exc:
        raise Unavailable(
            EVENT + ".start", f"the reader does not start: {exc.strerror}"
        ) from exc


class _Talk:
    """This side of the socket."""

    def __init__(
        self, channel: socket.socket, source: Source, limits: Limits
    ) -> None:
        self._channel = channel
        self._source = source
        self._limits = limits
        self._end = time.monotonic() + limits.seconds
        # every block four times: for what does not stay in its memory
        self._left = 4 * (source.size // BLOCK + 1) + 1024

    def _take(self, count: int) -> bytes:
        parts = []
        while count:
            wait = self._end - time.monotonic()
            if (
                wait <= 0
                or not select.select([self._channel], [], [], wait)[0]
            ):
                raise Unavailable(
                    EVENT + ".time", "measuring the disk takes too long"
                )
            part = self._channel.recv(min(count, 1 << 16))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _give(self, data: bytes) -> None:
        self._channel.settimeout(max(0.1, self._end - time.monotonic()))
        try:
            self._channel.sendall(data)
        except TimeoutError as exc:
            raise Unavailable(
                EVENT + ".time", "measuring the disk takes too long"
            ) from exc
        except OSError as exc:
            raise EOFError from exc
        finally:
            self._channel.settimeout(None)

    def sealed(self, file: TextIO) -> None:
        """Wait for the process's word, and have the kernel's on it.

        :param file: ``/proc/<pid>/status``.
        """
        end, self._end = self._end, time.monotonic() + _START
        try:
            word = self._take(1)
        except EOFError as exc:
            raise Unavailable(
                EVENT + ".start", "the reader ended before it was sealed"
            ) from exc
        self._end = end
        status = dict(_STATUS.findall(file.read()))
        expected = {
            "NoNewPrivs": "1",
            "Seccomp": "2",
            "Threads": "1",
            "CapPrm": "0" * 16,
            "CapEff": "0" * 16,
            "CapAmb": "0" * 16,
        }
        if os.geteuid() == 0:
            expected["Uid"] = "\t".join([str(self._limits.user)] * 4)
            expected["Gid"] = "\t".join([str(self._limits.group)] * 4)
            expected["Groups"] = ""
        for name, value in expected.items():
            if word != b"S" or status.get(name, "").strip() != value:
                raise Unavailable(
                    EVENT + ".seal", f"the reader is not shut in ({name})"
                )

    def job(self, measure: str, names: Sequence[str]) -> None:
        data = json.dumps(
            {
                "size": self._source.size,
                "measure": measure,
                "names": list(names),
                "data": 4 * self._source.size + (1 << 30),
                "entries": self._limits.entries,
            }
        ).encode()
        self._give(len(data).to_bytes(4, "big") + data)

    def answer(self) -> dict[str, str]:
        while True:
            kind = self._take(1)
            if kind == b"R":
                self._block(int.from_bytes(self._take(8), "big"))
                continue
            length = int.from_bytes(self._take(4), "big")
            if kind not in (b"D", b"E") or length > _MOST_ANSWER:
                raise Denied(
                    EVENT + ".protocol", "the reader does not keep to it"
                )
            data = self._take(length)
            if kind == b"D":
                return _modules(data)
            raise Denied(EVENT + ".disk", _words(data))

    def _block(self, number: int) -> None:
        offset = number * BLOCK
        self._left -= 1
        if offset >= self._source.size or self._left < 0:
            raise Denied(EVENT + ".protocol", "the reader asks for too much")
        count = min(BLOCK, self._source.size - offset)
        self._give(self._source.read(offset, count))


def _words(data: bytes) -> str:
    """What the process says, as one bounded line of plain characters."""
    text = data[:300].decode("ascii", "replace")
    return re.sub(r"[^ -~]", "?", text) or "cannot be read"


def _modules(data: bytes) -> dict[str, str]:
    try:
        found: Any = parse_json(data, _MOST_ANSWER)
        if not isinstance(found, dict):
            raise InputError(EVENT, "not an object")
        for name, value in found.items():
            one = Fields({"name": name, "sha256": value}, EVENT)
            one.text("name", minimum=3, maximum=4352, pattern=LINE)
            one.text("sha256", pattern=DIGEST)
    except InputError as exc:
        raise Denied(
            EVENT + ".protocol", "the reader's answer is none"
        ) from exc
    return dict(found)
