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
"""A client of the Network Block Device protocol that only reads.

Source: the protocol's specification (NetworkBlockDevice/nbd, doc/proto.md):
fixed newstyle negotiation with ``NBD_OPT_GO``, simple replies.
"""

import socket
import struct

from mh_core.errors import Unavailable

EVENT = "reader.nbd"
_OPTION_MAGIC = 0x49484156454F5054
_REPLY_MAGIC = 0x0003E889045565A9
_OPT_GO, _REP_ACK, _REP_INFO = 7, 1, 3
_REQUEST, _SIMPLE = 0x25609513, 0x67446698
_MOST_REPLY = 4096


class Nbd:
    """An export, opened.

    :param connection: to the server; closed by :meth:`close`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._cookie = 0
        self.size = self._negotiate()

    def close(self) -> None:
        self._socket.close()

    def _take(self, count: int) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self._socket.recv_into(view)
            if not got:
                raise OSError("closed")
            view = view[got:]
        return bytes(data)

    def _negotiate(self) -> int:
        try:
            magic, option, flags = struct.unpack(">8sQH", self._take(18))
            if magic != b"NBDMAGIC" or option != _OPTION_MAGIC:
                raise OSError("not NBD")
            if not flags & 1:
                raise OSError("an old server")
            self._socket.sendall(struct.pack(">I", 1 | flags & 2))
            data = struct.pack(">IH", 0, 0)
            self._socket.sendall(
                struct.pack(">QII", _OPTION_MAGIC, _OPT_GO, len(data)) + data
            )
            size = -1
            while True:
                magic, _option, kind, length = struct.unpack(
                    ">QIII", self._take(20)
                )
                if magic != _REPLY_MAGIC or length > _MOST_REPLY:
                    raise OSError("not NBD")
                body = self._take(length)
                if kind == _REP_ACK and size >= 0:
                    return size
                if kind != _REP_INFO:
                    raise OSError("the export is refused")
                if length == 12 and body[:2] == b"\0\0":
                    (size,) = struct.unpack_from(">Q", body, 2)
        except OSError as exc:
            raise Unavailable(
                EVENT + ".negotiate", f"the block export fails: {exc}"
            ) from exc

    def read(self, offset: int, count: int) -> bytes:
        """
        :raises Unavailable: ``reader.nbd.read``.
        """
        self._cookie += 1
        try:
            self._socket.sendall(
                struct.pack(
                    ">IHHQQI", _REQUEST, 0, 0, self._cookie, offset, count
                )
            )
            magic, error, cookie = struct.unpack(">IIQ", self._take(16))
            if magic != _SIMPLE or cookie != self._cookie:
                raise OSError("not NBD")
            if error:
                raise OSError(error, "the disk cannot be read")
            return self._take(count)
        except OSError as exc:
            raise Unavailable(
                EVENT + ".read", f"the block export fails: {exc}"
            ) from exc
