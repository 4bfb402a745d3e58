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
"""Keys: made here, wrapped, and written nowhere."""

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from mh_client import signing
from mh_client.attest import Attest
from mh_client.keys import Keys
from mh_client.kms import APV_UPLOAD, Kms
from mh_client.release_policy import Rules
from mh_core import jose
from mh_core.errors import InputError, VerificationError
from tests.unit.mh_client.https import Answer, Request, World
from tests.unit.mh_client.test_kms import document


class Store:
    """Keeps what a key server would open."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.deks: list[bytes] = []
        self.policies: list[Any] = []
        world.kms.routes["POST", "/v1/keys"] = self.create

    def create(self, request: Request) -> Answer:
        jwe = request.body["jwe"]
        self.deks.append(jose.unwrap(jwe, self.world.transport, APV_UPLOAD))
        self.policies.append(request.body["policy"])
        return 201, document(self.world, policy=request.body["policy"])


@pytest.fixture
def store(world: World) -> Store:
    return Store(world)


def keys(world: World, notices: list[str]) -> Keys:
    config = world.config()
    return Keys(
        config, Kms(config.kms), lambda: Attest(config), notices.append
    )


def test_create(world: World, store: Store) -> None:
    notices: list[str] = []
    subject = keys(world, notices)
    subject.create("web", Rules(projects=("p",)))
    subject.create("web", Rules(projects=("p",)))
    assert len(store.deks[0]) == 32
    assert store.deks[0] != store.deks[1]
    own = signing.load(world.folder / "signing.jwk")
    made = store.policies[0]
    assert made["manifest_keys"] == [jose.public(own)]
    assert made["authorities"][0]["issuer"] == world.issuer
    # one signing key for both, with one notice
    assert store.policies[1]["manifest_keys"] == made["manifest_keys"]
    assert len(notices) == 1
    assert own["d"] not in notices[0]


def test_the_key_is_in_no_file(world: World, store: Store) -> None:
    keys(world, []).create("web", Rules(projects=("p",)))
    dek = store.deks[0]
    needles = (
        dek,
        dek.hex().encode(),
        base64.b64encode(dek),
        base64.urlsafe_b64encode(dek).rstrip(b"="),
    )
    written = [p for p in world.folder.rglob("*") if p.is_file()]
    assert written
    for path in written:
        data = path.read_bytes()
        assert not any(needle in data for needle in needles)
    for request in world.kms.requests + world.attest.requests:
        text = json.dumps([request.body, request.headers]).encode()
        assert not any(needle in text for needle in needles)


def test_nothing_is_sent_where_a_pin_differs(
    world: World, store: Store
) -> None:
    config = world.config(issuer="https://other.test")
    subject = Keys(
        config, Kms(config.kms), lambda: Attest(config), lambda _: None
    )
    with pytest.raises(VerificationError) as caught:
        subject.create("web", Rules(projects=("p",)))
    assert caught.value.event == "client.attest.issuer"
    assert not store.deks
    assert not (world.folder / "signing.jwk").exists()


def test_signing_key_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "signing.jwk"
    made = signing.load_or_create(path, lambda _: None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signing.load_or_create(path, lambda _: None) == made
    path.chmod(0o640)
    with pytest.raises(InputError) as caught:
        signing.load(path)
    assert caught.value.event == "client.signing.key"
    assert made["d"] not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        json.dumps(jose.public(jose.generate_key())),
        '{"kty": "oct", "k": "AA", "d": "x"}',
    ],
)
def test_what_is_no_signing_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "signing.jwk"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(InputError):
        signing.load(path)
