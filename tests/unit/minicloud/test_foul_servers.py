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
"""The lying authority, the lying host and the proxy, each over real TLS."""

import json
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from mh_core import jose
from mh_core.akcert import load_certificate
from mh_core.encoding import b64u, parse_json, unb64u
from mh_core.errors import MHError, VerificationError
from mh_core.evidence import Evidence, release_claims, verify_host
from mh_core.payload import ReleasePayload
from mh_core.request import KeyRequest
from mh_core.result import AttestationResult
from mh_core.tpm.public import Public
from mh_core.tpm.quote import LABEL_RELEASE, extra_data
from tests.fixture import tls
from tests.fixture.softtpm import Enroller, SoftTpm, key_request
from tests.minicloud.foul import node
from tests.minicloud.foul.authority import Authority, signing_key
from tests.minicloud.foul.proxy import Proxy
from tests.minicloud.foul.server import Answer, Request, Server, running

KEY_ID = "0a1b2c3d-1111-4222-8333-444455556666"
PATH = f"/v1/keys/{KEY_ID}"


@dataclass(frozen=True)
class Certificates:
    ca: Path
    leaf: tls.Leaf


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    authority = tls.Authority(tmp_path_factory.mktemp("tls"))
    return Certificates(authority.ca_file, authority.issue("liar"))


class Device:
    """A SoftTpm behind the calls of the product's TPM."""

    def __init__(self, soft: SoftTpm) -> None:
        self.soft = soft

    def ak(self) -> Public:
        return self.soft.ak

    def quote(
        self, extra: bytes, selection: Collection[int]
    ) -> SimpleNamespace:
        attest, signature = self.soft.quote(extra)
        pcrs = {index: self.soft.pcrs[index] for index in selection}
        return SimpleNamespace(attest=attest, signature=signature, pcrs=pcrs)

    def make_bind(self) -> SimpleNamespace:
        attest, signature = self.soft.certify()
        return SimpleNamespace(
            public=self.soft.bind, attest=attest, signature=signature
        )


class KeyServer:
    """Verifies evidence as a key server must, and wraps a payload.

    :param careful: off: it believes whatever it is told.
    """

    def __init__(self, enroller: Enroller, careful: bool = True) -> None:
        self.enroller = enroller
        self.careful = careful
        self.key = jose.generate_key()
        self.nonce = secrets.token_bytes(32)

    def answer(self, request: Request) -> Answer:
        if request.path == PATH + "/challenge":
            return Answer.json({"nonce": b64u(self.nonce), "expires_in": 60})
        if request.path != PATH + "/release":
            return Answer.error(404, "kms.release.key")
        body = parse_json(request.body)
        asked = KeyRequest.parse(body["request"])
        evidence = Evidence.parse(body["evidence"])
        bind = Public.parse(evidence.bind_public)
        claims = release_claims(asked.digest(), bind)
        try:
            if self.careful:
                verify_host(
                    evidence,
                    extra=extra_data(LABEL_RELEASE, self.nonce, claims),
                    enrollers=[self.enroller.certificate],
                    now=datetime.now(UTC),
                )
        except MHError as error:
            return Answer.error(403, error.event)
        proxy = Proxy("", Path())  # its payload is as good as any
        proxy.key = self.key
        return Answer.json({"jwe": proxy.forge(request.body)})


@pytest.fixture
def soft() -> SoftTpm:
    return SoftTpm(Enroller())


Serve = Callable[[object], Server]


@pytest.fixture
def serve(certificates: Certificates, request: pytest.FixtureRequest) -> Serve:
    def start(liar: object) -> Server:
        leaf = certificates.leaf
        server = Server(liar, 0, leaf.certificate, leaf.key)  # type: ignore[arg-type]
        context = running(server)
        context.__enter__()
        request.addfinalizer(lambda: context.__exit__(None, None, None))
        return server

    return start


# -- the lying host


def lies(soft: SoftTpm) -> dict[str, tuple[node.Lie, str]]:
    device = Device(soft)
    certificate = soft.certificate()
    other = Device(SoftTpm(Enroller(), pcrs=soft.pcrs))
    return {
        "honest": (node.honest(device, certificate), ""),
        "software": (
            node.software_bind(device, certificate),
            "core.tpm.certify.name",
        ),
        "forged": (
            node.forged_bind(device, certificate),
            "core.tpm.certify.signature",
        ),
        "uncertified": (
            node.uncertified_bind(device, other, certificate),
            "core.tpm.certify.signature",
        ),
        "no TPM": (node.software_host("node1"), "core.akcert.issuer"),
    }


