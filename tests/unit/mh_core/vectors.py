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

"""The vectors of tests/vectors/jose and tests/vectors/core, and helpers."""

import json
import pathlib
from typing import Any

import hypothesis
import pytest

from mh_core import errors

Case = dict[str, Any]
_DIRECTORY = pathlib.Path(__file__).parents[3] / "tests/vectors"


def load(name: str) -> list[Case]:
    """Cases of one file, e.g. ``jose/jwe``."""
    document = json.loads((_DIRECTORY / f"{name}.json").read_text())
    cases: list[Case] = document["cases"]
    return cases


def parameters(name: str) -> pytest.MarkDecorator:
    """Parametrize a test by the cases of one file."""
    return pytest.mark.parametrize("case", load(name), ids=lambda v: v["name"])


def outcome(function: Any, *arguments: Any, **named: Any) -> str:
    """Return "ok", or the event of the error; anything else escapes."""
    try:
        function(*arguments, **named)
    except errors.MHError as exc:
        return exc.event
    return "ok"


def given(*strategies: Any) -> Any:
    """Hypothesis without its deadline, which a busy machine misses."""

    def decorate(function: Any) -> Any:
        settings = hypothesis.settings(deadline=None)
        return settings(hypothesis.given(*strategies)(function))

    return decorate
