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
"""A flavor is trusted, or it is not there."""

from typing import Any

import pytest

from mh_client.flavors import EXTRA_SPECS, Flavors
from mh_core.errors import Conflict, Denied, MHError
from tests.unit.mh_client.test_launch import Reply


class Nova:
    """Answers POSTs one after the other."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.calls: list[tuple[str, str, Any]] = []

    def post(self, url: str, **more: Any) -> Reply:
        self.calls.append(("POST", url, more.get("json")))
        return self.replies.pop(0)

    def delete(self, url: str, **_: Any) -> Reply:
        self.calls.append(("DELETE", url, None))
        return Reply(202, {})

    def get(self, url: str, **_: Any) -> Reply:
        raise AssertionError(url)


MADE = Reply(200, {"flavor": {"id": "f1", "name": "t"}})


def test_create() -> None:
    nova = Nova(MADE, Reply(200, {}))
    found = Flavors(nova).create("t", 64, 1, 2)
    assert found["extra_specs"] == EXTRA_SPECS
    assert nova.calls[0][2]["flavor"] == {
        "name": "t", "ram": 64, "vcpus": 1, "disk": 2, "id": None,
    }  # fmt: skip
    assert nova.calls[1] == (
        "POST",
        "/flavors/f1/os-extra_specs",
        {"extra_specs": EXTRA_SPECS},
    )


def test_a_flavor_without_its_specs_does_not_stay() -> None:
    refused = Reply(400, {"badRequest": {"message": "unknown spec"}})
    nova = Nova(MADE, refused)
    with pytest.raises(MHError) as caught:
        Flavors(nova).create("t", 64, 1, 2)
    assert caught.value.event == "client.flavor.extra-specs"
    assert "unknown spec" in caught.value.message
    assert nova.calls[-1] == ("DELETE", "/flavors/f1", None)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(403, {"forbidden": {"message": "no"}}), Denied),
        (Reply(409, {"conflictingRequest": {"message": "there"}}), Conflict),
        (Reply(500, ["odd"]), MHError),
        (Reply(502, "<html>"), MHError),
    ],
)
def test_nova_refuses(reply: Reply, kind: type[MHError]) -> None:
    with pytest.raises(kind) as caught:
        Flavors(Nova(reply)).create("t", 64, 1, 2)
    assert caught.value.event == "client.flavor.create"
