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

"""The stand-alone server, from the first command to its end."""

import base64
import json
import pathlib
import signal
import socket
import ssl
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from mh_core import jose
from mh_core.encoding import MAX_JSON, b64u, unb64u
from mh_core.manifest import Manifest
from mh_core.payload import ReleasePayload
from mh_core.request import KeyRequest
from tests.fixture import softtpm
from tests.functional.mh_kms.authority import Answer, LyingServer, say
from tests.functional.mh_kms.server import KmsServer, environment, gone
from tests.functional.mh_kms.tls import Ca

DEK = bytes(range(100, 132))
PROJECT = "cloud-project"


@dataclass
class Site:
    kms: KmsServer
    server: LyingServer
    authority: softtpm.Authority
    tpm: softtpm.SoftTpm
    signer: jose.Jwk
    token: str

    def appraise(self, path: str, body: dict[str, Any]) -> Answer:
        """Believes everything."""
        result = self.authority.result(
            audience=body["audience"],
            nonce=unb64u(body["nonce"]),
            request_digest=bytes.fromhex(body["request_digest"]),
            host=self.tpm.host,
            host_id=self.tpm.host_id,
            bind_jwk=self.tpm.bind.jwk(),
            now=int(time.time()),
        )
        return say(200, {"result": result})

    def own(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.kms.call(method, path, body, self.token)
        assert answer.status_code < 300, answer.text
        return answer.json() if answer.content else None

    def key(self, **policy: Any) -> str:
        info = self.kms.call("GET", "/v1").json()
        document = self.own(
            "POST",
            "/v1/keys",
            {
                "name": "k",
                "jwe": jose.wrap(
                    DEK, info["transport_jwk"], b"mh/key-upload/v1"
                ),
                "policy": {
                    "version": 1,
                    "authorities": [self.authority.to_dict()],
                    "enrollers": [self.tpm.enroller.pem],
                    "projects": [PROJECT],
                    "manifest_keys": [jose.public(self.signer)],
                }
                | policy,
            },
        )
        return str(document["id"])

    def launch(self, key_id: str) -> KeyRequest:
        manifest = Manifest(
            image=str(uuid.uuid4()),
            key_id=key_id,
            format="qcow2+luks",
            size=1,
            virtual_size=512,
            sha256="11" * 32,
            sha512="22" * 64,
        ).sign(self.signer)
        path = f"/v1/keys/{key_id}"
        digest = self.own("POST", path + "/manifests", {"manifest": manifest})[
            "digest"
        ]
        ticket = self.own(
            "POST", path + "/tickets", {"manifest_digests": [digest]}
        )["ticket"]
        return softtpm.key_request(
            key_id, self.kms.origin, manifest_digest=digest, ticket=ticket
        )

    def release(self, request: KeyRequest) -> Any:
        path = f"/v1/keys/{request.key_id}"
        challenge = self.kms.call("POST", path + "/challenge", {})
        assert challenge.status_code == 200, challenge.text
        nonce = unb64u(challenge.json()["nonce"])
        evidence = self.tpm.release_evidence(nonce, request)
        return self.kms.call(
            "POST",
            path + "/release",
            {
                "nonce": b64u(nonce),
                "request": request.to_dict(),
                "evidence": evidence.to_dict(),
            },
        )

    def raw(self, data: bytes) -> bytes:
        """Bytes to the server as they are."""
        context = ssl.create_default_context(cafile=str(self.kms.ca.file))
        with (
            socket.create_connection(("127.0.0.1", self.kms.port), 10) as tcp,
            context.wrap_socket(tcp, server_hostname="127.0.0.1") as tls,
        ):
            tls.sendall(data)
            return tls.recv(65536)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("kms")
    ca = Ca(tmp_path_factory.mktemp("ca"))
    server = LyingServer(ca, lambda path, body: say(500, {}))
    kms = KmsServer(folder, ca, server.origin)
    kms.manage("db", "sync")
    out = folder / "owner.token"
    argv = ("token", "create", "--name", "o", "--project", PROJECT)
    kms.manage(*argv, "--roles", "owner", "--out", str(out))
    one = Site(
        kms,
        server,
        softtpm.Authority(url=server.origin),
        softtpm.SoftTpm(softtpm.Enroller()),
        jose.generate_key(),
        out.read_text().strip(),
    )
    server.script = one.appraise
    kms.start()
    yield one
    kms.end()
    server.stop()


def test_release(site: Site) -> None:
    request = site.launch(site.key())
    answer = site.release(request)
    assert answer.status_code == 200, answer.text
    plaintext = jose.unwrap(
        answer.json()["jwe"], site.tpm.bind_jwk, request.digest()
    )
    payload = ReleasePayload.parse(plaintext)
    assert payload.dek.reveal() == DEK
    records = site.own("GET", f"/v1/keys/{request.key_id}/audit")["records"]
    assert records[-1]["event"] == "kms.release.granted"
    assert records[-1]["audit"] == payload.audit
    assert "audit" not in site.kms.manage("audit", "verify")


def test_authority_is_needed(site: Site) -> None:
    request = site.launch(site.key())
    site.server.script = lambda path, body: say(503, {})
    answer = site.release(request)
    assert answer.status_code == 503
    assert answer.json()["error"]["event"] == "kms.release.authority"
    refusal = {"error": {"event": "attest.appraise.host-policy"}}
    site.server.script = lambda path, body: say(403, refusal)
    answer = site.release(request)
    assert answer.status_code == 403
    assert answer.json()["error"]["event"] == "kms.release.attestation"
    records = site.own("GET", f"/v1/keys/{request.key_id}/audit")["records"]
    assert records[-1]["detail"] == "attest.appraise.host-policy"
    site.server.script = site.appraise
    assert site.release(request).status_code == 200


def test_bare_ak(site: Site) -> None:
    key_id = site.key(compat=True, tickets="none")
    request = site.launch(key_id)

    def fetch(path: str, body: dict[str, Any]) -> Answer:
        assert path == "/v1/compat/appraisals"
        assert body["ak_pem"] == site.tpm.ak.pem()
        nonce = unb64u(body["nonce"])
        digest = {"request_digest": request.digest().hex()}
        _status, _headers, data = site.appraise(path, body | digest)
        return say(
            200,
            {
                "result": json.loads(data)["result"],
                "request": request.to_dict(),
                "evidence": site.tpm.release_evidence(
                    nonce, request
                ).to_dict(),
            },
        )

    site.server.script = fetch
    answer = requests.post(
        f"{site.kms.origin}/data-encryption-key/request/{key_id}",
        data=site.tpm.ak.pem(),
        verify=str(site.kms.ca.file),
        timeout=20,
    )
    site.server.script = site.appraise
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/jose"
    plaintext = jose.unwrap(answer.text, site.tpm.bind_jwk, request.digest())
    assert ReleasePayload.parse(plaintext).dek.reveal() == DEK


def test_many_at_once(site: Site) -> None:
    """Different launches do not hinder each other."""
    requests_ = [site.launch(site.key()) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        codes = [a.status_code for a in pool.map(site.release, requests_)]
    assert codes == [200] * 4


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: x", b"400"),
        (b"Content-Length: -1", b"400"),
        (b"Transfer-Encoding: chunked", b"400"),
        (b"Content-Length: %d" % (MAX_JSON + 1), b"413"),
        (b"Content-Length: 2\r\nContent-Length: 3", b"400"),
    ],
)
def test_bad_lengths(site: Site, head: bytes, status: bytes) -> None:
    answer = site.raw(
        b"POST /v1/keys/%s/challenge HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n{}"
        % (str(uuid.uuid4()).encode(), head)
    )
    assert answer.split(b" ", 2)[1] == status, answer
    assert b"Traceback" not in answer


