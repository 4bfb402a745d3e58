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
"""The attestation server's identity is what was pinned, or nothing."""

from typing import Any

import pytest

from mh_client.attest import Attest
from mh_core import jose
from mh_core.errors import InputError, MHError, VerificationError
from tests.unit.mh_client.host import Enroller
from tests.unit.mh_client.https import World


def change(world: World, **more: Any) -> None:
    answer = world.attest.routes["GET", "/v1"]
    assert isinstance(answer, tuple)
    world.attest.routes["GET", "/v1"] = (200, {**answer[1], **more})


def test_pinned_authority(world: World, enroller: Enroller) -> None:
    found = Attest(world.config()).authority()
    assert found.issuer == world.issuer
    assert found.enroller_pem == enroller.pem
    assert found.to_policy() == {
        "issuer": world.issuer,
        "url": world.attest.url,
        "jwk": jose.public(world.result_key),
    }


@pytest.mark.parametrize(
    ("member", "event"),
    [
        ("issuer", "client.attest.issuer"),
        ("jwk", "client.attest.jwk"),
        ("enroller_certificate", "client.attest.enroller"),
    ],
)
def test_another_authority(world: World, member: str, event: str) -> None:
    lies = {
        "issuer": "https://liar.test",
        "jwk": jose.public(jose.generate_key()),
        "enroller_certificate": Enroller().pem,
    }
    change(world, **{member: lies[member]})
    with pytest.raises(VerificationError) as caught:
        Attest(world.config()).authority()
    assert caught.value.event == event


@pytest.mark.parametrize(
    "pin", ["issuer", "jwk_thumbprint", "enroller_sha256"]
)
def test_no_pin_no_trust(world: World, pin: str) -> None:
    with pytest.raises(InputError) as caught:
        Attest(world.config(**{pin: ""})).authority()
    assert caught.value.event == "client.config.pin"
    assert pin in caught.value.message
    assert not world.attest.requests


@pytest.mark.parametrize(
    "more",
    [
        {"jwk": {"kty": "oct"}},
        {"enroller_certificate": "-----BEGIN CERTIFICATE-----"},
        {"issuer": 1},
        {"other": 1},
    ],
)
def test_bad_identity(world: World, more: dict[str, Any]) -> None:
    change(world, **more)
    with pytest.raises(MHError):
        Attest(world.config()).authority()


def test_a_name_stays_one_segment(world: World) -> None:
    world.attest.routes["DELETE", "/v1/hosts/..%2Ftokens"] = (204, None)
    attest = Attest(world.config())
    attest.delete_host("../tokens")
    assert world.attest.requests[-1].path == "/v1/hosts/..%2Ftokens"
    for name in ("", ".", ".."):
        with pytest.raises(InputError):
            attest.delete_host(name)


@pytest.mark.parametrize("answer", [[], {}, {"hosts": 1}, {"hosts": [1]}])
def test_bad_lists(world: World, answer: Any) -> None:
    world.attest.routes["GET", "/v1/hosts"] = (200, answer)
    with pytest.raises(InputError):
        Attest(world.config()).hosts()
