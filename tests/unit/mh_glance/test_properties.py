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
"""Image properties."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mh_core.errors import InputError
from mh_core.manifest import MAX_PROPERTY
from mh_glance.properties import NAMES, TRAIT, ImageProperties

KEY = "5a8c1f7e-0c57-4a1d-8f0e-3d2f1b6a9c03"
GOOD = ImageProperties(KEY, 1024, f"https://k.test/v1/keys/{KEY}", "a.b.c")


def test_round_trip_among_others() -> None:
    made = GOOD.to_dict()
    assert made[TRAIT] == "required"
    assert set(NAMES) < set(made)
    assert all(isinstance(value, str) for value in made.values())
    assert ImageProperties.parse({**made, "size": 5, "tags": []}) == GOOD


def test_a_manifest_that_is_too_long() -> None:
    long = ImageProperties(KEY, 1, "https://k", "x" * (MAX_PROPERTY + 1))
    with pytest.raises(InputError) as caught:
        long.to_dict()
    assert caught.value.event == "client.image.properties.manifest-size"


@pytest.mark.parametrize("name", NAMES)
def test_every_property_is_needed(name: str) -> None:
    made: dict[str, Any] = GOOD.to_dict()
    del made[name]
    with pytest.raises(InputError) as caught:
        ImageProperties.parse(made)
    assert name in caught.value.message


@given(
    name=st.sampled_from(NAMES),
    value=st.none() | st.integers() | st.text(max_size=20),
)
def test_other_values(name: str, value: Any) -> None:
    try:
        found = ImageProperties.parse({**GOOD.to_dict(), name: value})
    except InputError:
        return
    assert isinstance(getattr(found, "manifest"), str)  # noqa: B009
