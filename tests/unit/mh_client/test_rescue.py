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
"""A rescue is asked for with a ticket, and a refusal is said."""

import pytest

from mh_client.rescue import Rescue
from mh_client.steps import Steps
from mh_core.errors import Denied, InputError, MHError
from tests.unit.mh_client.host import Enroller
from tests.unit.mh_client.https import World
from tests.unit.mh_client.test_launch import IMAGE, TICKET, Bench

OTHER = "5a8c1f7e-0c57-4a1d-8f0e-3d2f1b6a9c03"
RESCUING = {"status": "ACTIVE", "OS-EXT-STS:task_state": "rescuing"}


@pytest.fixture
def bench(world: World, enroller: Enroller) -> Bench:
    bench = Bench(world, enroller)
    bench.cloud.states = [{"status": "ACTIVE"}, RESCUING, {"status": "RESCUE"}]
    return bench


def rescue(bench: Bench) -> Rescue:
    return Rescue(
        bench.servers,
        Steps(bench.stream, lambda: bench.now),
        lambda: bench.now,
        bench.sleep,
    )


def test_with_its_own_image(bench: Bench) -> None:
    assert rescue(bench).run("vm", None, 60).status == "RESCUE"
    assert bench.cloud.acts == [{"rescue": {"rescue_image_ref": IMAGE}}]
    assert not bench.records


def test_with_another_image(bench: Bench) -> None:
    """Its key wants a ticket, which the server's metadata carries."""
    for state in bench.cloud.states:
        state["image"] = {"id": OTHER}
    assert rescue(bench).run("vm", "web", 60).status == "RESCUE"
    assert bench.cloud.acts == [
        {"metadata": {"mh_rescue_ticket": TICKET}},
        {"rescue": {"rescue_image_ref": IMAGE}},
    ]
    assert TICKET not in bench.said


def test_an_image_that_is_not_ones_own(bench: Bench) -> None:
    del bench.cloud.image["mh_key_url"]
    with pytest.raises(InputError):
        rescue(bench).run("vm", "web", 60)
    assert not bench.cloud.acts


def test_refused(bench: Bench) -> None:
    bench.cloud.states = [
        {"status": "ACTIVE"},
        RESCUING,
        # nova's manager, before the host puts it right
        {"status": "ERROR"},
        {"status": "ACTIVE"},
    ]
    bench.decide("kms.release.purpose")
    with pytest.raises(Denied) as caught:
        rescue(bench).run("vm", None, 60)
    assert caught.value.event == "client.rescue.refused"
    assert "because [kms.release.purpose]" in str(caught.value)


def test_refused_by_somebody_who_says_nothing(bench: Bench) -> None:
    bench.cloud.states = [{"status": "ACTIVE"}, RESCUING, {"status": "ACTIVE"}]
    with pytest.raises(Denied, match="action log"):
        rescue(bench).run("vm", None, 60)


def test_in_error(bench: Bench) -> None:
    fault = {"message": "it broke"}
    bench.cloud.states = [
        {"status": "ACTIVE"},
        RESCUING,
        {"status": "ERROR", "fault": fault},
    ]
    with pytest.raises(MHError, match="it broke") as caught:
        rescue(bench).run("vm", None, 60)
    assert caught.value.event == "client.rescue.failed"


def test_it_takes_too_long(bench: Bench) -> None:
    bench.cloud.states = [{"status": "ACTIVE"}, RESCUING]
    with pytest.raises(MHError, match="after 60 s") as caught:
        rescue(bench).run("vm", None, 60)
    assert caught.value.event == "client.rescue.timeout"


def test_not_followed(bench: Bench) -> None:
    assert rescue(bench).run("vm", None, 0).status == "ACTIVE"
