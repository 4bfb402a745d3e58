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
"""libvirt's hook: whom it asks about, and when it lets libvirt go on."""

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mh_nova.cmd import libvirt_hook
from tests.unit.mh_nova.hook.fake_agent import FakeAgent, no

INSTANCE = "4f0c6a52-0d36-4f55-a2f5-1d4a4f7b8c10"
PLAIN = f"<domain><uuid>{INSTANCE}</uuid></domain>"
OURS = PLAIN.replace("</domain>", "<encryption format='luks'/></domain>")
BEGIN = ["instance-1", "migrate", "begin", "-"]
SCRIPT = Path(__file__).parents[4] / "etc/mh-nova/libvirt-qemu-hook"


@pytest.fixture
def agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeAgent]:
    fake = FakeAgent(str(tmp_path / "a.sock"))
    monkeypatch.setattr(libvirt_hook, "SOCKET", fake.path)
    yield fake
    fake.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(words: list[str], xml: str) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(xml))
        return libvirt_hook.main(words)

    return call


def test_the_agent_sees_what_libvirt_starts(
    agent: FakeAgent, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.answers["migrate-in"] = {
        "ok": True,
        "ours": True,
        "event": "agent.start.granted",
        "detail": "",
    }
    assert run(BEGIN, OURS) == 0
    assert agent.seen == [
        {"verb": "migrate-in", "instance": INSTANCE, "xml": OURS}
    ]
    # libvirt would take output for another domain
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("xml", [PLAIN, OURS])
def test_what_the_agent_refuses_is_refused(
    agent: FakeAgent, run: Any, xml: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent.answers["migrate-in"] = no("agent.migrate.not-expected")
    assert run(BEGIN, xml) == 1
    assert "[agent.migrate.not-expected]" in caplog.text


def test_guests_of_others_come_in(agent: FakeAgent, run: Any) -> None:
    agent.answers["migrate-in"] = {
        "ok": True,
        "ours": False,
        "event": "",
        "detail": "",
    }
    assert run(BEGIN, PLAIN) == 0


@pytest.mark.parametrize(("xml", "status"), [(PLAIN, 0), (OURS, 1)])
@pytest.mark.parametrize("answer", [None, b"rubbish", {"ok": True}])
def test_an_agent_that_does_not_answer(
    agent: FakeAgent, run: Any, answer: Any, xml: str, status: int
) -> None:
    agent.answers["migrate-in"] = answer
    assert run(BEGIN, xml) == status
    agent.close()
    assert run(BEGIN, xml) == status


@pytest.mark.parametrize(
    "xml", ["", "<domain/>", "x" * (1 << 20) + OURS, "<uuid>1</uuid>"]
)
def test_a_domain_that_cannot_be_read(run: Any, xml: str) -> None:
    assert run(BEGIN, xml) == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["g"],
        ["g", "prepare", "begin", "-"],
        ["g", "migrate", "end", "-"],
        ["g", "started", "begin", "-"],
    ],
)
def test_nothing_else_is_asked_about(
    agent: FakeAgent, run: Any, words: list[str]
) -> None:
    assert run(words, "") == 0
    assert agent.seen == []


def test_the_script_starts_no_program_for_the_rest(tmp_path: Path) -> None:
    for words, status in (
        (["g", "start", "begin", "-"], 0),
        # and the program, which is not on this path, for a migration
        (["g", "migrate", "begin", "-"], 127),
    ):
        done = subprocess.run(
            ["/bin/sh", SCRIPT, *words],
            env={"PATH": str(tmp_path)},
            capture_output=True,
            check=False,
        )
        assert done.returncode == status
