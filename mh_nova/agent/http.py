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

import ipaddress
import re
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

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


@dataclass
class Server:
    """A connection to one origin, kept open for the requests of one job.

    :param origin: already found on the operator's list.
    :param address: from :func:`resolve`.
    :param ca_file: PEM; empty: the system's.
    :param timeout: seconds for one request as a whole.
    :param who: what its event ids start with, e.g. ``agent.kms``.
    """

    origin: Origin
    address: str
    ca_file: str
    timeout: int
    who: str
    _pool: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        timeout = urllib3.Timeout(self.timeout)
        if self.origin.scheme == "http":
            self._pool = urllib3.HTTPConnectionPool(
                self.address,
                self.origin.port,
                timeout=timeout,
                maxsize=1,
                retries=False,
            )
            return
        self._pool = urllib3.HTTPSConnectionPool(
            self.address,
            self.origin.port,
            timeout=timeout,
            maxsize=1,
            retries=False,
            cert_reqs="CERT_REQUIRED",
            ca_certs=self.ca_file or None,
            ssl_minimum_version=ssl.TLSVersion.TLSv1_2,
            server_hostname=self.origin.host,
            assert_hostname=self.origin.host,
        )

    def post(self, path: str, body: bytes, content_type: str) -> Answer:
        """:raises Denied: ``<who>.redirect``, ``<who>.answer``.
        :raises Unavailable: ``<who>.unavailable``."""
        deadline = time.monotonic() + self.timeout
        name = str(self.origin)
        try:
            response = self._pool.urlopen(
                "POST",
                path,
                body=body,
                headers={
                    "Host": name.split("://", 1)[1],
                    "Content-Type": content_type,
                    "Accept": "application/json, application/jose",
                    "Accept-Encoding": "identity",
                    "User-Agent": "mh-agent",
                },
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                return self._read(response, deadline)
            finally:
                response.release_conn()
        except (HTTPError, OSError) as exc:
            self.close()
            raise Unavailable(
                self.who + ".unavailable",
                f"{name} does not answer ({type(exc).__name__})",
            ) from exc

    def _read(self, response: Any, deadline: float) -> Answer:
        if 300 <= response.status < 400:
            self.close()
            raise Denied(
                self.who + ".redirect",
                f"{self.origin} answers with a redirect; none is followed",
            )
        body = b""
        while chunk := response.read(65536):
            body += chunk
            if len(body) > MAX_ANSWER:
                response.close()
                raise Denied(
                    self.who + ".answer", f"{self.origin} answers too much"
                )
            if time.monotonic() > deadline:
                response.close()
                raise Unavailable(
                    self.who + ".unavailable", f"{self.origin} is too slow"
                )
        return Answer(int(response.status), body)

    def close(self) -> None:
        self._pool.close()
