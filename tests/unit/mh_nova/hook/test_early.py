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


def work(seen: list[str]) -> Callable[[], None]:
    return lambda: seen.append("prepared")


def test_what_was_begun_is_waited_for() -> None:
    go, seen = threading.Event(), list[str]()

    def slow() -> None:
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
    def fails() -> None:
        raise error

    begun = early.Early()
    begun.begin(NAME, (), fails)
    with caplog.at_level("DEBUG"):
        assert not begun.take(NAME, ())
    assert "secret" not in caplog.text


def test_no_worker_was_free() -> None:
    begun, seen, go = early.Early(workers=1), list[str](), threading.Event()
    begun.begin("another", (), lambda: assert_(go.wait(10)))
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
