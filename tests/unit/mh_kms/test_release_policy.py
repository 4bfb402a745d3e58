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

"""Release policies: what is accepted, and what absence means."""

from typing import Any

import pytest

from mh_core import jose
from mh_core.errors import InputError
from mh_kms.release_policy import BUILT_IN, ReleasePolicy
from tests.fixture import softtpm

SIGNER = jose.generate_key()
AUTHORITY = softtpm.Authority()
PEM = softtpm.Enroller().pem


def document(**changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "authorities": [AUTHORITY.to_dict()],
        "enrollers": [PEM],
        "projects": ["p"],
        "manifest_keys": [jose.public(SIGNER)],
    } | changes


def test_what_is_absent_is_strict() -> None:
    policy = ReleasePolicy.parse(document())
    assert policy.levels == ("trusted",)
    assert policy.purposes == ("launch", "start")
    assert policy.tickets == "required"
    assert policy.compat is False
    assert policy.lease == 0
    assert policy.tags == {}
    assert policy.all_checks == BUILT_IN


def test_checks_only_add() -> None:
    policy = ReleasePolicy.parse(document(checks=["tags", "mine"]))
    assert policy.all_checks == (*BUILT_IN, "mine")


def test_tags() -> None:
    policy = ReleasePolicy.parse(
        document(tags={"geo": "DE", "rack": ["1", "2"]})
    )
    assert policy.tags == {"geo": ("DE",), "rack": ("1", "2")}


@pytest.mark.parametrize("name", sorted(set(document()) - {"x"}))
def test_what_pins_must_be_there(name: str) -> None:
    value = document()
    del value[name]
    with pytest.raises(InputError):
        ReleasePolicy.parse(value)


def authority(**changes: Any) -> list[dict[str, Any]]:
    return [AUTHORITY.to_dict() | changes]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": "1"},
        {"unknown": 1},
        {"authorities": authority(url="http://127.0.0.1:1")},
        {"authorities": authority(url="https://a.test/path")},
        {"authorities": authority(url="https://u@a.test")},
        {"authorities": authority(url="https://a.test?x")},
        {"authorities": authority(url="file:///etc/passwd")},
        {"authorities": authority(issuer="")},
        {"authorities": authority(more=1)},
        {"authorities": authority(jwk=AUTHORITY.key)},
        {"authorities": authority(jwk={"kty": "oct", "k": "AAAA"})},
        {"authorities": [AUTHORITY.to_dict()] * 9},
        {"enrollers": ["x"]},
        {"enrollers": [1]},
        {"enrollers": [PEM + "x" * 9000]},
        {"levels": ["untrusted"]},
        {"levels": ["unknown"]},
        {"levels": "trusted"},
        {"projects": [""]},
        {"projects": ["p" * 65]},
        {"purposes": ["everything"]},
        {"manifest_keys": [SIGNER]},
        {"manifest_keys": [{}]},
        {"manifest_keys": [jose.public(SIGNER) | {"alg": [[]]}]},
        {"tickets": "optional"},
        {"tickets": False},
        {"compat": "yes"},
        {"compat": 1},
        {"lease": -1},
        {"lease": 1 << 40},
        {"tags": {"geo": 1}},
        {"tags": {"geo": [""]}},
        {"tags": {"": "x"}},
        {"checks": ["../x"]},
        {"checks": ["A"]},
    ],
)
def test_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ReleasePolicy.parse(document(**change))


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_not_an_object(value: Any) -> None:
    with pytest.raises(InputError):
        ReleasePolicy.parse(value)
