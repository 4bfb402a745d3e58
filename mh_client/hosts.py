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
"""Hosts of an operator: enrolment, state, host policies."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from mh_client.attest import Attest
from mh_core import akcert
from mh_core.errors import InputError

EVENT = "client.host"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Enrolment:
    """What the operator knows about a host before the server calls it.

    :param listener: ``https://address:port`` of the node's trust agent.
    :param listener_sha256: hex, of the listener certificate's DER form.
    :param ek_sha256: hex, of the EK certificate's DER form: the inventory.
    :param learn: take the host policy from this host's state now.
    """

    host: str
    listener: str
    ek_sha256: str
    listener_sha256: str | None = None
    group: str = "default"
    tags: dict[str, str] = field(default_factory=dict)
    learn: bool = False

    def to_dict(self) -> dict[str, Any]:
        """:raises InputError: ``client.host.digest|listener``."""
        if not self.listener.startswith("https://"):
            raise InputError(
                EVENT + ".listener", "the listener is an https:// URL"
            )
        return {
            "host": self.host,
            "listener": self.listener,
            "listener_sha256": (
                digest(self.listener_sha256) if self.listener_sha256 else None
            ),
            "ek_sha256": digest(self.ek_sha256),
            "group": self.group,
            "tags": self.tags,
            "learn": self.learn,
        }


def digest(text: str) -> str:
    """A SHA-256 as people copy it: colons and capitals are taken.

    :raises InputError: ``client.host.digest``.
    """
    value = text.replace(":", "").strip().lower()
    if not _SHA256.fullmatch(value):
        raise InputError(
            EVENT + ".digest", "a SHA-256 is 64 hexadecimal digits"
        )
    return value


def ek_fingerprint(path: str) -> str:
    """SHA-256 (hex) of an EK certificate in a file, PEM or DER.

    :raises InputError: ``client.host.ek-certificate``.
    """
    try:
        data = Path(path).read_bytes()
        certificate = (
            x509.load_pem_x509_certificate(data)
            if data.lstrip().startswith(b"-----BEGIN")
            else x509.load_der_x509_certificate(data)
        )
    except (OSError, ValueError) as exc:
        raise InputError(
            EVENT + ".ek-certificate",
            f"{path} is not a certificate that can be read",
        ) from exc
    return akcert.fingerprint(certificate)


class Hosts:
    def __init__(self, attest: Attest) -> None:
        self._attest = attest

    def enrol(self, enrolment: Enrolment) -> dict[str, Any]:
        return self._attest.enrol(enrolment.to_dict())

    def all(self) -> list[dict[str, Any]]:
        return self._attest.hosts()

    def show(self, name: str) -> dict[str, Any]:
        return self._attest.host(name)

    def delete(self, name: str) -> None:
        self._attest.delete_host(name)

    def policy(self, group: str) -> dict[str, Any]:
        return self._attest.policy(group)

    def learn(self, name: str, group: str | None = None) -> dict[str, Any]:
        """Learn the policy of the host's group from the host's state."""
        if group is None:
            group = str(self._attest.host(name).get("group", "default"))
        return self._attest.learn_policy(group, name)
