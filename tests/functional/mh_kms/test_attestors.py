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

"""The contract of attestors, over every driver, against a real server."""

import pathlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from stevedore import ExtensionManager

from mh_core.encoding import MAX_JSON, b64u
from mh_core.errors import (
    InputError,
    MHError,
    Unavailable,
    VerificationError,
)
from mh_kms import attestors
from mh_kms import conf as conf_module
from mh_kms.attestors.base import Attestor, Question
from mh_kms.attestors.presented import PresentedResult
from mh_kms.release_policy import Authority
from tests.fixture import softtpm
from tests.functional.mh_kms.authority import (
    Answer,
    LyingServer,
    say,
    token_file,
)
from tests.functional.mh_kms.tls import Ca

DRIVERS = sorted(ExtensionManager(attestors.NAMESPACE).names())
ORIGIN = "https://kms.test"
KEY_ID = "00000000-0000-0000-0000-000000000001"


def never(path: str, body: dict[str, Any]) -> Answer:
    raise AssertionError("was asked")


@dataclass
class Case:
    attestor: Attestor
    server: LyingServer
    authority: Authority
    question: Question

    def ask(self) -> str:
        return self.attestor.appraise(self.authority, self.question)

    def fetch(self) -> Any:
        return self.attestor.fetch(
            self.authority, bytes(32), ORIGIN, ORIGIN + "/v1/keys/x", "PEM"
        )


def load(
    folder: pathlib.Path,
    ca: pathlib.Path,
    origin: str,
    driver: str,
    timeout: float = 10,
) -> Attestor:
    path = folder / "kms.conf"
    path.write_text(
        f"[kms]\norigin = {ORIGIN}\nattestor = {driver}\n"
        f"[authority]\nca_file = {ca}\ntimeout = {timeout}\n"
        f"tokens = {origin}={token_file(folder)}\n"
    )
    return attestors.load(conf_module.load(str(path)))


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return Ca(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=DRIVERS)
def case(
    request: pytest.FixtureRequest, ca: Ca, tmp_path: pathlib.Path
) -> Iterator[Case]:
    server = LyingServer(ca, never)
    tpm = softtpm.SoftTpm(softtpm.Enroller())
    authority = softtpm.Authority(url=server.origin).to_dict()
    wanted = softtpm.key_request(KEY_ID, ORIGIN)
    yield Case(
        load(tmp_path, ca.file, server.origin, request.param),
        server,
        Authority.parse(authority),
        Question(
            bytes(range(32)),
            ORIGIN,
            wanted.digest(),
            tpm.release_evidence(bytes(32), wanted),
        ),
    )
    server.stop()


def test_every_driver_is_tested() -> None:
    assert DRIVERS == ["native"]


def test_question_and_answer(case: Case) -> None:
    case.server.script = lambda path, body: say(200, {"result": "a.b.c"})
    assert case.ask() == "a.b.c"
    ((path, authorization, body),) = case.server.seen
    assert path == "/v1/appraisals"
    assert authorization == "Bearer mha_relying-party"
    assert body == {
        "nonce": b64u(case.question.nonce),
        "audience": ORIGIN,
        "request_digest": case.question.request_digest.hex(),
        "evidence": case.question.evidence.to_dict(),
    }


def test_fetch(case: Case) -> None:
    request = softtpm.key_request(KEY_ID, ORIGIN)
    answer = {
        "result": "a.b.c",
        "request": request.to_dict(),
        "evidence": case.question.evidence.to_dict(),
    }
    case.server.script = lambda path, body: say(200, answer)
    pending = case.fetch()
    assert pending.result == "a.b.c"
    assert pending.request == request
    assert pending.evidence == case.question.evidence
    ((path, _authorization, body),) = case.server.seen
    assert path == "/v1/compat/appraisals"
    assert body == {
        "nonce": b64u(bytes(32)),
        "audience": ORIGIN,
        "key_url": ORIGIN + "/v1/keys/x",
        "ak_pem": "PEM",
    }


@pytest.mark.parametrize("status", [400, 403, 404, 409])
def test_a_refusal_keeps_its_event(case: Case, status: int) -> None:
    document = {
        "error": {
            "event": "attest.appraise.host-policy",
            "message": "mha_relying-party",
        }
    }
    case.server.script = lambda path, body: say(status, document)
    for action in (case.ask, case.fetch):
        with pytest.raises(VerificationError) as caught:
            action()
        assert caught.value.event == "attest.appraise.host-policy"
        assert "mha_" not in str(caught.value)


@pytest.mark.parametrize(
    "event", [None, 1, "", "A B", "x" * 200, "a\nb", {"a": 1}]
)
def test_a_refusal_without_a_good_event(case: Case, event: Any) -> None:
    case.server.script = lambda path, body: say(
        403, {"error": {"event": event}}
    )
    with pytest.raises(VerificationError) as caught:
        case.ask()
    assert caught.value.event == "kms.authority.refused"


