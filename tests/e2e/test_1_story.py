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
"""The main job, end to end; each test goes on from the one before."""

from __future__ import annotations

import pytest

from tests.minicloud.story import Story

pytestmark = [pytest.mark.minicloud, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    "step",
    [
        "enrol",
        "flavor",
        "tenant_key",
        "tenant_image",
        "launch",
        "report",
        "console",
        "debian",
        "bare_ak",
        "bare_ak_is_off",
    ],
)
def test_step(story: Story, step: str) -> None:
    getattr(story, step)()


def test_no_step_is_left_out(story: Story) -> None:
    names = [method.__name__ for _, method in story.steps()]  # type: ignore[attr-defined]
    assert names == test_step.pytestmark[0].args[1]  # type: ignore[attr-defined]
