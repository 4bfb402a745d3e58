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
"""The agent's unix socket: one length-prefixed JSON request, one answer."""

import contextlib
import grp
import logging
import os
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Collection
from typing import Any

from mh_core.encoding import MAX_JSON, canonical_json, parse_json
from mh_core.errors import Denied, InputError, MHError
from mh_nova.agent.reason import refused
from mh_nova.agent.unix_socket import bound

LOG = logging.getLogger(__name__)
EVENT = "agent.socket"
_LENGTH = struct.Struct(">I")
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
#: Connections served at the same time; a make may wait for a download.
MAX_CONNECTIONS = 64
#: Seconds a caller may take to send its request.
READ_TIMEOUT = 10.0
#: Seconds before the next try to accept, after one that failed.
_PAUSE = 0.1


def _receive(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = connection.recv(min(65536, length - len(data)))
        if not part:
            raise InputError(EVENT + ".short", "the request is cut off")
        data += part
    return bytes(data)


def _error(event: str, message: str) -> dict[str, Any]:
    return {"ok": False, "error": {"event": event, "message": message}}


class Server:
    """
    :param path: of the socket; an old one is replaced.
    :param group: that may connect; empty: root only.
    :param allowed_uids: whom to listen to.
    :param handle: takes the parsed request, returns the members of the
        answer; raises MHError to refuse.
    """

    def __init__(
        self,
        path: str,
        group: str,
        allowed_uids: Collection[int],
        handle: Callable[[Any], dict[str, Any]],
    ) -> None:
        self._path = path
        self._allowed = frozenset(allowed_uids)
        self._handle = handle
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._stopped = threading.Event()
        self._socket = bound(path)
        if group:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
            os.chmod(path, 0o660)
        self._socket.listen(64)

    def serve(self) -> None:
        """Serve until :meth:`stop`."""
        while not self._stopped.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError as exc:
                if self._stopped.is_set():
                    return
                # e.g. no descriptor left: an agent that ended here would
                # leave its secrets in libvirt
                LOG.error("%s.accept: %s", EVENT, type(exc).__name__)
                self._stopped.wait(_PAUSE)
                continue
            if not self._slots.acquire(blocking=False):
                LOG.warning("%s.busy: a connection was refused", EVENT)
                connection.close()
                continue
            threading.Thread(
                target=self._serve_one, args=(connection,), daemon=True
            ).start()

    def stop(self) -> None:
        self._stopped.set()
        # wakes accept()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _serve_one(self, connection: socket.socket) -> None:
        try:
            with connection:
                answer = canonical_json(self._answer(connection))
                connection.sendall(_LENGTH.pack(len(answer)) + answer)
                self._drain(connection)
        except OSError:
            LOG.info("%s.gone: the caller went away", EVENT)
        finally:
            self._slots.release()

    @staticmethod
    def _drain(connection: socket.socket) -> None:
        """Read what was refused unread: a close would discard the answer
        that the caller has yet to read."""
        connection.settimeout(1.0)
        connection.shutdown(socket.SHUT_WR)
        left = MAX_JSON
        while left > 0 and (part := connection.recv(65536)):
            left -= len(part)

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        try:
            self._check_peer(connection)
            connection.settimeout(READ_TIMEOUT)
            try:
                (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
                if length > MAX_JSON:
                    raise InputError(EVENT + ".size", "too large")
                request = parse_json(_receive(connection, length))
            except TimeoutError as exc:
                raise InputError(EVENT + ".slow", "no request") from exc
            connection.settimeout(None)
            return {"ok": True, **self._handle(request)}
        except MHError as exc:
            LOG.info("%s refused: %s", EVENT, exc)
            return _error(exc.event, exc.message)
        except OSError as exc:
            # of the handler; one of the connection shows in sendall
            LOG.error("%s.os: %s", EVENT, type(exc).__name__)
            gone = refused(exc)
            return _error(gone.event, gone.message)
        except Exception as exc:
            # The last resort: whatever it was, the answer is no.  The
            # traceback names code, never values.
            LOG.critical("agent.internal: %s", type(exc).__name__)
            LOG.debug("%s", "".join(traceback.format_tb(exc.__traceback__)))
            return _error("agent.internal", "an error inside the agent")

    def _check_peer(self, connection: socket.socket) -> None:
        """:raises Denied: ``agent.socket.peer``."""
        raw = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        _pid, uid, _gid = _CREDENTIALS.unpack(raw)
        if uid not in self._allowed:
            raise Denied(EVENT + ".peer", "this user may not ask")
