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
"""Trust states: fresh, cached, silent, single flight."""

import threading

from mh_core.errors import Unavailable
from tests.unit.mh_attest.host import log_of
from tests.unit.mh_attest.world import World


def test_asked_once_while_fresh(world: World) -> None:
    world.stop_clock()
    host = world.enrolled()
    host.calls.clear()
    world.now += 10
    answer = world.trust("node1", "nobody")
    assert answer["node1"] == {
        "level": "trusted",
        "expires_in": 20,
        "event": "attest.appraise.passed",
        "tags": {},
    }
    assert answer["nobody"]["level"] == "unknown"
    assert answer["nobody"]["event"] == "attest.trust.not-enrolled"
    assert host.calls == []


def test_asked_again_after_its_life(world: World) -> None:
    world.stop_clock()
    host = world.enrolled()
    host.boot(log_of(kernel=b"evil"))
    world.now += 29
    assert world.trust("node1")["node1"]["level"] == "trusted"
    world.now += 2
    found = world.trust("node1")["node1"]
    assert found["level"] == "untrusted"
    assert found["event"] == "attest.appraise.host-policy"
    assert world.call("GET", "/v1/hosts/node1", None, "reader")["level"] == (
        "untrusted"
    )


def test_half_way_it_is_renewed_behind_the_answer(world: World) -> None:
    world.stop_clock()
    host = world.enrolled()
    host.calls.clear()
    gate = threading.Event()
    host.lies["host_quote"] = lambda: gate.wait(10) and None
    world.now += 20
    # Answered at once, from what is known.
    assert world.trust("node1")["node1"]["expires_in"] == 10
    gate.set()
    for flight in list(world.app.board._flights.values()):
        flight.result(10)
    assert world.trust("node1")["node1"]["expires_in"] == 30


def test_a_silent_host_is_unknown_and_left_alone_a_while(
    world: World,
) -> None:
    world.stop_clock()
    host = world.enrolled()
    host.lies["host_quote"] = Unavailable("attest.listener.silent", "no")
    world.now += 31
    found = world.trust("node1")["node1"]
    assert (found["level"], found["event"], found["expires_in"]) == (
        "unknown",
        "attest.listener.silent",
        5,
    )
    host.calls.clear()
    world.now += 4
    assert world.trust("node1")["node1"]["level"] == "unknown"
    assert host.calls == []
    host.lies.clear()
    world.now += 2
    assert world.trust("node1")["node1"]["level"] == "trusted"


def test_silence_does_not_end_a_state_that_is_good(world: World) -> None:
    world.stop_clock()
    host = world.enrolled()
    host.lies["host_quote"] = Unavailable("attest.listener.silent", "no")
    world.now += 20
    world.trust("node1")
    for flight in list(world.app.board._flights.values()):
        flight.result(10)
    assert world.trust("node1")["node1"]["level"] == "trusted"


def test_garbage_is_no_trust(world: World) -> None:
    world.stop_clock()
    host = world.enrolled()
    host.lies["host_quote"] = {"x": 1}
    world.now += 31
    assert world.trust("node1")["node1"]["level"] == "unknown"
    # evidence of the host, but for another nonce
    old = host.evidence("mh/quote/host/v1", bytes(32), host.tpm.bind.name)
    host.lies["host_quote"] = old
    world.now += 31
    found = world.trust("node1")["node1"]
    assert found["level"] == "untrusted"
    assert found["event"] == "attest.appraise.evidence"


def test_another_hosts_evidence_is_no_trust(world: World) -> None:
    world.stop_clock()
    bad = world.enrolled("node1")
    good = world.enrolled("node2")
    bad.host_quote = good.host_quote  # type: ignore[method-assign]
    world.now += 31
    found = world.trust("node1", "node2")
    assert found["node1"]["level"] == "unknown"
    assert found["node1"]["event"] == "attest.appraise.host"
    assert found["node2"]["level"] == "trusted"


def test_one_question_for_many_askers(world: World) -> None:
    world.stop_clock()
    host = world.enrolled()
    host.calls.clear()
    gate = threading.Event()
    host.lies["host_quote"] = lambda: gate.wait(10) and None
    world.now += 31
    levels: list[str] = []

    def ask() -> None:
        levels.append(world.app.board.ask(["node1"])["node1"]["level"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    while not host.calls:
        pass
    gate.set()
    for thread in threads:
        thread.join(10)
    assert levels == ["trusted"] * 8
    assert host.calls == ["host_quote"]


def test_a_reboot_that_another_quote_shows_ends_the_state(
    world: World,
) -> None:
    from tests.unit.mh_attest.test_api import appraisal

    world.stop_clock()
    host = world.enrolled()
    host.calls.clear()
    host.tpm.reboot()
    world.call("POST", "/v1/appraisals", appraisal(host), "relying", 200)
    assert world.trust("node1")["node1"]["level"] == "trusted"
    assert host.calls == ["host_quote"]


def test_a_question_of_a_thousand_and_no_more(world: World) -> None:
    names = [f"n{i}" for i in range(1000)]
    assert len(world.trust(*names)) == 1000
    body = {"hosts": [*names, "n"]}
    found = world.call("POST", "/v1/hosts/trust", body, "reader", 400)
    assert found["error"]["event"] == "attest.trust.body"
    body = {"hosts": ["n", "n"]}
    world.call("POST", "/v1/hosts/trust", body, "reader", 400)
