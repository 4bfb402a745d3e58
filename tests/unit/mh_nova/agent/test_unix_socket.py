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
"""The agent's sockets are root's from their first moment on."""

import os
import stat
from pathlib import Path

import pytest

from mh_nova.agent.unix_socket import bound


def test_only_root_may_reach_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    before = os.umask(0)
    try:
        made = bound(str(path))
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made.close()


def test_what_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    bound(path).close()
    assert os.path.exists(path)
    made = bound(path)
    made.listen(1)
    made.close()


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="path too long"):
        bound(str(tmp_path / ("x" * 120)))