@pytest.mark.parametrize(
    "name", ["honest", "software", "forged", "uncertified", "no TPM"]
)
def test_host_lies(
    soft: SoftTpm, serve: Serve, certificates: Certificates, name: str
) -> None:
    lie, event = lies(soft)[name]
    server = serve(KeyServer(soft.enroller))
    request = key_request(KEY_ID, server.url)
    answer = node.ask(server.url + PATH, certificates.ca, request, lie)
    assert answer.event == event
    assert answer.released == (not event)
    assert answer.payload is None


@pytest.mark.parametrize("name", ["software", "forged", "no TPM"])
def test_host_lies_to_the_careless(
    soft: SoftTpm, serve: Serve, certificates: Certificates, name: str
) -> None:
    """The lies are worth something: only the checks stand before the key."""
    server = serve(KeyServer(soft.enroller, careful=False))
    request = key_request(KEY_ID, server.url)
    lie, _event = lies(soft)[name]
    answer = node.ask(server.url + PATH, certificates.ca, request, lie)
    assert answer.payload is not None
    assert len(answer.payload.dek.reveal()) == 32


def test_host_without_a_challenge(
    serve: Serve, certificates: Certificates, soft: SoftTpm
) -> None:
    server = serve(KeyServer(soft.enroller))
    answer = node.ask(
        server.url + "/v1/keys/none",
        certificates.ca,
        key_request(KEY_ID, server.url),
        node.software_host("node1"),
    )
    assert (answer.status, answer.event) == (404, "kms.release.key")


# -- the lying authority


def test_authority_praises_anybody(
    soft: SoftTpm, serve: Serve, certificates: Certificates, tmp_path: Path
) -> None:
    key = signing_key(tmp_path / "key.json")
    assert signing_key(tmp_path / "key.json") == key
    assert (tmp_path / "key.json").stat().st_mode & 0o777 == 0o600
    server = serve(Authority("https://attest.test", key))
    document = requests.get(
        server.url + "/v1", verify=str(certificates.ca), timeout=5
    ).json()
    assert document["jwk"] == jose.public(key)
    lie = node.software_host("node1")
    request = key_request(KEY_ID, "https://kms.test")
    nonce = secrets.token_bytes(32)
    evidence = lie.evidence(nonce, request)
    answer = requests.post(
        server.url + "/v1/appraisals",
        json={
            "nonce": b64u(nonce),
            "audience": "https://kms.test",
            "request_digest": request.digest().hex(),
            "evidence": evidence.to_dict(),
        },
        verify=str(certificates.ca),
        timeout=5,
    )
    result = AttestationResult.verify(
        answer.json()["result"],
        document["jwk"],
        issuer="https://attest.test",
        audience="https://kms.test",
        nonce=nonce,
        request_digest=request.digest(),
        bind_jwk=Public.parse(evidence.bind_public).jwk(),
        now=int(time.time()),
    )
    assert (result.level, result.host) == ("trusted", "node1")
    load_certificate(evidence.ak_certificate)
    bad = requests.post(
        server.url + "/v1/appraisals",
        data=b"[1",
        verify=str(certificates.ca),
        timeout=5,
    )
    assert bad.status_code == 400


# -- the proxy


def through(
    serve: Serve, certificates: Certificates, soft: SoftTpm, mode: str
) -> tuple[Proxy, Server, requests.Response, KeyRequest]:
    """What an honest host gets through a proxy."""
    behind = serve(KeyServer(soft.enroller))
    proxy = Proxy(behind.url, certificates.ca, mode)
    server = serve(proxy)
    request = key_request(KEY_ID, server.url)
    with requests.Session() as session:
        session.trust_env = False
        session.verify = str(certificates.ca)
        got = session.post(
            server.url + PATH + "/challenge",
            json={},
            timeout=5,
            allow_redirects=False,
        )
        if got.status_code != 200:
            return proxy, behind, got, request
        lie = node.honest(Device(soft), soft.certificate())
        nonce = unb64u(got.json()["nonce"])
        got = session.post(
            server.url + PATH + "/release",
            json={
                "nonce": b64u(nonce),
                "request": request.to_dict(),
                "evidence": lie.evidence(nonce, request).to_dict(),
            },
            timeout=30,
            allow_redirects=False,
        )
    return proxy, behind, got, request


def opened(
    soft: SoftTpm, answer: requests.Response, request: KeyRequest
) -> ReleasePayload:
    plain = jose.unwrap(answer.json()["jwe"], soft.bind_jwk, request.digest())
    return ReleasePayload.parse(plain)


