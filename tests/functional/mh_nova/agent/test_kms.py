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
"""The key server client against a server, or a proxy, that lies."""

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mh_core import jose
from mh_core.encoding import b64u
from mh_core.errors import Denied, MHError, Unavailable
from mh_nova.agent.http import MAX_ANSWER
from mh_nova.agent.keys import key_request
from mh_nova.agent.kms import KeyUrl, KmsClient
from tests.fixture import tls
from tests.functional.mh_nova.agent.world import KEY_ID, Kms, World


def ask(world: World, url: str = "", compat: bool = False) -> str:
    client = KmsClient(world.conf, world.prover, world.pending)
    checked = client.check_url(url or world.kms.url, KEY_ID, compat)
    record = world.record()
    request = key_request(record, checked, "launch", "")
    return client.fetch(checked, request)


def event(world: World, url: str = "", compat: bool = False) -> str:
    with pytest.raises(MHError) as caught:
        ask(world, url, compat)
    return caught.value.event


def answers(world: World, tail: str, reply: Any) -> None:
    world.kms.reply = lambda path: reply if path.endswith(tail) else None


def test_honest(world: World) -> None:
    assert jose.recipient(ask(world)) == jose.thumbprint(world.tpm.bind.jwk())
    assert world.kms.asked == [
        f"/v1/keys/{KEY_ID}/challenge",
        f"/v1/keys/{KEY_ID}/release",
    ]


# -- where it goes -------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"https://169.254.169.254/v1/keys/{KEY_ID}",
        f"https://example.test/v1/keys/{KEY_ID}",
        f"https://127.0.0.1:1/v1/keys/{KEY_ID}",
        f"http://127.0.0.1/v1/keys/{KEY_ID}",
    ],
)
def test_origin_not_on_the_list(world: World, url: str) -> None:
    assert event(world, url) == "agent.kms.origin"
    assert not world.kms.asked


@pytest.mark.parametrize(
    "tail",
    [
        "/v1/keys/" + KEY_ID[:-1],
        f"/v1/keys/{KEY_ID}/",
        f"/v1/keys/{KEY_ID}?x=1",
        f"/v1/keys/{KEY_ID}#x",
        f"/v1/../v1/keys/{KEY_ID}",
        "/v1/keys/" + KEY_ID.replace("0", "1"),
        f"/v1/keys/{KEY_ID}\r\nX: y",
        "",
    ],
)
def test_not_a_key_url(world: World, tail: str) -> None:
    assert event(world, world.kms.origin + tail) == "agent.kms.key-url"


def test_user_in_the_url(world: World) -> None:
    url = world.kms.url.replace("https://", "https://127.0.0.1@")
    assert event(world, url) == "agent.kms.key-url"


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.1.1",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "0.0.0.0",  # noqa: S104
        "224.0.0.1",
        "255.255.255.255",
        "[::ffff:169.254.169.254]",
    ],
)
def test_addresses_that_are_never_contacted(
    world: World, address: str
) -> None:
    """Even where the operator's list names them."""
    origin = f"https://{address}:1"
    world.conf.set_override("kms_origins", [origin], group="agent")
    assert event(world, f"{origin}/v1/keys/{KEY_ID}") == "agent.kms.address"


def test_a_name_that_resolves_to_the_metadata_service(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def lie(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "kms.test":
            host = "169.254.169.254"
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lie)
    world.conf.set_override("kms_origins", ["https://kms.test"], group="agent")
    assert event(world, f"https://kms.test/v1/keys/{KEY_ID}") == (
        "agent.kms.address"
    )


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect(world: World, status: int) -> None:
    other = Kms(world.authority, world.tenant, world.enroller)
    answers(world, "/challenge", (status, {"Location": other.url}, b""))
    assert event(world) == "agent.kms.redirect"
    assert not other.asked
    other.stop()


def test_unknown_authority(world: World, tmp_path: Path) -> None:
    other = tls.Authority(tmp_path / "other")
    world.conf.set_override("kms_ca_file", str(other.ca_file), group="agent")
    assert event(world) == "agent.kms.unavailable"
    assert not world.kms.asked


def test_certificate_of_another_name(world: World) -> None:
    url = world.kms.url.replace("127.0.0.1", "127.0.0.2")
    world.conf.set_override(
        "kms_origins", [str(KeyUrl.parse(url).origin)], group="agent"
    )
    assert event(world, url) == "agent.kms.unavailable"


def test_proxy_of_the_environment_is_not_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    assert ask(world)


def test_down(world: World) -> None:
    world.kms._server.server_close()
    assert event(world) == "agent.kms.unavailable"


# -- what it gets --------------------------------------------------------


def test_huge_answer(world: World) -> None:
    body = b'{"nonce":"' + b"A" * MAX_ANSWER + b'"}'
    answers(world, "/challenge", (200, {}, body))
    assert event(world) == "agent.kms.answer"


def test_slow_answer(world: World) -> None:
    world.conf.set_override("timeout", 1, group="agent")
    world.kms.delay = 3
    begin = time.monotonic()
    assert event(world) == "agent.kms.unavailable"
    assert time.monotonic() - begin < 2.5


@pytest.mark.parametrize("headers", [False, True])
def test_dripping_answer(world: World, headers: bool) -> None:
    """A byte now and then keeps each read alive, not the whole request."""
    world.conf.set_override("timeout", 1, group="agent")
    kms = world.kms

    def serve(handler: Any) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        if not headers:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
        for _ in range(100):
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.1)

    kms.serve = serve  # type: ignore[method-assign]
    begin = time.monotonic()
    assert event(world) == "agent.kms.unavailable"
    assert time.monotonic() - begin < 2.5


