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
"""A TPM as slow as a real one: swtpm behind a relay that waits.

swtpm signs in a millisecond; published figures for real TPMs say 200 ms at
the median and 600 ms at the 95th percentile for one P-256 signature. The
relay speaks swtpm's TCP protocol in both directions and waits before each
command that signs.
"""

from __future__ import annotations

import collections.abc
import socket
import struct
import threading
import time
import types

from tests.minicloud.layout import ADDRESS

#: TPM2_Certify, TPM2_Quote, TPM2_Sign (TPM 2.0 part 2, table 12).
SIGNING = frozenset({0x148, 0x158, 0x15D})
PORT = 15831
_HEADER = 10

Serve = collections.abc.Callable[[socket.socket, socket.socket], None]


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


class SlowTpm:
    """Listens on :data:`PORT` and the next while it is entered.

    :param port: of the swtpm behind; its control channel is the next.
    :param delay: seconds before each signature.
    """

    def __init__(self, port: int, delay: float) -> None:
        self._port = port
        self._delay = delay
        self._ended = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.signatures = 0

    @property
    def tcti(self) -> str:
        return f"swtpm:host={ADDRESS},port={PORT}"

    def __enter__(self) -> SlowTpm:
        for offset, serve in ((0, self._commands), (1, self._control)):
            listener = socket.create_server((ADDRESS, PORT + offset))
            listener.settimeout(0.2)
            self._sockets.append(listener)
            thread = threading.Thread(
                target=self._accept,
                args=(listener, self._port + offset, serve),
                daemon=True,
            )
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _accept(
        self, listener: socket.socket, port: int, serve: Serve
    ) -> None:
        while not self._ended.is_set():
            try:
                near, _ = listener.accept()
            except TimeoutError:
                continue
            near.settimeout(None)
            threading.Thread(
                target=self._one, args=(near, port, serve), daemon=True
            ).start()

    @staticmethod
    def _one(near: socket.socket, port: int, serve: Serve) -> None:
        try:
            with near, socket.create_connection((ADDRESS, port)) as far:
                serve(near, far)
        except (EOFError, OSError):
            return

    def _commands(self, near: socket.socket, far: socket.socket) -> None:
        """TPM commands and responses: tag, length, code, and the rest."""
        while True:
            self._relay(near, far, True)
            self._relay(far, near, False)

    def _relay(
        self, source: socket.socket, target: socket.socket, asked: bool
    ) -> None:
        head = _exactly(source, _HEADER)
        _tag, length, code = struct.unpack(">HII", head)
        body = _exactly(source, length - _HEADER)
        if asked and code in SIGNING:
            self.signatures += 1
            time.sleep(self._delay)
        target.sendall(head + body)

    @staticmethod
    def _control(near: socket.socket, far: socket.socket) -> None:
        """swtpm's control channel, unchanged."""

        def back() -> None:
            try:
                while data := far.recv(4096):
                    near.sendall(data)
            except OSError:
                return

        thread = threading.Thread(target=back, daemon=True)
        thread.start()
        while data := near.recv(4096):
            far.sendall(data)
        far.shutdown(socket.SHUT_WR)
        thread.join()
