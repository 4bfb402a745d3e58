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
"""A base fetched ahead of any launch, with real files and hashes."""

from typing import Any

import pytest

from mh_core.errors import MHError
from tests.functional.mh_nova.agent.world import World


def cache(world: World, stage: str, token: str = "") -> None:
    world.launcher.cache(
        world.tenant.image, token or world.tenant.manifest, stage
    )


def refused(call: Any, *args: Any) -> str:
    with pytest.raises(MHError) as caught:
        call(*args)
    return caught.value.event


def test_cached_and_launched_without_another_hash(world: World) -> None:
    cache(world, "begin")
    world.download()
    cache(world, "end")
    assert world.base.read_bytes() == world.tenant.data
    assert world.base.stat().st_mode & 0o222 == 0
    assert not world.part.exists()
    assert world.events()[-1] == "agent.cache.cached"
    # nothing was asked of the key server yet
    assert world.kms.requests == []
    inode = world.base.stat().st_ino
    world.make()
    world.start()
    assert world.base.stat().st_ino == inode


def test_other_content_does_not_become_a_base(world: World) -> None:
    cache(world, "begin")
    data = bytearray(world.tenant.data)
    data[-1] ^= 1
    world.download(bytes(data))
    assert refused(cache, world, "end") == "agent.cache.content"
    assert not world.base.exists()
    assert not world.part.exists()
    # the next one is a new file
    cache(world, "begin")
    world.download()
    cache(world, "end")
    assert world.base.exists()


def test_a_liar_is_found_at_the_launch(world: World) -> None:
    """Content and claim agree, but the tenant signed another."""
    data = bytearray(world.tenant.data)
    data[-1] ^= 1
    right = world.tenant.manifest
    world.tenant.file.write_bytes(bytes(data))
    lie = world.tenant.describe().sign(world.tenant.signing)
    cache(world, "begin", lie)
    world.download(bytes(data))
    cache(world, "end", lie)
    assert world.base.exists()
    world.prepare(manifest=right)
    event = refused(world.launcher.make, world.instance, False)
    assert event.startswith("agent.measure.")
    assert world.secrets.ever == 0


def test_a_download_that_does_not_come(world: World) -> None:
    cache(world, "begin")
    cache(world, "failed")
    # a launch of the image is not held up by it
    world.make()
    world.start()


def test_a_nova_compute_that_died_on_the_way(world: World) -> None:
    cache(world, "begin")
    world.part.write_bytes(b"half")
    world.part.unlink()
    cache(world, "begin")
    world.download()
    cache(world, "end")
    assert world.base.read_bytes() == world.tenant.data


@pytest.mark.parametrize("token", ["a.b.c", "a", "..", "a.e30.c"])
def test_no_manifest(world: World, token: str) -> None:
    event = refused(cache, world, "begin", token)
    assert event.startswith(("core.", "agent.cache.manifest"))
