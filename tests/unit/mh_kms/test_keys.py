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

"""Owners' requests about keys."""

import sqlite3
import uuid
from typing import Any

import pytest

from mh_core import jose
from mh_core.errors import VerificationError
from tests.unit.mh_kms.world import DEK, ORIGIN, PROJECT, World


def error(answer: Any, status: int, event: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json["error"]["event"] == event


def test_create_and_show(world: World) -> None:
    key = world.create_key()
    assert set(key) == {
        "id",
        "name",
        "project",
        "created_at",
        "policy",
        "manifests",
        "url",
        "compat_url",
    }
    assert key["project"] == PROJECT
    assert key["url"] == f"{ORIGIN}/v1/keys/{key['id']}"
    assert key["compat_url"] == (
        f"{ORIGIN}/data-encryption-key/request/{key['id']}"
    )
    assert key["manifests"] == []
    assert world.call("GET", f"/v1/keys/{key['id']}").json == key
    assert world.call("GET", "/v1/keys").json == {"keys": [key]}
    assert world.audit(key["id"])[0]["event"] == "kms.key.created"
    assert world.audit(key["id"])[0]["caller"] == "owner"


def test_policy_survives_as_given(world: World) -> None:
    """Not a member more or less, so that a client can compare."""
    for changes in ({"tags": {"geo": "DE"}, "lease": 60}, {"checks": []}):
        key = world.create_key(**changes)
        assert key["policy"] == world.policy(**changes)


def test_each_key_has_a_root_of_its_own(world: World) -> None:
    ids = [world.create_key()["id"] for _ in range(2)]
    rows = (
        sqlite3.connect(world.base / "kms.sqlite")
        .execute("select id, overlay_root, dek from keys")
        .fetchall()
    )
    assert {row[0] for row in rows} == set(ids)
    roots = {
        world.parts.key_store.open(row[0], "overlay-root", row[1]).reveal()
        for row in rows
    }
    assert len(roots) == 2
    assert DEK not in roots
    assert {len(root) for root in roots} == {32}


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_only_keys_of_32_bytes(world: World, size: int) -> None:
    jwe = jose.wrap(
        bytes(size), world.parts.transport.public, b"mh/key-upload/v1"
    )
    body = {"name": "k", "jwe": jwe, "policy": world.policy()}
    answer = world.call("POST", "/v1/keys", body)
    assert 400 <= answer.status_code < 404, answer.text
    assert world.call("GET", "/v1/keys").json == {"keys": []}


def test_upload_for_another_use_or_server(world: World) -> None:
    body: dict[str, Any] = {"name": "k", "policy": world.policy()}
    key = world.parts.transport.public
    body["jwe"] = jose.wrap(DEK, key, b"mh/key-deliver/v1")
    error(world.call("POST", "/v1/keys", body), 403, "core.jose.apv")
    body["jwe"] = jose.wrap(DEK, jose.generate_key(), b"mh/key-upload/v1")
    error(world.call("POST", "/v1/keys", body), 403, "core.jose.unwrap")


def test_policy_naming_a_check_not_loaded(world: World) -> None:
    key = world.create_key()
    answer = world.call(
        "PUT",
        f"/v1/keys/{key['id']}/policy",
        world.policy(checks=["level", "moon-phase"]),
    )
    error(answer, 400, "kms.policy")
    assert world.call("GET", f"/v1/keys/{key['id']}").json == key


def test_set_policy(world: World) -> None:
    key = world.create_key()
    answer = world.call(
        "PUT",
        f"/v1/keys/{key['id']}/policy",
        world.policy(projects=["a", "b"]),
    )
    assert answer.status_code == 200
    assert answer.json["policy"]["projects"] == ["a", "b"]
    record = world.audit(key["id"])[-1]
    assert record["event"] == "kms.key.policy"
    assert record["policy"]["projects"] == ["a", "b"]


def test_delete_destroys(world: World) -> None:
    key = world.create_key()
    world.register(key["id"])
    path = f"/v1/keys/{key['id']}"
    database = sqlite3.connect(world.base / "kms.sqlite")
    sealed, root = database.execute(
        "select dek, overlay_root from keys"
    ).fetchone()
    assert world.call("DELETE", path).status_code == 204
    error(world.call("GET", path), 404, "kms.key.unknown")
    error(world.call("DELETE", path), 404, "kms.key.unknown")
    assert world.call("GET", "/v1/keys").json == {"keys": []}
    # the receipt stays readable
    assert world.audit(key["id"])[-1]["event"] == "kms.key.deleted"
    raw = b"".join(p.read_bytes() for p in world.base.glob("kms.sqlite*"))
    assert sealed not in raw
    assert root not in raw


# -- deliver -------------------------------------------------------------


def test_deliver(world: World) -> None:
    key = world.create_key()
    mine = jose.generate_key()
    answer = world.call(
        "POST", f"/v1/keys/{key['id']}/deliver", {"jwk": jose.public(mine)}
    )
    assert answer.status_code == 200
    jwe = answer.json["jwe"]
    assert jose.unwrap(jwe, mine, b"mh/key-deliver/v1") == DEK
    with pytest.raises(VerificationError):
        jose.unwrap(jwe, jose.generate_key(), b"mh/key-deliver/v1")
    record = world.audit(key["id"])[-1]
    assert record["event"] == "kms.deliver.delivered"
    assert record["recipient"] == mine["kid"]
    assert record["caller"] == "owner"


def test_deliver_is_for_the_owner(world: World) -> None:
    key = world.create_key()
    jwk = jose.public(jose.generate_key())
    path = f"/v1/keys/{key['id']}/deliver"
    auditor = world.make_token("auditor", PROJECT, ("auditor",))
    admin = world.make_token("admin", "ops", ("admin",))
    stranger = world.make_token("stranger", "other", ("owner",))
    for token, status, event in (
        (auditor, 403, "kms.access.denied"),
        (admin, 403, "kms.access.denied"),
        (stranger, 404, "kms.key.unknown"),
        ("", 401, "kms.auth.token"),
    ):
        answer = world.call("POST", path, {"jwk": jwk}, token)
        error(answer, status, event)
    assert len(world.audit(key["id"])) == 1


def test_no_record_no_delivery(world: World) -> None:
    key = world.create_key()
    with sqlite3.connect(world.base / "kms.sqlite") as connection:
        connection.execute(
            "create trigger stop before insert on audit begin"
            " select raise(abort, 'disk full'); end"
        )
    connection.close()
    answer = world.call(
        "POST",
        f"/v1/keys/{key['id']}/deliver",
        {"jwk": jose.public(jose.generate_key())},
    )
    error(answer, 503, "kms.db.unavailable")
    assert "jwe" not in answer.json


@pytest.mark.parametrize(
    "jwk", [{}, {"kty": "oct", "k": "AAAA"}, {"kty": "EC", "crv": "P-384"}]
)
def test_deliver_to_a_bad_key(world: World, jwk: dict[str, str]) -> None:
    key = world.create_key()
    answer = world.call("POST", f"/v1/keys/{key['id']}/deliver", {"jwk": jwk})
    error(answer, 400, "core.jose.key")
    assert len(world.audit(key["id"])) == 1


# -- whose is it ---------------------------------------------------------

OTHERS = [
    ("GET", "", None),
    ("DELETE", "", None),
    ("PUT", "/policy", {}),
    ("POST", "/deliver", {"jwk": {}}),
    ("POST", "/manifests", {"manifest": "x"}),
    ("DELETE", "/manifests/" + "00" * 32, None),
    ("POST", "/tickets", {"manifest_digests": ["00" * 32]}),
    ("GET", "/audit", None),
]


@pytest.mark.parametrize(("method", "path", "body"), OTHERS)
def test_anothers_key_is_as_if_not_there(
    world: World, method: str, path: str, body: Any
) -> None:
    key = world.create_key()
    stranger = world.make_token("stranger", "other", ("owner", "auditor"))
    theirs = world.call(method, f"/v1/keys/{key['id']}{path}", body, stranger)
    nobodys = world.call(
        method, f"/v1/keys/{uuid.uuid4()}{path}", body, stranger
    )
    for answer in (theirs, nobodys):
        assert answer.status_code == 404, answer.text
        answer.json["error"].pop("request_id")
    assert theirs.json["error"]["message"] == nobodys.json["error"]["message"]
    assert theirs.json["error"]["event"] == nobodys.json["error"]["event"]
    assert world.call("GET", "/v1/keys", token=stranger).json == {"keys": []}
    assert world.call("GET", f"/v1/keys/{key['id']}").json == key


@pytest.mark.parametrize(("method", "path", "body"), OTHERS)
def test_auditor_reads_only(
    world: World, method: str, path: str, body: Any
) -> None:
    key = world.create_key()
    auditor = world.make_token("auditor", PROJECT, ("auditor",))
    answer = world.call(method, f"/v1/keys/{key['id']}{path}", body, auditor)
    if method == "GET":
        assert answer.status_code == 200
    else:
        error(answer, 403, "kms.access.denied")
    body = {"name": "k", "jwe": "x", "policy": {}}
    error(
        world.call("POST", "/v1/keys", body, auditor),
        403,
        "kms.access.denied",
    )


def test_administrator_sees_all_but_no_key(world: World) -> None:
    key = world.create_key()
    admin = world.make_token("admin", "ops", ("admin",))
    assert world.call("GET", "/v1/keys", token=admin).json == {"keys": [key]}
    path = f"/v1/keys/{key['id']}"
    assert world.call("GET", path, token=admin).status_code == 200
    assert world.call("GET", path + "/audit", token=admin).status_code == 200
    error(world.call("DELETE", path, token=admin), 403, "kms.access.denied")


# -- credentials ---------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic eDp4",
        "Bearer mhk_" + "A" * 43,
        "Bearer " + "A" * 4000,
        "Bearer \xff",
    ],
)
def test_no_valid_token(world: World, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = world.client.simulate_get("/v1/keys", headers=headers)
    error(answer, 401, "kms.auth.token")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_revoked_token(world: World) -> None:
    assert world.call("GET", "/v1/keys").status_code == 200
    assert world.manage("token", "revoke", "owner") == 0
    error(world.call("GET", "/v1/keys"), 401, "kms.auth.token")
