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
"""The supervisor: real processes, known by pid and start time."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.minicloud import pids, steps
from tests.minicloud.pids import CloudError
from tests.minicloud.process import Supervisor

ENV = {"PATH": os.environ["PATH"]}


@pytest.fixture
def supervisor(tmp_path: pathlib.Path) -> Supervisor:
    for name in ("pids", "log"):
        (tmp_path / name).mkdir()
    return Supervisor(tmp_path / "pids", tmp_path / "log", tmp_path)


def _gone(pid: int) -> bool:
    found = pids.stat(pid)
    return found is None or found[0] in "ZX"


def test_a_process_is_started_once_and_ended(supervisor: Supervisor) -> None:
    argv = ["sleep", "60"]
    assert supervisor.start("one", argv, env=ENV)
    pid = supervisor.pid("one")
    assert not supervisor.start("one", argv, env=ENV)
    assert supervisor.pid("one") == pid
    supervisor.stop("one")
    assert _gone(pid)
    assert supervisor.names() == []
    supervisor.stop("one")


def test_other_settings_start_it_anew(
    supervisor: Supervisor, tmp_path: pathlib.Path
) -> None:
    config = tmp_path / "config"
    config.write_text("a")
    argv = ["sleep", "60"]
    supervisor.start("one", argv, env=ENV, inputs=[config])
    pid = supervisor.pid("one")
    config.write_text("b")
    assert supervisor.start("one", argv, env=ENV, inputs=[config])
    assert supervisor.pid("one") != pid
    assert _gone(pid)
    supervisor.stop("one")


def test_the_whole_group_ends(supervisor: Supervisor) -> None:
    script = "sleep 60 & echo $! ; trap '' TERM; wait; sleep 60"
    supervisor.start("one", ["sh", "-c", script], env=ENV)
    pids.wait_until(lambda: supervisor.tail("one") != "", 5, "output")
    child = int(supervisor.tail("one").split()[0])
    supervisor.stop("one", timeout=0.5)
    assert _gone(child)


def test_a_stranger_with_the_recorded_pid_is_left_alone(
    supervisor: Supervisor,
) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        path = supervisor.records / "one.json"
        path.write_text(
            json.dumps({"pid": stranger.pid, "started": 1, "stamp": ""})
        )
        assert not supervisor.alive("one")
        supervisor.stop("one")
        assert stranger.poll() is None
        assert not path.exists()
        stranger.kill()


def test_a_process_that_ends_while_starting_shows_its_log(
    supervisor: Supervisor,
) -> None:
    with pytest.raises(CloudError, match="the reason"):
        supervisor.start(
            "one",
            ["sh", "-c", "echo the reason; exit 3"],
            env=ENV,
            ready=lambda: False,
        )


def test_a_process_that_is_never_ready_is_named(
    supervisor: Supervisor,
) -> None:
    with pytest.raises(CloudError, match="one to be ready"):
        supervisor.start(
            "one",
            ["sleep", "60"],
            env=ENV,
            ready=lambda: False,
            timeout=0.3,
        )
    supervisor.stop("one")


def test_processes_without_a_record_are_found_by_their_mark(
    supervisor: Supervisor,
) -> None:
    script = "setsid sleep 60 & exec sleep 60"
    supervisor.start("one", ["sh", "-c", script], env=ENV)

    def apart() -> bool:
        """Before its setsid() the stray would end with the group."""
        return len({os.getsid(pid) for pid in supervisor.marked()}) == 2

    pids.wait_until(apart, 5, "both")
    supervisor.stop("one")
    [stray] = supervisor.marked()
    pids.end_pids([stray])
    assert supervisor.marked() == []


def test_a_command_that_fails_shows_its_output(
    supervisor: Supervisor,
) -> None:
    supervisor.command("tool", ["cat"], ENV, b"from the input")
    assert supervisor.tail("tool") == "from the input"
    with pytest.raises(CloudError, match="no good"):
        supervisor.command("tool", ["sh", "-c", "echo no good; exit 1"], ENV)


def test_a_process_that_ignores_the_request_is_made_to_end() -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        pids.end_pids([child.pid], timeout=0.3)
        assert _gone(child.pid)


def test_steps_keep_their_order() -> None:
    seen: list[str] = []
    plan = [
        steps.Step("c", lambda: seen.append("c"), ("a", "b")),
        steps.Step("b", lambda: seen.append("b"), ("a",)),
        steps.Step("a", lambda: seen.append("a")),
    ]
    steps.run_all(plan)
    assert seen == ["a", "b", "c"]


def test_a_failed_step_ends_the_waits_of_the_others() -> None:
    begun = time.monotonic()

    def fail() -> None:
        time.sleep(0.1)
        raise CloudError("broken")

    plan = [
        steps.Step(
            "waits", lambda: pids.wait_until(lambda: False, 60, "never")
        ),
        steps.Step("fails", fail),
        steps.Step("later", lambda: None, ("fails",)),
    ]
    with pytest.raises(CloudError, match="broken"):
        steps.run_all(plan)
    assert time.monotonic() - begun < 10
    assert not pids.GIVE_UP.is_set()


def test_an_interrupt_ends_the_waits() -> None:
    plan = [
        steps.Step(
            "waits", lambda: pids.wait_until(lambda: False, 60, "never")
        )
    ]
    # a shell starts what it puts in the background with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            steps.run_all(plan)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


def test_steps_that_wait_for_each_other_are_a_mistake() -> None:
    plan = [
        steps.Step("a", lambda: None, ("b",)),
        steps.Step("b", lambda: None, ("a",)),
    ]
    with pytest.raises(ValueError, match="never begun"):
        steps.run_all(plan)
