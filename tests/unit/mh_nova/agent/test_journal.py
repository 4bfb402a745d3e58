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
"""The audit log goes on after a write that failed."""

import os
from pathlib import Path

import pytest

from mh_core.audit import verify_chain
from mh_core.errors import Unavailable
from mh_nova.agent.journal import Journal, read


def test_a_failed_write_does_not_break_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.log"
    journal = Journal(path)
    journal.write("agent.test.one", "i")
    real = os.write
    # a disk that is full takes a part of the line
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:9]))
    with pytest.raises(Unavailable):
        journal.write("agent.test.lost", "i")
    monkeypatch.undo()

    def full(fd: int) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(Unavailable):
        journal.write("agent.test.lost", "i")
    monkeypatch.undo()
    assert journal.write("agent.test.two", "i") == "agent#2"
    journal.close()
    verify_chain(read(path))
    again = Journal(path)
    assert again.write("agent.test.three", "i") == "agent#3"
    again.close()
