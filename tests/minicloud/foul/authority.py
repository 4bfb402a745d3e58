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
"""An attestation server that calls every host trusted.

Its signing key is one that a tenant pinned: that of an operator who lies, or
a stolen one.  A key server must still verify the evidence for itself.
"""

import json
import os
import sys
import time
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from mh_core import jose
from mh_core.akcert import load_certificate
from mh_core.encoding import parse_json
from mh_core.errors import MHError
from mh_core.evidence import Evidence
from mh_core.fields import Fields
from mh_core.tpm.public import Public
from tests.fixture import softtpm
from tests.minicloud.foul.server import Answer, Request, arguments, serve

#: Who it says the host is where the evidence has no readable certificate.
NOBODY = ("node1", "00000000-0000-4000-8000-000000000000")


class Authority:
    """Answers as an attestation server does, without a look.

    :param issuer: the name it signs under.
    :param key: its private signing key.
    :param level: what it says of everybody.
    """

    def __init__(
        self, issuer: str, key: jose.Jwk, level: str = "trusted"
    ) -> None:
        self._signer = softtpm.Authority(issuer)
        self._signer.key = key
        self._level = level

    def answer(self, request: Request) -> Answer:
        try:
            if (request.method, request.path) == ("GET", "/v1"):
                return Answer.json(self.document())
            if (request.method, request.path) == ("POST", "/v1/appraisals"):
                return Answer.json({"result": self.result(request.body)})
        except MHError as error:
            return Answer.error(400, error.event)
        return Answer.error(404, "attest.internal")

    def document(self) -> dict[str, object]:
        return {
            "issuer": self._signer.issuer,
            "jwk": jose.public(self._signer.key),
            "enroller_certificate": "",
            "version": "1",
        }

    def result(self, body: bytes) -> str:
        """A word of praise for whatever evidence there is.

        :raises InputError: not the body of an appraisal.
        """
        fields = Fields(parse_json(body), "attest.appraise.body")
        evidence = Evidence.parse(fields.object("evidence"))
        host, host_id = _subject(evidence)
        return self._signer.result(
            audience=fields.text("audience"),
            nonce=fields.b64u("nonce", 32),
            request_digest=fields.hex("request_digest", 32),
            host=host,
            host_id=host_id,
            bind_jwk=Public.parse(evidence.bind_public).jwk(),
            now=int(time.time()),
            level=self._level,
        )


def _subject(evidence: Evidence) -> tuple[str, str]:
    """The name in the AK certificate, whoever issued it."""
    try:
        certificate = load_certificate(evidence.ak_certificate)
    except MHError:
        return NOBODY
    hosts = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    host = str(hosts[0].value) if hosts else NOBODY[0]
    try:
        names = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        names = []
    host_id = names[0].removeprefix("urn:uuid:") if names else NOBODY[1]
    return host, host_id


def signing_key(path: Path) -> jose.Jwk:
    """The key in a file (JWK, 0600), made there first if there is none."""
    if not path.exists():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(jose.generate_key(), file)
    key: jose.Jwk = json.loads(path.read_text())
    return key


def main() -> int:
    parser = arguments("python -m tests.minicloud.foul.authority")
    parser.add_argument("--issuer", required=True)
    parser.add_argument(
        "--signing-key",
        type=Path,
        required=True,
        help="JWK; made if not there",
    )
    parser.add_argument("--level", default="trusted")
    options = parser.parse_args()
    key = signing_key(options.signing_key)
    return serve(Authority(options.issuer, key, options.level), options)


if __name__ == "__main__":
    sys.exit(main())