NONCE = b64u(bytes(32))


@pytest.mark.parametrize(
    "body",
    [
        {"nonce": NONCE, "expires_in": 60, "dek": "AAAA"},
        {"nonce": NONCE},
        {"nonce": NONCE[:-2], "expires_in": 60},
        {"nonce": NONCE, "expires_in": "60"},
        {"nonce": NONCE, "expires_in": 0},
        {"nonce": 7, "expires_in": 60},
        [],
        "text",
        None,
    ],
)
def test_odd_challenge(world: World, body: Any) -> None:
    answers(world, "/challenge", world.kms.json(body))
    assert event(world) == "agent.kms.answer"
    assert world.prover.quotes == 0


@pytest.mark.parametrize(
    "body",
    [
        {"jwe": "a.b.c.d.e", "manifest_keys": []},
        {"jwe": "a.b.c"},
        {"jwe": ""},
        {"jwe": "a.b.c.d.e\n"},
        {"jwe": None},
        {},
    ],
)
def test_odd_release(world: World, body: Any) -> None:
    answers(world, "/release", world.kms.json(body))
    assert event(world) == "agent.kms.answer"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b'{"jwe":1,"jwe":2}', b"1e9", b"[" * 100000],
)
def test_not_json(world: World, data: bytes) -> None:
    answers(world, "/release", (200, {}, data))
    assert event(world) == "agent.kms.answer"


def test_refusal_shows_the_servers_id(world: World) -> None:
    answers(
        world,
        "/release",
        world.kms.error(403, "kms.release.project", "not yours"),
    )
    with pytest.raises(Denied) as caught:
        ask(world)
    assert caught.value.event == "agent.kms.refused"
    assert caught.value.message == (
        "the key server refused: kms.release.project (not yours)"
    )


def test_authority_down(world: World) -> None:
    answers(world, "/release", world.kms.error(503, "kms.release.authority"))
    with pytest.raises(Unavailable, match="kms.release.authority"):
        ask(world)


@pytest.mark.parametrize(
    "reply",
    [
        (403, {}, b"<html>"),
        (500, {}, b""),
        Kms.error(403, "Not An Id", "x"),
        Kms.json({"error": {"event": 7}}, 403),
    ],
)
def test_refusal_without_an_id(world: World, reply: Any) -> None:
    answers(world, "/release", reply)
    assert event(world) == "agent.kms.unavailable"


def test_refusal_with_a_long_or_dirty_text(world: World) -> None:
    text = "\x1b[31m" + "x" * 1000
    answers(world, "/release", world.kms.error(403, "kms.a", text))
    with pytest.raises(MHError) as caught:
        ask(world)
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 200


# -- the seed's form -----------------------------------------------------


def test_compat(world: World) -> None:
    jwe = ask(world, world.kms.compat_url)
    assert jose.recipient(jwe) == jose.thumbprint(world.tpm.bind.jwk())
    assert world.kms.asked == [f"/data-encryption-key/request/{KEY_ID}"]
    # nothing waits any more
    assert world.pending.find(world.kms.compat_url) is None


def test_compat_by_the_native_url(world: World) -> None:
    ask(world, world.kms.url, compat=True)
    assert world.kms.asked == [f"/v1/keys/{KEY_ID}"]


def test_compat_launch(world: World) -> None:
    world.make(key_url=world.kms.compat_url)
    world.start()
    assert world.secrets.defined


def test_pending_is_found_by_either_form(world: World) -> None:
    seen: list[bool] = []

    def look(url: str) -> Any:
        seen.extend(
            world.pending.find(one) is not None
            for one in (world.kms.url, world.kms.compat_url)
        )
        return world.pending.find(url)

    world.kms.lookup = look
    ask(world, world.kms.compat_url)
    assert seen == [True, True]


def test_one_pending_launch_per_key_at_a_time(world: World) -> None:
    """Each gets the answer to its own request."""
    world.kms.delay = 0.05
    errors: list[BaseException] = []

    def launch(instance: str) -> None:
        client = KmsClient(world.conf, world.prover, world.pending)
        url = client.check_url(world.kms.compat_url, KEY_ID, True)
        request = replace(
            key_request(world.record(), url, "launch", ""),
            instance=instance,
        )
        try:
            jwe = client.fetch(url, request)
            world.prover.unwrap(jwe, request.digest())
        except MHError as exc:
            errors.append(exc)

    threads = [
        threading.Thread(target=launch, args=(world.new_instance(),))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_compat_answer_is_not_a_jwe(world: World) -> None:
    answers(world, KEY_ID, (200, {}, b'{"jwe": "x"}'))
    assert event(world, world.kms.compat_url) == "agent.kms.answer"


def test_http_only_for_compat_and_only_if_allowed(world: World) -> None:
    origin = "http://127.0.0.1:1"
    world.conf.set_override("kms_origins", [origin], group="agent")
    native = f"{origin}/v1/keys/{KEY_ID}"
    seed = f"{origin}/data-encryption-key/request/{KEY_ID}"
    assert event(world, native) == "agent.kms.origin"
    assert event(world, seed) == "agent.kms.origin"
    world.conf.set_override("kms_compat_http", True, group="agent")
    assert event(world, native) == "agent.kms.origin"
    assert event(world, seed) == "agent.kms.unavailable"
