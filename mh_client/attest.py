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
"""The attestation server: its identity is pinned, its hosts are listed.

Shapes: protocol reference, "Attestation server".
"""

import hmac
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mh_client.config import Config
from mh_client.rest import Rest
from mh_core import akcert, jose
from mh_core.errors import InputError, VerificationError
from mh_core.fields import Fields

EVENT = "client.attest"


@dataclass(frozen=True)
class Authority:
    """What was compared with the pins: whom the tenant trusts.

    :param enroller_pem: certificate of the enroller.
    """

    issuer: str
    url: str
    jwk: jose.Jwk
    enroller_pem: str

    @property
    def enroller(self) -> x509.Certificate:
        return akcert.load_certificate(self.enroller_pem)

    def to_policy(self) -> dict[str, Any]:
        """As a release policy names it."""
        return {"issuer": self.issuer, "url": self.url, "jwk": self.jwk}


class Attest:
    """:param config: where it is, and the pins."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._rest = Rest(config.attest.endpoint, "attestation server")
        self._authority: Authority | None = None

    def authority(self) -> Authority:
        """The server's identity, held against every pin.

        :raises InputError: ``client.config.pin``: a pin is missing.
        :raises VerificationError: ``client.attest.issuer|jwk|enroller``.
        """
        if self._authority is None:
            pins = {
                name: self._config.pin(name)
                for name in ("issuer", "jwk_thumbprint", "enroller_sha256")
            }
            answer = self._rest.call("GET", "/v1", auth=False)
            fields = Fields(answer, EVENT + ".identity")
            found = Authority(
                issuer=fields.text("issuer"),
                url=self._rest.url,
                jwk=jose.public(fields.object("jwk")),
                enroller_pem=_pem(
                    fields.text("enroller_certificate", maximum=8192)
                ),
            )
            fields.text("version", default="")
            fields.end()
            have = {
                "issuer": found.issuer,
                "jwk_thumbprint": jose.thumbprint(found.jwk),
                "enroller_sha256": akcert.fingerprint(found.enroller),
            }
            for name, value in have.items():
                if not hmac.compare_digest(
                    value.encode(), pins[name].encode()
                ):
                    raise VerificationError(
                        f"{EVENT}.{name.split('_')[0]}",
                        f"the attestation server's {name} is {value}, which "
                        "is not the one pinned in the configuration",
                    )
            self._authority = found
        return self._authority

    # -- hosts -----------------------------------------------------------

    def enrol(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._object(self._rest.call("POST", "/v1/hosts", body))

    def hosts(self) -> list[dict[str, Any]]:
        return self._objects(self._rest.call("GET", "/v1/hosts"), "hosts")

    def host(self, name: str) -> dict[str, Any]:
        return self._object(self._rest.call("GET", f"/v1/hosts/{_seg(name)}"))

    def delete_host(self, name: str) -> None:
        self._rest.call("DELETE", f"/v1/hosts/{_seg(name)}")

    def policy(self, group: str) -> dict[str, Any]:
        path = f"/v1/host-policies/{_seg(group)}"
        return self._object(self._rest.call("GET", path))

    def learn_policy(self, group: str, host: str) -> dict[str, Any]:
        path = f"/v1/host-policies/{_seg(group)}/learn"
        return self._object(self._rest.call("POST", path, {"host": host}))

    def reports(self, instance: str) -> list[dict[str, Any]]:
        """VM reports of one instance, newest last."""
        answer = self._rest.call("GET", f"/v1/vm-reports/{_seg(instance)}")
        return self._objects(answer, "reports")

    def _object(self, answer: Any) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise InputError(EVENT + ".answer", "an object is expected")
        return answer

    def _objects(self, answer: Any, name: str) -> list[dict[str, Any]]:
        found = self._object(answer).get(name)
        if not isinstance(found, list) or not all(
            isinstance(item, dict) for item in found
        ):
            raise InputError(EVENT + ".answer", f"no list of {name}")
        return found


def _pem(text: str) -> str:
    """One certificate in its one form, whatever stands around it."""
    certificate = akcert.load_certificate(text)
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def _seg(text: str) -> str:
    """One path segment, whatever a user typed."""
    if not text or text in (".", ".."):
        raise InputError(EVENT + ".name", "a name is expected")
    return quote(text, safe="")
