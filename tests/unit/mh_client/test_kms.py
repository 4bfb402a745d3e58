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
"""The key server's client, and key servers that lie."""

import copy
import uuid
from typing import Any

import pytest

from mh_client.kms import APV_DELIVER, APV_UPLOAD, Kms
from mh_core import jose
from mh_core.errors import (
    Conflict,
    Denied,
    InputError,
    MHError,
    NotFound,
    VerificationError,
)
from mh_core.secret import Secret
from tests.unit.mh_client.https import Answer, Request, World, error

ID = str(uuid.UUID(int=7))
DEK = bytes(range(32))
POLICY: dict[str, Any] = {"version": 1, "levels": ["trusted"]}


def document(world: World, **more: Any) -> dict[str, Any]:
    url = world.kms.url
    return {
        "id": ID,
        "name": "web",
        "project": "p",
        "created_at": 1700000000,
        "policy": POLICY,
        "manifests": [],
        "url": f"{url}/v1/keys/{ID}",
        "compat_url": f"{url}/data-encryption-key/request/{ID}",
        **more,
    }


@pytest.fixture
def kms(world: World) -> Kms:
    return Kms(world.config().kms)


def test_create_wraps_to_the_pinned_key(world: World, kms: Kms) -> None:
    world.kms.routes["POST", "/v1/keys"] = (201, document(world))
    made = kms.create_key("web", Secret(DEK), POLICY)
    assert made.id == ID
    body = world.kms.requests[-1].body
    assert set(body) == {"name", "jwe", "policy"}
    assert jose.unwrap(body["jwe"], world.transport, APV_UPLOAD) == DEK


def test_another_transport_key_is_refused(world: World, kms: Kms) -> None:
    liar = jose.generate_key()
    world.kms.routes["GET", "/v1"] = (
        200,
        {
            "origin": world.kms.url,
            "transport_jwk": jose.public(liar),
            "version": "1",
        },
    )
    with pytest.raises(VerificationError) as caught:
        kms.create_key("web", Secret(DEK), POLICY)
    assert caught.value.event == "client.kms.transport-key"
    assert [r.method for r in world.kms.requests] == ["GET"]


def test_a_kid_that_lies_does_not_help(world: World, kms: Kms) -> None:
    liar = {**jose.public(jose.generate_key()), "kid": world.transport["kid"]}
    world.kms.routes["GET", "/v1"] = (
        200,
        {"origin": world.kms.url, "transport_jwk": liar, "version": "1"},
    )
    with pytest.raises(VerificationError) as caught:
        kms.transport_key()
    assert caught.value.event == "client.kms.transport-key"


def test_a_policy_that_was_not_kept(world: World, kms: Kms) -> None:
    loose = {**POLICY, "levels": ["trusted", "boot-only"]}
    world.kms.routes["POST", "/v1/keys"] = (
        201,
        document(world, policy=loose),
    )
    with pytest.raises(VerificationError) as caught:
        kms.create_key("web", Secret(DEK), POLICY)
    assert caught.value.event == "client.kms.policy"


def test_errors_of_the_server_are_kept(world: World, kms: Kms) -> None:
    world.kms.routes["POST", "/v1/keys"] = (403, error("kms.access.denied"))
    with pytest.raises(Denied) as caught:
        kms.create_key("web", Secret(DEK), POLICY)
    assert caught.value.event == "kms.access.denied"
    assert DEK.hex() not in str(caught.value)


CHANGES: list[dict[str, Any]] = [
    {"id": "../x"},
    {"id": ID.upper().replace("0", "A")},
    {"url": "https://elsewhere.test/v1/keys/" + ID},
    {"compat_url": "http://169.254.169.254/"},
    {"manifests": "x"},
    {"policy": []},
    {"surprise": 1},
    {"name": 7},
]


@pytest.mark.parametrize("change", CHANGES)
def test_bad_documents(world: World, kms: Kms, change: dict[str, Any]) -> None:
    world.kms.routes["GET", "/v1/keys"] = (
        200,
        {"keys": [document(world, **change)]},
    )
    with pytest.raises(InputError):
        kms.keys()


