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
"""Progress stays out of the result."""

import io

import pytest

from mh_glance.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Terminal()
    bar = Bar(stream, "upload")
    for done in (0, 1, 2, 50, 100):
        bar.update(done, 100)
    bar.finish()
    text = stream.getvalue()
    assert text.count("\r") == 6
    assert "100%" in text
    assert text.endswith("s\n")
    assert capsys.readouterr().out == ""


def test_a_log_gets_one_line() -> None:
    stream = io.StringIO()
    bar = Bar(stream, "upload")
    for done in range(101):
        bar.update(done, 100)
    bar.finish()
    assert stream.getvalue().count("\n") == 1
    assert "\r" not in stream.getvalue()


def test_a_step_that_broke_off_does_not_claim_more() -> None:
    stream = io.StringIO()
    bar = Bar(stream, "upload")
    bar.update(1, 2)
    bar.finish()
    assert " 50%" in stream.getvalue()
