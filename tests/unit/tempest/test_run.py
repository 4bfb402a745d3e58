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
"""What is chosen and what is compared, without a cloud."""

from __future__ import annotations

import ast
import importlib.util
import pathlib
import re

import pytest

from tests.tempest.run import (
    ALL,
    LEFT_OUT,
    SHORT_LIST,
    failed,
    these,
    worse,
)


def names() -> list[str]:
    """Of tempest's compute tests, from its source: their modules cannot be
    imported without a cloud's configuration."""
    found = importlib.util.find_spec("tempest")
    assert found is not None
    assert found.origin is not None
    top = pathlib.Path(found.origin).parent
    out = []
    for path in (top / "api" / "compute").rglob("test_*.py"):
        module = ".".join(path.relative_to(top.parent).with_suffix("").parts)
        for kind in ast.parse(path.read_text()).body:
            if isinstance(kind, ast.ClassDef):
                out += [
                    f"{module}.{kind.name}.{member.name}"
                    for member in kind.body
                    if isinstance(member, ast.FunctionDef)
                    and member.name.startswith("test_")
                ]
    return out


NAMES = names()


@pytest.mark.parametrize("one", [ALL, LEFT_OUT, *SHORT_LIST])
def test_what_is_chosen_exists(one: str) -> None:
    """A test that moves to another class is not left out without a word."""
    assert any(re.search(one, name) for name in NAMES)


def test_worse_is_what_passes_with_novas_own_only() -> None:
    stock = {
        "both": "success",
        "fails": "fail",
        "lost": "success",
        "gone": "success",
        "skipped": "skip",
        "turned off": "success",
    }
    ours = {
        "both": "success",
        "fails": "success",
        "lost": "fail",
        "skipped": "fail",
        "turned off": "skip",
    }
    assert worse(stock, ours) == ["gone", "lost", "turned off"]


def test_what_failed_is_run_once_more() -> None:
    """A class whose common part failed shows none of its tests."""
    found = failed(
        {
            "a.b.Some.test_one": "fail",
            "a.b.Some.test_two": "success",
            "a.b.Some.test_three": "skip",
            "setUpClass (a.b.Other)": "fail",
            "tearDownClass (a.b.Third)": "fail",
        }
    )
    chosen = re.compile(these([*found, "a.b.Some.test_one"]))
    for name in (
        "a.b.Some.test_one[id-1,smoke]",
        "a.b.Some.test_one",
        "a.b.Other.test_four[id-2]",
        "a.b.Third.test_five",
    ):
        assert chosen.match(name), name
    for name in (
        "a.b.Some.test_one_more[id-3]",
        "a.b.Some.test_two",
        "a.b.OtherV2.test_four",
        "axb.Other.test_four",
    ):
        assert not chosen.match(name), name
