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
"""Image precaching, through the driver as nova loads it."""

import os
from pathlib import Path
from typing import Any

import pytest
from nova import exception

from tests.functional.mh_nova.hook.conftest import (
    IMAGE,
    Glance,
    Stock,
    base_file,
)
from tests.unit.mh_nova.hook.fake_agent import FakeAgent, no


@pytest.fixture
def caching(agent: FakeAgent, where: Path) -> FakeAgent:
    """Honest: what came becomes the base."""

    def cache(request: dict[str, Any]) -> dict[str, Any]:
        if request["stage"] == "end":
            base = base_file(where)
            os.rename(f"{base}.part", base)
        return {"ok": True}

    agent.answers["cache"] = cache
    return agent


def stages(agent: FakeAgent) -> list[str]:
    return [request["stage"] for request in agent.asked("cache")]


def test_fetched_once(
    driver: Any, glance: Glance, caching: FakeAgent, where: Path
) -> None:
    assert driver.cache_image(None, IMAGE) is True
    assert base_file(where).read_bytes() == glance.source.read_bytes()
    assert stages(caching) == ["begin", "end"]
    os.utime(base_file(where), (1, 1))
    assert driver.cache_image(None, IMAGE) is False
    assert glance.downloads == 1
    # nova's cache manager counts from the last use
    assert base_file(where).stat().st_mtime > 1
    assert os.listdir(where / "_base") == [base_file(where).name]


def test_not_what_the_manifest_claims(
    driver: Any, glance: Glance, agent: FakeAgent, where: Path
) -> None:
    agent.answers["cache"] = lambda request: (
        no("agent.cache.content")
        if request["stage"] == "end"
        else {"ok": True}
    )
    with pytest.raises(exception.NovaException, match="agent.cache.content"):
        driver.cache_image(None, IMAGE)
    assert stages(agent) == ["begin", "end", "failed"]
    assert os.listdir(where / "_base") == []


def test_a_download_that_breaks(
    driver: Any, glance: Glance, caching: FakeAgent, where: Path
) -> None:
    glance.source.write_bytes(b"no image at all")
    with pytest.raises(exception.NovaException, match="hook.image."):
        driver.cache_image(None, IMAGE)
    assert stages(caching) == ["begin", "failed"]
    assert os.listdir(where / "_base") == []


def test_no_agent(
    driver: Any, glance: Glance, agent: FakeAgent, where: Path
) -> None:
    agent.close()
    with pytest.raises(exception.NovaException, match="hook.agent"):
        driver.cache_image(None, IMAGE)
    assert glance.downloads == 0


def test_an_ova_is_refused(
    driver: Any, glance: Glance, agent: FakeAgent
) -> None:
    glance.images[IMAGE]["container_format"] = "ova"
    with pytest.raises(exception.NovaException, match="cache-image"):
        driver.cache_image(None, IMAGE)
    assert agent.asked("cache") == []


def test_a_plain_image_is_novas(
    driver: Any, glance: Glance, agent: FakeAgent, stock: Stock
) -> None:
    stock.replace("cache_image")
    glance.images[IMAGE]["properties"] = {}
    driver.cache_image(None, IMAGE)
    assert stock.calls == ["cache_image"]
    assert agent.asked("cache") == []
