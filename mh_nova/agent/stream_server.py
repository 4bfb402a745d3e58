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
"""The socket of ``mh-agent stream``: one request with two descriptors.

A socket of its own, so that nova's user, who may talk to the agent, cannot
ask for an opened image.
"""

import contextlib
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Collection
from typing import Any

from mh_core.encoding import MAX_JSON, canonical_json, parse_json
from mh_core.errors import Denied, InputError, MHError
from mh_core.fields import Fields
from mh_nova.agent.parts import Parts
from mh_nova.agent.store import InstanceRecord
from mh_nova.agent.stream import Streams
from mh_nova.agent.unix_socket import bound

LOG = logging.getLogger(__name__)
EVENT = "agent.stream"
_LENGTH = struct.Struct(">I")
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_READ_TIMEOUT = 10.0


def read_request(value: Any, host: str) -> tuple[InstanceRecord, str]:
    """The record of one stream, and the launch ticket.

    :param host: this host's name in the cloud.
    :raises InputError: ``agent.stream.request``.
    """
    fields = Fields(value, EVENT + ".request")
    record = InstanceRecord(
        instance=fields.uuid("instance"),
        image=fields.uuid("image"),
        project=fields.text("project", maximum=64),
        user=fields.text("user", maximum=64),
        host=fields.text("host", maximum=255, default=host),
        key_url=fields.text("key_url", maximum=2048),
        key_id=fields.uuid("key_id"),
        manifest=fields.text(
            "manifest", maximum=256 * 1024, pattern=r"[A-Za-z0-9_.\-]+"
        ),
        compat=fields.boolean("compat", False),
        user_data_digest="",
        disks=(),
    )
    ticket = fields.text("ticket", pattern=r"[A-Za-z0-9_\-]{0,64}", default="")
    fields.end()
    return record, ticket


class StreamServer:
    """
    :param path: of the socket; an old one is replaced.
    :param allowed_uids: whom opened images are given to.
    """

    def __init__(
        self,
        path: str,
        allowed_uids: Collection[int],
        host: str,
        streams: Streams,
    ) -> None:
        self._path = path
        self._allowed = frozenset(allowed_uids)
        self._host = host
        self._streams = streams
        self._stopped = threading.Event()
        self._socket = bound(path)
        self._socket.listen(8)
        self._thread = threading.Thread(
            target=self._serve, name="stream-accept", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._streams.stop()

    def _serve(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                self._stopped.wait(0.1)
                continue
            threading.Thread(
                target=self._one, args=(connection,), daemon=True
            ).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            answer = canonical_json(self._answer(connection))
            try:
                connection.sendall(_LENGTH.pack(len(answer)) + answer)
                # what was refused unread: a close would discard the answer
                connection.settimeout(1.0)
                connection.shutdown(socket.SHUT_WR)
                left = MAX_JSON
                while left > 0 and (part := connection.recv(65536)):
                    left -= len(part)
            except OSError:
                LOG.info("%s.gone: the caller went away", EVENT)

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        fds: list[int] = []
        try:
            self._check_peer(connection)
            connection.settimeout(_READ_TIMEOUT)
            value = self._request(connection, fds)
            record, ticket = read_request(value, self._host)
            done = self._streams.open(
                record, ticket, fds[0], fds[1], lambda: self._gone(connection)
            )
            return {"ok": True, **done}
        except MHError as exc:
            LOG.info("%s refused: %s", EVENT, exc)
            return _error(exc.event, exc.message)
        except OSError as exc:
            LOG.error("%s.os: %s", EVENT, type(exc).__name__)
            return _error(EVENT + ".os", "the host refused an operation")
        except Exception as exc:
            # the last resort: whatever it was, the answer is no
            LOG.critical("agent.internal: %s", type(exc).__name__)
            return _error("agent.internal", "an error inside the agent")
        finally:
            for fd in fds:
                os.close(fd)

    def _request(self, connection: socket.socket, fds: list[int]) -> Any:
        """The request; its descriptors come with the length.

        :raises InputError: ``agent.stream.request``.
        """
        try:
            head, found, _flags, _peer = socket.recv_fds(
                connection, _LENGTH.size, 2
            )
            fds += found
            if len(head) != _LENGTH.size or len(fds) != 2:
                raise InputError(
                    EVENT + ".request", "two descriptors are expected"
                )
            for fd in fds:
                os.set_inheritable(fd, False)
            (length,) = _LENGTH.unpack(head)
            if length > MAX_JSON:
                raise InputError(EVENT + ".request", "too large")
            data = bytearray()
            while len(data) < length:
                part = connection.recv(min(65536, length - len(data)))
                if not part:
                    raise InputError(EVENT + ".request", "cut off")
                data += part
        except TimeoutError as exc:
            raise InputError(EVENT + ".request", "no request") from exc
        return parse_json(bytes(data))

    def _gone(self, connection: socket.socket) -> bool:
        poll = select.poll()
        poll.register(connection, select.POLLHUP | select.POLLRDHUP)
        return self._stopped.is_set() or bool(poll.poll(0))

    def _check_peer(self, connection: socket.socket) -> None:
        """:raises Denied: ``agent.stream.peer``."""
        raw = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        _pid, uid, _gid = _CREDENTIALS.unpack(raw)
        if uid not in self._allowed:
            raise Denied(EVENT + ".peer", "this user may not ask")


def build(parts: Parts) -> StreamServer | None:
    """The server, where ``[stream] enabled``."""
    options = parts.conf.stream
    if not options.enabled:
        return None
    return StreamServer(
        options.socket,
        options.allowed_uids,
        parts.conf.agent.host,
        Streams(parts),
    )


def _error(event: str, message: str) -> dict[str, Any]:
    return {"ok": False, "error": {"event": event, "message": message}}
