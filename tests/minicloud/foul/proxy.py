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
"""A proxy in front of the key server: honest, or a man in the middle.

It stands where hosts ask for keys, so its certificate is good and its
origin is the key server's own; the key server listens behind it.

relay
    passes everything on, unchanged.
swap-keys
    passes everything on, and answers a release with a JWE it made itself:
    to the bind key in the evidence, with the right request digest, but with
    its own manifest keys, transport key and disk keys.
extra
    adds manifest keys of its own beside the JWE.
redirect
    sends the host to the key server's own address.
huge
    answers a release with 64 MiB.
"""

import json
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import requests

from mh_core import jose
from mh_core.encoding import parse_json
from mh_core.errors import MHError
from mh_core.evidence import Evidence
from mh_core.fields import Fields
from mh_core.payload import ReleasePayload
from mh_core.request import KeyRequest
from mh_core.secret import Secret
from mh_core.tpm.public import Public
from tests.minicloud.foul.server import Answer, Request, arguments, serve

MODES = ("relay", "swap-keys", "extra", "redirect", "huge")
_HOP = frozenset(
    (
        *("connection", "content-length", "date", "host", "keep-alive"),
        *("server", "te", "trailer", "transfer-encoding", "upgrade"),
    )
)


class Proxy:
    """
    :param upstream: URL of the real key server.
    :param ca_file: who vouches for it.
    :param mode: one of :data:`MODES`.
    :param manifest_keys: public keys to swap in; its own if empty.
    """

    def __init__(
        self,
        upstream: str,
        ca_file: Path,
        mode: str = "relay",
        manifest_keys: Sequence[jose.Jwk] = (),
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"no such mode: {mode}")
        self._upstream = upstream.rstrip("/")
        self._ca_file = str(ca_file)
        self.mode = mode
        #: Signs manifests that its payloads vouch for.
        self.key = jose.generate_key()
        self.manifest_keys = tuple(
            jose.public(key) for key in manifest_keys or [self.key]
        )
        self.dek = Secret(secrets.token_bytes(32))

    def answer(self, request: Request) -> Answer:
        if self.mode == "redirect":
            return Answer(
                302, b"", {"Location": self._upstream + request.path}
            )
        answer = self._relay(request)
        if request.method != "POST" or not request.path.endswith("/release"):
            return answer
        if self.mode == "swap-keys":
            try:
                return Answer.json({"jwe": self.forge(request.body)})
            except MHError as error:
                return Answer.error(400, error.event)
        if self.mode == "extra" and answer.status == 200:
            document = json.loads(answer.body)
            document["manifest_keys"] = list(self.manifest_keys)
            return Answer.json(document)
        if self.mode == "huge":
            return Answer(200, b'{"jwe": "' + b"A" * (64 << 20) + b'"}')
        return answer

    def _relay(self, request: Request) -> Answer:
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in _HOP
        }
        try:
            # Not a session of all threads: requests' are not for that.
            with requests.Session() as session:
                session.trust_env = False
                got = session.request(
                    request.method,
                    self._upstream + request.path,
                    data=request.body,
                    headers=headers,
                    verify=self._ca_file,
                    timeout=30,
                    allow_redirects=False,
                )
        except requests.RequestException:
            return Answer.error(502, "proxy.upstream")
        return Answer(
            got.status_code,
            got.content,
            {
                name: value
                for name, value in got.headers.items()
                if name.lower() not in _HOP | {"content-encoding"}
            },
        )

    def forge(self, body: bytes) -> str:
        """A release of its own making to the host that asked.

        :raises MHError: not the body of a release request.
        """
        fields = Fields(parse_json(body), "proxy.body")
        request = KeyRequest.parse(fields.object("request"))
        evidence = Evidence.parse(fields.object("evidence"))
        digest = request.digest()
        payload = ReleasePayload(
            purpose=request.purpose,
            key_id=request.key_id,
            dek=self.dek,
            overlay_keys={
                disk.name: Secret(secrets.token_bytes(32))
                for disk in request.disks
            },
            manifest_keys=self.manifest_keys,
            manifest_digests=(request.manifest_digest,),
            kms_origin=request.kms_origin,
            transport_jwk=jose.public(self.key),
            lease=0,
            request_digest=digest,
            issued_at=int(time.time()),
        )
        bind = Public.parse(evidence.bind_public)
        return jose.wrap(payload.to_bytes(), bind.jwk(), digest)


def main() -> int:
    parser = arguments("python -m tests.minicloud.foul.proxy")
    parser.add_argument("--upstream", required=True, help="the key server")
    parser.add_argument(
        "--ca", type=Path, required=True, help="who vouches for it, PEM"
    )
    parser.add_argument("--mode", choices=MODES, default="relay")
    parser.add_argument(
        "--manifest-keys",
        type=Path,
        help="JSON list of public keys (JWK) to swap in; default: its own",
    )
    options = parser.parse_args()
    keys = []
    if options.manifest_keys:
        keys = json.loads(options.manifest_keys.read_text())
    return serve(
        Proxy(options.upstream, options.ca, options.mode, keys), options
    )


if __name__ == "__main__":
    sys.exit(main())
