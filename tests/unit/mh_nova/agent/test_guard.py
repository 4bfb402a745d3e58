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
"""What the deployment guard reads in qemu.conf."""

import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mh_nova.agent.guard import Guard


@pytest.fixture(autouse=True)
def no_core() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def cores(folder: Path, data: bytes) -> bool:
    (folder / "qemu.conf").write_bytes(data)
    (folder / "state").mkdir(mode=0o700, exist_ok=True)
    agent = SimpleNamespace(
        require_tmpfs=False,
        libvirt_domain_dir="",
        qemu_conf=str(folder / "qemu.conf"),
        state_dir=str(folder / "state"),
    )
    prover: Any = SimpleNamespace(check=lambda: None, ak_certificate="PEM")
    found = Guard(SimpleNamespace(agent=agent), prover).findings()
    assert {event.id for event in found} <= {"agent.guard.core"}
    return bool(found)


@pytest.mark.parametrize(
    "text",
    [
        'max_core = "unlimited"',
        "max_core = 'unlimited'",
        "max_core=1",
        "  max_core = 4096 # bytes",
        "max_core = -1",
        "max_core =",
        'user = "root"; max_core = "unlimited"',
        "max_core = 0\nmax_core = 1",
        'user = "root"\r\nmax_core = "unlimited"\r\n',
    ],
)
def test_core_dumps_on(tmp_path: Path, text: str) -> None:
    assert cores(tmp_path, text.encode())


@pytest.mark.parametrize(
    "text",
    ["", "max_core = 0", "x = 1\n\n max_core=0 # off\n", "#max_core = 1"],
)
def test_core_dumps_off(tmp_path: Path, text: str) -> None:
    assert not cores(tmp_path, text.encode())


def test_not_text(tmp_path: Path) -> None:
    assert cores(tmp_path, b"\xff\xfe")