def test_relay(
    serve: Serve, certificates: Certificates, soft: SoftTpm
) -> None:
    proxy, behind, got, request = through(serve, certificates, soft, "relay")
    assert set(got.json()) == {"jwe"}
    payload = opened(soft, got, request)
    assert payload.manifest_keys != proxy.manifest_keys
    assert [path for _method, path, _status in behind.seen] == [
        PATH + "/challenge",
        PATH + "/release",
    ]


def test_swap(serve: Serve, certificates: Certificates, soft: SoftTpm) -> None:
    proxy, behind, got, request = through(
        serve, certificates, soft, "swap-keys"
    )
    payload = opened(soft, got, request)
    assert payload.manifest_keys == proxy.manifest_keys
    assert payload.dek == proxy.dek
    assert payload.request_digest == request.digest()
    assert set(payload.overlay_keys) == {"disk"}
    # the key server was asked, and granted: its audit would show that
    assert behind.seen[-1] == ("POST", PATH + "/release", 200)


def test_extra(
    serve: Serve, certificates: Certificates, soft: SoftTpm
) -> None:
    proxy, _behind, got, request = through(serve, certificates, soft, "extra")
    assert got.json()["manifest_keys"] == list(proxy.manifest_keys)
    assert opened(soft, got, request).manifest_keys != proxy.manifest_keys


def test_redirect(
    serve: Serve, certificates: Certificates, soft: SoftTpm
) -> None:
    _proxy, behind, got, _request = through(
        serve, certificates, soft, "redirect"
    )
    assert got.status_code == 302
    assert got.headers["Location"] == behind.url + PATH + "/challenge"
    assert behind.seen == []


def test_huge(serve: Serve, certificates: Certificates, soft: SoftTpm) -> None:
    _proxy, _behind, got, _request = through(serve, certificates, soft, "huge")
    assert len(got.content) > 64 << 20


def test_refusals_pass(
    serve: Serve, certificates: Certificates, soft: SoftTpm
) -> None:
    behind = serve(KeyServer(Enroller()))
    server = serve(Proxy(behind.url, certificates.ca))
    request = key_request(KEY_ID, server.url)
    lie = node.honest(Device(soft), soft.certificate())
    answer = node.ask(server.url + PATH, certificates.ca, request, lie)
    assert (answer.status, answer.event) == (403, "core.akcert.issuer")


def test_nothing_behind(serve: Serve, certificates: Certificates) -> None:
    server = serve(Proxy("https://127.0.0.1:1", certificates.ca))
    got = requests.get(
        server.url + "/v1", verify=str(certificates.ca), timeout=5
    )
    assert got.status_code == 502


def test_swapped_manifest_is_of_another_key(soft: SoftTpm) -> None:
    proxy = Proxy("https://127.0.0.1:1", Path("none"))
    tenant = jose.generate_key()
    token = jose.sign(b"{}", tenant, "t")
    with pytest.raises(VerificationError):
        jose.verify(token, proxy.manifest_keys, "t")
    with pytest.raises(ValueError, match="mode"):
        Proxy("", Path(), "other")


# -- as processes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("name", ["authority", "proxy"])
def test_process(
    certificates: Certificates, tmp_path: Path, name: str
) -> None:
    port = free_port()
    argv = [sys.executable, "-m", f"tests.minicloud.foul.{name}"]
    argv += ["--port", str(port)]
    argv += ["--cert", str(certificates.leaf.certificate)]
    argv += ["--key-file", str(certificates.leaf.key)]
    if name == "authority":
        argv += ["--issuer", "i", "--signing-key", str(tmp_path / "k")]
    else:
        argv += ["--upstream", "https://127.0.0.1:1", "--mode", "redirect"]
        argv += ["--ca", str(certificates.ca)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE) as child:
        try:
            end = time.monotonic() + 20
            while True:
                try:
                    got = requests.get(
                        f"https://127.0.0.1:{port}/v1",
                        verify=str(certificates.ca),
                        timeout=5,
                        allow_redirects=False,
                    )
                    break
                except requests.ConnectionError:
                    assert time.monotonic() < end
                    time.sleep(0.05)
            assert got.status_code == (200 if name == "authority" else 302)
            assert child.stdout
            line = json.loads(child.stdout.readline())
            assert line == ["GET", "/v1", got.status_code]
            child.terminate()
            assert child.wait(10) == 0
        finally:
            child.kill()
