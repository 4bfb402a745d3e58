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
"""One bounded HTTP request to a server that the operator listed.

Not a browser: no redirect is followed, no proxy taken from the environment,
no address connected to but the one that was checked, no more than
:data:`MAX_ANSWER` bytes read, and no longer than the time allowed.
"""

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

from mh_core.errors import Denied, Unavailable

MAX_ANSWER = 256 * 1024
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.\-]{0,252}[A-Za-z0-9])?")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port of a server; ``str()`` is its name."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"https": 443, "http": 80}[self.scheme]
        tail = "" if self.port == usual else f":{self.port}"
        return f"{self.scheme}://{host}{tail}"


def split_url(url: str, event: str) -> tuple[Origin, str]:
    """Origin and path of a URL without user, query or fragment.

    :raises Denied: ``event``.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise Denied(event, "not a URL") from exc
    if (
        parts.scheme not in ("https", "http")
        or host is None
        or "@" in parts.netloc
        or "?" in url
        or "#" in url
        or "\\" in url
        or any(ord(c) <= 32 or ord(c) > 126 for c in url)
    ):
        raise Denied(event, "not a plain https URL")
    if ":" in host:
        try:
            host = str(ipaddress.IPv6Address(host))
        except ValueError as exc:
            raise Denied(event, "not a host name") from exc
    elif not _HOST.fullmatch(host):
        raise Denied(event, "not a host name")
    default = 443 if parts.scheme == "https" else 80
    return Origin(parts.scheme, host, port or default), parts.path


def _refused(address: _Address, loopback: bool) -> bool:
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (address.is_reserved and not address.is_loopback)
        # the IPv6 form of the metadata service
        or str(address) == "fd00:ec2::254"
        or (address.is_loopback and not loopback)
    )


def resolve(origin: Origin, event: str, loopback: bool) -> str:
    """The address to connect to, checked.

    :param loopback: a loopback address is allowed.
    :raises Denied: ``event``: any of the addresses is not allowed.
    :raises Unavailable: ``event``: the name is not known.
    """
    try:
        found = socket.getaddrinfo(
            origin.host, origin.port, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as exc:
        raise Unavailable(event, f"{origin} has no address") from exc
    addresses = [str(entry[4][0]) for entry in found]
    for text in addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError as exc:
            raise Denied(event, f"{origin} has an odd address") from exc
        if _refused(address, loopback):
            raise Denied(
                event, f"{origin} is at an address that is never contacted"
            )
    if not addresses:
        raise Unavailable(event, f"{origin} has no address")
    return addresses[0]


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


class Server:
    """A connection to one origin, kept open for the requests of one job.

    :param origin: already found on the operator's list.
    :param address: from :func:`resolve`.
    :param ca_file: PEM; empty: the system's.
    :param timeout: seconds for one request as a whole.
    :param who: what its event ids start with, e.g. ``agent.kms``.
    """

    def __init__(
        self,
        origin: Origin,
        address: str,
        ca_file: str,
        timeout: int,
        who: str,
    ) -> None:
        self._origin = origin
        self._address = address
        self._ca_file = ca_file
        self._timeout = timeout
        self._who = who
        self._socket: socket.socket | None = None
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: bytes, content_type: str) -> Answer:
        """:raises Denied: ``<who>.redirect``, ``<who>.answer``.
        :raises Unavailable: ``<who>.unavailable``."""
        # A timeout of the socket is one for each read: a server that sends
        # a byte now and then would never meet it.
        watch = threading.Timer(self._timeout, self._cut)
        watch.daemon = True
        watch.start()
        try:
            return self._post(path, body, content_type)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            self.close()
            raise Unavailable(
                self._who + ".unavailable",
                f"{self._origin} does not answer ({type(exc).__name__})",
            ) from exc
        finally:
            watch.cancel()

    def _post(self, path: str, body: bytes, content_type: str) -> Answer:
        if self._connection is None or self._connection.sock is None:
            self._connection = self._connect()
        self._connection.request(
            "POST",
            path,
            body,
            {
                "Host": str(self._origin).split("://", 1)[1],
                "Content-Type": content_type,
                "Accept": "application/json, application/jose",
                "Accept-Encoding": "identity",
                "User-Agent": "mh-agent",
            },
        )
        response = self._connection.getresponse()
        if 300 <= response.status < 400:
            self.close()
            raise Denied(
                self._who + ".redirect",
                f"{self._origin} answers with a redirect; none is followed",
            )
        data = response.read(MAX_ANSWER + 1)
        if len(data) > MAX_ANSWER:
            self.close()
            raise Denied(
                self._who + ".answer", f"{self._origin} answers too much"
            )
        if response.length:
            raise http.client.IncompleteRead(data)
        return Answer(response.status, data)

    def _connect(self) -> http.client.HTTPConnection:
        """To the checked address; verified for the origin's name."""
        self.close()
        plain = socket.create_connection(
            (self._address, self._origin.port), self._timeout
        )
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = plain
        if self._origin.scheme == "https":
            context = ssl.create_default_context(cafile=self._ca_file or None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            tls = context.wrap_socket(
                plain,
                server_hostname=self._origin.host,
                do_handshake_on_connect=False,
            )
            self._socket = tls
            tls.do_handshake()
        connection = http.client.HTTPConnection(
            self._origin.host, self._origin.port
        )
        # an open socket is used as it is; a closed one is not opened again
        connection.auto_open = 0
        connection.sock = self._socket
        return connection

    def _cut(self) -> None:
        """The time is over: whoever waits for this socket is woken."""
        open_socket = self._socket
        if open_socket is not None:
            with contextlib.suppress(OSError):
                # of the socket below: TLS would wait for its own farewell
                socket.socket.shutdown(open_socket, socket.SHUT_RDWR)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
