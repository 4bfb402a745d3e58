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
"""Trust states: batching, single flight, expiry, failing closed."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from mh_core.errors import MHError, Unavailable
from mh_scheduler.cache import Reply, TrustCache


class Server:
    """Answers every question, and remembers it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.level = "trusted"
        self.life = 10
        self.questions: list[list[str]] = []
        self.error: MHError | None = None
        self.forget: set[str] = set()
        self.during: Any = None

    def ask(self, hosts: Sequence[str], timeout: float) -> Mapping[str, Reply]:
        assert timeout > 0
        self.questions.append(list(hosts))
        if self.during is not None:
            self.during()
        if self.error is not None:
            raise self.error
        return {
            host: Reply(self.level, "attest.appraise.passed", self.life)
            for host in hosts
            if host not in self.forget
        }

    def cache(self, **changes: Any) -> TrustCache:
        options: dict[str, Any] = {
            "max_ttl": 30,
            "max_batch": 1000,
            "timeout": 5,
            "retry_after": 2,
            "clock": lambda: self.now,
        }
        return TrustCache(self.ask, **{**options, **changes})


@pytest.fixture
def server() -> Server:
    return Server()


def test_all_that_is_missing_in_one_question(server: Server) -> None:
    cache = server.cache()
    names = [f"node{i}" for i in range(50)]
    cache.states(names[:20])
    states, failure = cache.states(names)
    assert failure is None
    assert server.questions == [names[:20], names[20:]]
    assert {states[name].level for name in names} == {"trusted"}
    cache.states(names)
    assert len(server.questions) == 2


def test_each_host_expires_by_its_own_answer(server: Server) -> None:
    cache = server.cache()
    cache.states(["a"])
    server.now += 5
    cache.states(["b"])
    server.now += 5
    cache.states(["a", "b"])
    assert server.questions == [["a"], ["b"], ["a"]]


def test_life_is_capped(server: Server) -> None:
    server.life = 86400
    states, _failure = server.cache(max_ttl=3).states(["a"])
    assert states["a"].expires == server.now + 3


def test_life_counts_from_the_question(server: Server) -> None:
    def slow() -> None:
        server.now += 4

    server.during = slow
    states, _failure = server.cache().states(["a"])
    assert states["a"].expires == 110.0


def test_batches_are_bounded_and_so_is_their_time(server: Server) -> None:
    def slow() -> None:
        server.now += 3

    cache = server.cache(max_batch=2)
    cache.states(list("abcde"))
    assert server.questions == [["a", "b"], ["c", "d"], ["e"]]
    server.during = slow
    states, failure = cache.states(list("vwxyz"))
    assert failure is not None
    assert failure.event == "scheduler.cache.timeout"
    assert "v" in states
    assert "z" not in states


def test_failure_leaves_what_is_known_and_is_not_repeated(
    server: Server,
) -> None:
    cache = server.cache()
    cache.states(["a"])
    server.error = Unavailable("scheduler.client.silent", "down")
    for _pass in range(3):
        states, failure = cache.states(["a", "b"])
        assert failure is server.error
        assert states["a"].level == "trusted"
        assert "b" not in states
    assert len(server.questions) == 2
    server.now += 2
    cache.states(["b"])
    assert len(server.questions) == 3
    # an expired state stays expired, whoever looks
    server.now += 10
    states, failure = cache.states(["a"])
    assert failure is not None
    assert states["a"].expires <= server.now


def test_a_host_without_an_answer_loses_its_state(server: Server) -> None:
    cache = server.cache()
    cache.states(["a"])
    server.now += 10
    server.forget = {"a"}
    states, failure = cache.states(["a"])
    assert failure is None
    assert "a" not in states


def test_one_question_for_many_threads(server: Server) -> None:
    gate = threading.Event()
    server.during = lambda: gate.wait(5)
    cache = server.cache()
    found: list[str] = []

    def look() -> None:
        found.append(cache.states(["a", "b"])[0]["a"].level)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(10)
    assert found == ["trusted"] * 8
    assert server.questions == [["a", "b"]]


def test_waiting_for_another_question_is_bounded(server: Server) -> None:
    gate, asked = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        gate.wait(10)

    server.during = hang
    cache = server.cache(timeout=0.05)
    thread = threading.Thread(target=cache.states, args=(["a"],))
    thread.start()
    assert asked.wait(5)
    _states, failure = cache.states(["b"])
    gate.set()
    thread.join(10)
    assert failure is not None
    assert failure.event == "scheduler.cache.busy"
