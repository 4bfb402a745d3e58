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
"""Where this server may connect to: an operator's list of networks."""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from mh_core.errors import Denied, InputError, Unavailable

EVENT = "attest.listener.address"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Sequence[str]]


@dataclass(frozen=True)
class Address:
    """A listener's address after the check.

    :param host: name or literal, as in its certificate.
    :param ip: what is connected to; no second look-up happens.
    """

    host: str
    port: int
    ip: str


def resolve(host: str, port: int) -> list[str]:
    """:raises Unavailable: ``attest.listener.resolve``."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise Unavailable(
            "attest.listener.resolve", "the listener's name is not known"
        ) from exc
    return [str(entry[4][0]) for entry in found]


def networks(texts: Sequence[str]) -> list[Network]:
    """:raises InputError: ``attest.enrolment.networks``."""
    try:
        return [ipaddress.ip_network(text.strip()) for text in texts]
    except ValueError as exc:
        raise InputError(
            "attest.enrolment.networks",
            "[enrolment] listener_networks has an entry that is no CIDR",
        ) from exc


def split(url: str) -> tuple[str, int]:
    """Host and port of an https origin and nothing else.

    :raises InputError: ``attest.listener.address``.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise InputError(EVENT, "not a URL") from exc
    if (
        parts.scheme != "https"
        or not host
        or parts.username is not None
        or parts.password is not None
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
        or not host.isascii()
        or "%" in host
    ):
        raise InputError(EVENT, "https://<host>[:<port>] is expected")
    return host, 443 if port is None else port


def check(
    url: str, allowed: Sequence[Network], resolver: Resolver = resolve
) -> Address:
    """Resolve a listener's URL, once, and hold it against the list.

    :raises InputError: ``attest.listener.address``: not an https origin.
    :raises Denied: ``attest.listener.address``: outside the networks.
    :raises Unavailable: ``attest.listener.resolve``.
    """
    host, port = split(url)
    try:
        texts: Sequence[str] = [str(ipaddress.ip_address(host))]
    except ValueError:
        texts = resolver(host, port)
    for text in texts:
        ip = ipaddress.ip_address(text)
        # One address outside is enough: another look-up may give it.
        if not any(ip in network for network in allowed):
            raise Denied(
                EVENT, "the listener is outside [enrolment] listener_networks"
            )
    if not texts:
        raise Denied(EVENT, "the listener's name has no address")
    return Address(host, port, texts[0])