@pytest.mark.parametrize(
    "answer",
    [
        {"origin": "https://x"},
        {"origin": "ftp://x", "transport_jwk": {}},
        {"origin": "https://x", "transport_jwk": {"kty": "oct", "k": "AA"}},
        [],
        "x",
    ],
)
def test_bad_identity(world: World, kms: Kms, answer: Any) -> None:
    world.kms.routes["GET", "/v1"] = (200, answer)
    with pytest.raises(MHError):
        kms.transport_key()


def test_identity_with_an_unknown_member(world: World, kms: Kms) -> None:
    answer = world.kms.routes["GET", "/v1"]
    assert isinstance(answer, tuple)
    body = copy.deepcopy(answer[1])
    body["more"] = 1
    world.kms.routes["GET", "/v1"] = (200, body)
    with pytest.raises(InputError) as caught:
        kms.transport_key()
    assert "more" in caught.value.message


def test_deliver(world: World, kms: Kms) -> None:
    keys = []

    def deliver(request: Request) -> Answer:
        keys.append(request.body["jwk"])
        assert "d" not in request.body["jwk"]
        return 200, {"jwe": jose.wrap(DEK, request.body["jwk"], APV_DELIVER)}

    world.kms.routes["POST", f"/v1/keys/{ID}/deliver"] = deliver
    assert kms.deliver(ID).reveal() == DEK
    assert kms.deliver(ID).reveal() == DEK
    assert keys[0] != keys[1]


@pytest.mark.parametrize("fault", ["apv", "key", "length", "junk"])
def test_deliver_refuses(world: World, kms: Kms, fault: str) -> None:
    def deliver(request: Request) -> Answer:
        jwk = request.body["jwk"]
        if fault == "apv":
            jwe = jose.wrap(DEK, jwk, APV_UPLOAD)
        elif fault == "key":
            jwe = jose.wrap(DEK, jose.generate_key(), APV_DELIVER)
        elif fault == "length":
            jwe = jose.wrap(DEK[:16], jwk, APV_DELIVER)
        else:
            jwe = "a.b.c.d.e"
        return 200, {"jwe": jwe}

    world.kms.routes["POST", f"/v1/keys/{ID}/deliver"] = deliver
    with pytest.raises(MHError) as caught:
        kms.deliver(ID)
    assert DEK.hex() not in str(caught.value)


def test_find(world: World, kms: Kms) -> None:
    other = str(uuid.UUID(int=8))
    second = document(
        world,
        id=other,
        url=f"{world.kms.url}/v1/keys/{other}",
        compat_url=f"{world.kms.url}/data-encryption-key/request/{other}",
    )
    world.kms.routes["GET", "/v1/keys"] = (200, {"keys": [document(world)]})
    assert kms.find("web").id == ID
    assert kms.find(ID).id == ID
    with pytest.raises(NotFound):
        kms.find("mail")
    world.kms.routes["GET", "/v1/keys"] = (
        200,
        {"keys": [document(world), second]},
    )
    with pytest.raises(Conflict):
        kms.find("web")
    assert kms.find(other).id == other


def test_audit_reads_every_page(world: World, kms: Kms) -> None:
    def audit(request: Request) -> Answer:
        after = int(request.query.removeprefix("after="))
        found = [{"seq": n} for n in range(after + 1, min(after + 3, 6))]
        return 200, {"records": found}

    world.kms.routes["GET", f"/v1/keys/{ID}/audit"] = audit
    assert [r["seq"] for r in kms.audit(ID)] == [1, 2, 3, 4, 5]
    assert [r["seq"] for r in kms.audit(ID, 4)] == [5]


def test_audit_that_never_ends_is_refused(world: World, kms: Kms) -> None:
    world.kms.routes["GET", f"/v1/keys/{ID}/audit"] = (
        200,
        {"records": [{"seq": 1}]},
    )
    with pytest.raises(InputError) as caught:
        kms.audit(ID)
    assert caught.value.event == "client.kms.audit"


def test_ticket(world: World, kms: Kms) -> None:
    text = "t" * 43
    path = ("POST", f"/v1/keys/{ID}/tickets")
    world.kms.routes[path] = (200, {"ticket": text, "expires_at": 5})
    found = kms.ticket(ID, ["00" * 32])
    assert found.secret.reveal() == text.encode()
    assert text not in repr(found)
    world.kms.routes[path] = (200, {"ticket": "a b", "expires_at": 5})
    with pytest.raises(InputError):
        kms.ticket(ID, ["00" * 32])
