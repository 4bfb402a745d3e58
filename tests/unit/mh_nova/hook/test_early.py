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

import threading
from collections.abc import Callable

import pytest

from mh_core.errors import Denied
from mh_nova.hook import early

NAME = "5f4dcc3b-5aa7-4d61-8327-deb882cf99aa"
DISKS = (("disk.swap", 1 << 20),)


Work = Callable[[early.Gate], None]


def work(seen: list[str]) -> Work:
    return lambda _gate: seen.append("prepared")


class Slow:
    """First the image service, then the agent; each answers when told."""

    def __init__(self) -> None:
        self.service, self.agent = threading.Event(), threading.Event()
        self.asks, self.tells = threading.Event(), threading.Event()
        self.ended = threading.Event()
        self.told = False

    def __call__(self, gate: early.Gate) -> None:
        try:
            self.asks.set()
            assert self.service.wait(10)
            with gate.passing():
                self.tells.set()
                assert self.agent.wait(10)
                self.told = True
        finally:
            self.ended.set()

    def begin(self, begun: early.Early, name: str = NAME) -> None:
        begun.begin(name, (), self)
        assert self.asks.wait(10)

    def is_not_told(self) -> None:
        self.service.set()
        self.agent.set()
        assert self.ended.wait(10)
        assert not self.told


def test_dropped_before_the_agent_is_told() -> None:
    """Without a wait for the image service."""
    begun, slow = early.Early(), Slow()
    slow.begin(begun)
    begun.drop(NAME)
    slow.is_not_told()


def test_dropped_while_the_agent_is_told() -> None:
    """What the agent is told next comes after that."""
    begun, slow = early.Early(), Slow()
    slow.begin(begun)
    slow.service.set()
    assert slow.tells.wait(10)
    threading.Timer(0.05, slow.agent.set).start()
    begun.drop(NAME)
    assert slow.told


def test_begun_again_the_first_is_dropped() -> None:
    begun, slow, seen = early.Early(), Slow(), list[str]()
    slow.begin(begun)
    begun.begin(NAME, (), work(seen))
    slow.is_not_told()
    assert begun.take(NAME, ())


def test_what_is_too_old_does_not_come_into_the_launch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, slow = early.Early(), Slow()
    slow.begin(begun)
    monkeypatch.setattr(early, "MAX_AGE", -1.0)
    assert not begun.take(NAME, ())
    slow.is_not_told()


def test_what_is_let_go_of_does_not_come_into_the_launch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a launch that another one's beginning found to be too old."""
    begun, slow, seen = early.Early(), Slow(), list[str]()
    slow.begin(begun)
    monkeypatch.setattr(early, "MAX_AGE", -1.0)
    begun.begin("another", (), work(seen))
    assert not begun.take(NAME, ())
    slow.is_not_told()


def test_what_tells_the_agent_is_not_let_go_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, slow, seen = early.Early(), Slow(), list[str]()
    slow.begin(begun)
    slow.service.set()
    assert slow.tells.wait(10)
    monkeypatch.setattr(early, "MAX_AGE", -1.0)
    begun.begin("another", (), work(seen))
    threading.Timer(0.05, slow.agent.set).start()
    assert not begun.take(NAME, ())
    assert slow.told


def test_what_was_begun_is_waited_for() -> None:
    go, seen = threading.Event(), list[str]()

    def slow(_gate: early.Gate) -> None:
        assert go.wait(10)
        seen.append("prepared")

    begun = early.Early()
    begun.begin(NAME, DISKS, slow)
    threading.Timer(0.05, go.set).start()
    assert begun.take(NAME, DISKS)
    assert seen == ["prepared"]


def test_nothing_was_begun() -> None:
    assert not early.Early().take(NAME, ())


def test_it_is_taken_once() -> None:
    begun, seen = early.Early(), list[str]()
    begun.begin(NAME, (), work(seen))
    assert begun.take(NAME, ())
    assert not begun.take(NAME, ())


def test_for_other_disks_it_is_done_again() -> None:
    begun, seen = early.Early(), list[str]()
    begun.begin(NAME, DISKS, work(seen))
    assert not begun.take(NAME, ())


def test_dropped_is_not_taken() -> None:
    begun, seen = early.Early(), list[str]()
    begun.begin(NAME, (), work(seen))
    begun.drop(NAME)
    assert not begun.take(NAME, ())


@pytest.mark.parametrize(
    "error", [Denied("hook.image.missing", "gone"), RuntimeError("secret")]
)
def test_a_failure_is_no_refusal(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_gate: early.Gate) -> None:
        raise error

    begun = early.Early()
    begun.begin(NAME, (), fails)
    with caplog.at_level("DEBUG"):
        assert not begun.take(NAME, ())
    assert "secret" not in caplog.text


def test_no_worker_was_free() -> None:
    begun, seen, go = early.Early(workers=1), list[str](), threading.Event()
    begun.begin("another", (), lambda _gate: assert_(go.wait(10)))
    begun.begin(NAME, (), work(seen))
    assert not begun.take(NAME, ())
    go.set()
    assert begun.take("another", ())
    assert seen == []


def assert_(value: bool) -> None:
    assert value


def test_what_is_too_old_is_done_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, seen = early.Early(), list[str]()
    begun.begin(NAME, (), work(seen))
    monkeypatch.setattr(early, "MAX_AGE", -1.0)
    assert not begun.take(NAME, ())


def test_what_is_too_old_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, seen = early.Early(), list[str]()
    begun.begin(NAME, (), work(seen))
    monkeypatch.setattr(early, "MAX_AGE", -1.0)
    begun.begin("another", (), work(seen))
    monkeypatch.setattr(early, "MAX_AGE", 60.0)
    assert not begun.take(NAME, ())
