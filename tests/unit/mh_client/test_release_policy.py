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
"""Release policies: made, changed, and accepted by the key server."""

from typing import Any

import pytest

from mh_client.attest import Authority
from mh_client.release_policy import Changes, Rules
from mh_core import jose
from mh_core.errors import InputError
from mh_kms.release_policy import ReleasePolicy
from tests.unit.mh_client.host import Enroller


@pytest.fixture
def authority(enroller: Enroller) -> Authority:
    return Authority(
        "https://a.test",
        "https://a.test:8444",
        jose.public(jose.generate_key()),
        enroller.pem,
    )


def policy(authority: Authority, **more: Any) -> dict[str, Any]:
    rules = Rules(projects=("p",), **more)
    return rules.to_policy(authority, jose.generate_key())


def test_the_key_server_understands_it(authority: Authority) -> None:
    for more in (
        {},
        {"level": "boot-only", "tickets": False, "compat": True},
        {"tags": {"geo": ("DE", "FR")}, "lease": 60},
    ):
        made = policy(authority, **more)
        found = ReleasePolicy.parse(made)
        assert list(found.levels) == made["levels"]
        assert found.tickets == made["tickets"]
        assert (found.compat, found.lease) == (made["compat"], made["lease"])
        assert {n: list(v) for n, v in found.tags.items()} == made["tags"]


def test_strict_by_default(authority: Authority) -> None:
    made = policy(authority)
    assert made["levels"] == ["trusted"]
    assert made["tickets"] == "required"
    assert made["compat"] is False
    assert made["purposes"] == [
        "launch",
        "start",
        "migrate-in",
        "resize",
    ]
    assert "d" not in made["manifest_keys"][0]


@pytest.mark.parametrize(
    "more",
    [
        {"projects": ()},
        {"level": "any"},
        {"purposes": ()},
        {"purposes": ("boot",)},
        {"lease": -1},
    ],
)
def test_senseless_rules(more: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Rules(**{"projects": ("p",), **more}).check()


def test_no_change_changes_nothing(authority: Authority) -> None:
    made = policy(authority, tags={"geo": ("DE",)}, tickets=False)
    assert Changes().apply(made) == made


def test_changes(authority: Authority) -> None:
    made = policy(authority, tags={"geo": ("DE",)})
    changes = Changes(
        add_projects=("q", "p"),
        remove_projects=("p",),
        level="boot-only",
        purposes=("start",),
        tickets=False,
        compat=True,
        lease=5,
        tags={"rack": ("7",)},
        remove_tags=("geo",),
    )
    changed = changes.apply(made)
    assert changed["projects"] == ["q", "p"]
    assert changed["levels"] == ["trusted", "boot-only"]
    assert changed["purposes"] == ["start"]
    assert (changed["tickets"], changed["compat"]) == ("none", True)
    assert (changed["lease"], changed["tags"]) == (5, {"rack": ["7"]})
    for name in ("authorities", "enrollers", "manifest_keys", "checks"):
        assert changed[name] == made[name]


def test_the_last_project_stays(authority: Authority) -> None:
    with pytest.raises(InputError):
        Changes(remove_projects=("p",)).apply(policy(authority))


def test_a_policy_nobody_knows() -> None:
    with pytest.raises(InputError):
        Changes().apply({"version": 2})
