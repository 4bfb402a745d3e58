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
"""The agent's audit log: each decision is a line, each line is chained.

A line is the record's canonical JSON, a tab, and its hash in hexadecimal
(:mod:`mh_core.audit`).  An id reads ``agent#<seq>``.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mh_core import audit
from mh_core.encoding import parse_json
from mh_core.errors import InputError, Unavailable, VerificationError
from mh_core.secret import redact
from mh_nova.agent.reason import reason

LOG = logging.getLogger(__name__)
EVENT = "agent.audit"


def read(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """(record, hash) of each line, for ``verify_chain``.

    :raises VerificationError: ``agent.audit.line``.
    """
    with path.open("rb") as file:
        for line in file:
            record, tab, digest = line.rstrip(b"\n").rpartition(b"\t")
            try:
                value = bytes.fromhex(digest.decode("ascii"))
            except ValueError:
                tab = b""
            if not tab:
                raise VerificationError(EVENT + ".line", "a damaged line")
            yield record, value


class Journal:
    """Appends; one per process.

    :param path: of the log, made with mode 0600.
    :param clock: seconds since the epoch.
    :raises VerificationError: the chain on disk does not hold.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._head, self._seq = audit.GENESIS, 0
        if path.exists():
            self._mend(path)
            rows = list(read(path))
            self._head = audit.verify_chain(rows)
            self._seq = self._last(rows)
        self._fd = os.open(
            path,
            os.O_WRONLY
            | os.O_APPEND
            | os.O_CREAT
            | os.O_CLOEXEC
            | os.O_NOFOLLOW,
            0o600,
        )

    @staticmethod
    def _mend(path: Path) -> None:
        """Cut a line that a crash left half written: nothing was decided
        on it, because :meth:`write` had not returned."""
        with path.open("r+b") as file:
            data = file.read()
            if data and not data.endswith(b"\n"):
                LOG.warning("%s.mended: the last line was cut off", EVENT)
                file.truncate(data.rfind(b"\n") + 1)

    @staticmethod
    def _last(rows: list[tuple[bytes, bytes]]) -> int:
        if not rows:
            return 0
        record = parse_json(rows[-1][0])
        if not isinstance(record, dict) or not isinstance(
            record.get("seq"), int
        ):
            raise InputError(EVENT + ".line", "a record without a number")
        return int(record["seq"])

    def write(
        self,
        event: str,
        instance: str,
        detail: str = "",
        durable: bool = True,
        **more: Any,
    ) -> str:
        """Record a decision; returns its id.

        :param durable: on disk when this returns.
        :raises Unavailable: ``agent.audit``: no log, no launch.
        """
        with self._lock:
            seq = self._seq + 1
            record = audit.encode(
                redact(
                    {
                        "seq": seq,
                        "time": int(self._clock()),
                        "event": event,
                        "instance": instance,
                        "detail": detail[:1024],
                        **more,
                    }
                )
            )
            head = audit.link(self._head, record)
            line = record + b"\t" + head.hex().encode() + b"\n"
            end = os.fstat(self._fd).st_size
            try:
                if os.write(self._fd, line) != len(line):
                    raise OSError("short write")
                if durable:
                    os.fdatasync(self._fd)
            except OSError as exc:
                # what did not count must not break the chain of what follows
                os.ftruncate(self._fd, end)
                raise Unavailable(
                    EVENT, f"the audit log cannot be written: {reason(exc)}"
                ) from exc
            self._head, self._seq = head, seq
        LOG.info("%s agent#%d instance=%s %s", event, seq, instance, detail)
        return f"agent#{seq}"

    def close(self) -> None:
        os.close(self._fd)
