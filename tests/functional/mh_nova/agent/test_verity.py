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
"""fs-verity in a kernel that has it: Debian's, as a guest.

``verity_guest`` runs there, with the agent's own modules; each of its cases
is held against what it must say here.  The digests are fsverity-utils'.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
from typing import Any

import pytest

from tests.fixture import kernel
from tests.functional.mh_nova.agent import verity_guest

VECTORS = pathlib.Path(__file__).parents[3] / "vectors/verity/digests.json"
READ = "4096 bytes"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kernel")
    disk = folder / "disk"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-O", "verity"]
        + ["-b", str(verity_guest.BLOCK), disk, "64M"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    sizes = [case["size"] for case in vectors()]
    text = kernel.run(
        folder,
        verity_guest.__name__,
        disk,
        {verity_guest.SIZES: json.dumps(sizes).encode()},
    )
    for line in text.splitlines():
        _before, mark, after = line.partition(verity_guest.PRINTED)
        if mark:
            answer: dict[str, Any] = json.loads(after)
            return answer
    raise AssertionError(f"nothing was printed: {text[-2000:]}")


def vectors() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(VECTORS.read_text())["cases"]
    return cases


def test_the_digest_is_that_of_fsverity_utils(found: dict[str, Any]) -> None:
    wanted = [[True, True, case["digest"]] for case in vectors()]
    assert found["digests"] == wanted


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        (
            "said",
            [
                *(True, False, "agent.verity.missing"),
                *("agent.verity.writer", "done", "done"),
            ],
        ),
        ("afterwards", ["done", "done", "done", "EPERM", "EPERM", "done"]),
        (
            "changed",
            [
                *("done", [READ, "EIO", READ], "EIO"),
                *(["done", "EIO", "done"], True),
            ],
        ),
        ("replaced", 2),
        (
            "by_itself",
            [
                True,
                *(["same", 0, READ], ["same", 0, READ]),
                # the host was started again
                *(["same", 1, READ], ["same", 0, READ], ["same", 0, READ]),
            ],
        ),
        ("required", [True, ["same", 0, READ]]),
        ("found_there", [["same", 1, READ], ["same", 0, READ]]),
        (
            "changed_under_the_agent",
            [["same", 0, "EIO"], ["same", 0, "EIO"], ["agent.hash.read", 1]],
        ),
        ("changed_without", ["same", 0, READ]),
        ("replaced_by_another", ["other", 1, READ]),
        ("changed_before", "agent.verity.differs"),
        ("changed_before_by_itself", ["other", 1, READ]),
    ],
)
def test_case(found: dict[str, Any], case: str, wanted: object) -> None:
    assert found[case] == wanted


def test_what_it_is_about(found: dict[str, Any]) -> None:
    """Without fs-verity a changed block is read as if it were the file's."""
    block, sha256 = found["unprotected"]
    assert block == READ
    assert sha256 != verity_guest.SHA256