@pytest.mark.parametrize("data", [b"", b"x", b"[]", b"\xff" * 9, b'"e"'])
def test_a_refusal_that_is_garbage(case: Case, data: bytes) -> None:
    case.server.script = lambda path, body: (403, {}, data)
    with pytest.raises(VerificationError) as caught:
        case.ask()
    assert caught.value.event == "kms.authority.refused"


@pytest.mark.parametrize("status", [201, 204, 401, 413, 429, 500, 503])
def test_other_states_are_silence(case: Case, status: int) -> None:
    case.server.script = lambda path, body: say(status, {"result": "a.b.c"})
    with pytest.raises(Unavailable) as caught:
        case.ask()
    assert caught.value.event == "kms.authority.silent"


def test_redirects_are_not_followed(case: Case) -> None:
    def away(path: str, body: dict[str, Any]) -> Answer:
        return say(307, {}, Location=case.server.origin + "/elsewhere")

    case.server.script = away
    with pytest.raises(Unavailable):
        case.ask()
    assert [seen[0] for seen in case.server.seen] == ["/v1/appraisals"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"[]",
        b"{}",
        b'{"result": 1}',
        b'{"result": "a", "more": 1}',
        b'{"result": "a", "result": "b"}',
        b" " * (MAX_JSON + 1),
    ],
)
def test_malformed_answers(case: Case, data: bytes) -> None:
    case.server.script = lambda path, body: (200, {}, data)
    for action in (case.ask, case.fetch):
        with pytest.raises(InputError):
            action()


def test_only_listed_origins_are_contacted(case: Case) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.3)
    port = listener.getsockname()[1]
    other = softtpm.Authority(url=f"https://127.0.0.1:{port}").to_dict()
    case.authority = Authority.parse(other)
    for action in (case.ask, case.fetch):
        with pytest.raises(Unavailable) as caught:
            action()
        assert caught.value.event == "kms.authority.not-listed"
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()


def test_another_ca(
    case: Case, tmp_path: pathlib.Path, tmp_path_factory: Any
) -> None:
    stranger = Ca(tmp_path_factory.mktemp("stranger"))
    case.attestor = load(tmp_path, stranger.file, case.server.origin, "native")
    with pytest.raises(Unavailable) as caught:
        case.ask()
    assert caught.value.event == "kms.authority.silent"
    assert case.server.seen == []


def test_proxies_of_the_environment_are_not_used(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    case.server.script = lambda path, body: say(200, {"result": "a"})
    assert case.ask() == "a"


def test_nobody_there(case: Case, ca: Ca) -> None:
    gone = LyingServer(ca, never)
    gone.stop()
    case.attestor = load(ca.folder, ca.file, gone.origin, "native")
    document = softtpm.Authority(url=gone.origin).to_dict()
    case.authority = Authority.parse(document)
    for action in (case.ask, case.fetch):
        with pytest.raises(Unavailable) as caught:
            action()
        assert caught.value.event == "kms.authority.silent"


def test_slow_answers_are_silence(
    case: Case, ca: Ca, tmp_path: pathlib.Path
) -> None:
    case.attestor = load(tmp_path, ca.file, case.server.origin, "native", 0.5)
    gate = threading.Event()

    def slow(path: str, body: dict[str, Any]) -> Answer:
        gate.wait(10)
        return say(200, {"result": "a"})

    case.server.script = slow
    with pytest.raises(Unavailable):
        case.ask()
    gate.set()


def test_a_connection_that_went_stale(case: Case) -> None:
    def last(path: str, body: dict[str, Any]) -> Answer:
        case.server.drop = True
        return say(200, {"result": "a"})

    case.server.script = last
    for _ in range(3):
        assert case.ask() == "a"


def test_safe_from_threads(case: Case) -> None:
    case.server.script = lambda path, body: say(200, {"result": body["nonce"]})
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(case.ask()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b64u(case.question.nonce)] * 8


def test_token_files(tmp_path: pathlib.Path, ca: Ca) -> None:
    for content in (b"", b"two words", b"\xff\xfe"):
        path = tmp_path / "kms.conf"
        (tmp_path / "token").write_bytes(content)
        path.write_text(
            f"[kms]\norigin = {ORIGIN}\n"
            f"[authority]\ntokens = https://a.test={tmp_path}/token\n"
        )
        with pytest.raises(MHError) as caught:
            attestors.load(conf_module.load(str(path)))
        assert caught.value.event == "kms.authority.token"


def test_presented_results_are_for_one_authority(case: Case) -> None:
    presented = PresentedResult(case.authority, "a.b.c")
    assert presented.appraise(case.authority, case.question) == "a.b.c"
    other = Authority.parse(softtpm.Authority().to_dict())
    with pytest.raises(Unavailable):
        presented.appraise(other, case.question)
    with pytest.raises(Unavailable):
        presented.fetch(case.authority, b"", "", "", "")