def test_a_body_too_large(site: Site) -> None:
    answer = site.raw(
        b"POST /v1/keys HTTP/1.1\r\nHost: x\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"
        % (site.token.encode(), MAX_JSON + 1)
    )
    assert answer.split(b" ", 2)[1] == b"413"
    assert b"kms.api.size" in answer


def test_old_tls_is_refused(site: Site) -> None:
    context = ssl.create_default_context(cafile=str(site.kms.ca.file))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", site.kms.port), 10) as tcp,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(tcp, server_hostname="127.0.0.1")


def test_nothing_secret_lies_about(site: Site) -> None:
    """Log at debug level, database, environment, command lines."""
    request = site.launch(site.key())
    answer = site.release(request)
    assert site.kms.process is not None
    places = site.kms.log.read_bytes()
    for path in site.kms.folder.glob("kms.sqlite*"):
        places += path.read_bytes()
    for pid in (site.kms.process.pid, *site.kms.children()):
        places += environment(pid)
    kek = (site.kms.folder / "kek").read_bytes()
    for secret in (DEK, kek):
        for form in (
            secret,
            secret.hex().encode(),
            base64.b64encode(secret).rstrip(b"="),
            b64u(secret).encode(),
        ):
            assert form not in places
    for text in (
        site.token,
        request.ticket,
        answer.json()["jwe"],
        "mha_relying-party",
    ):
        assert text.encode() not in places
    # the places are the right ones
    assert PROJECT.encode() in places
    assert b"POST /v1/keys/" in places
    assert b"mh_kms.cmd.serve" in places


# -- its end -------------------------------------------------------------


@pytest.fixture
def own(site: Site, tmp_path: pathlib.Path) -> Iterator[KmsServer]:
    one = KmsServer(tmp_path, site.kms.ca, site.server.origin)
    one.manage("db", "sync")
    one.start()
    yield one
    one.end(signal.SIGKILL)


def test_ends_by_sigterm(own: KmsServer) -> None:
    children = own.children()
    assert children
    assert own.end(signal.SIGTERM) == 0
    assert gone(children, 1)
    # and starts again on what it left
    own.start()
    assert own.end(signal.SIGINT) == 0


def test_children_end_with_the_parent(own: KmsServer) -> None:
    children = own.children()
    assert children
    assert own.end(signal.SIGKILL) == -signal.SIGKILL
    assert gone(children)


def test_does_not_start_without_what_it_needs(
    own: KmsServer,
) -> None:
    own.end()
    kek = own.folder / "kek"
    kek.chmod(0o644)
    with pytest.raises(AssertionError, match="kms.key-store.kek"):
        own.start()
    assert own.end() == 1
    kek.unlink()
    with pytest.raises(AssertionError, match="kms.key-store.kek"):
        own.start()


def test_an_address_in_use_is_said_so(own: KmsServer) -> None:
    own.end()
    with socket.create_server(("127.0.0.1", own.port)):
        done = subprocess.run(
            own.command("serve"), capture_output=True, check=False, timeout=30
        )
    assert done.returncode == 1
    assert b"cannot serve: Address already in use" in done.stderr
    assert b"Traceback" not in done.stderr
