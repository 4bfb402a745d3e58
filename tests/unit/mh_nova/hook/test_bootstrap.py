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

import importlib.util
import sys

import pytest

from mh_nova import bootstrap


@pytest.fixture
def finder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, bootstrap.MODULE, raising=False)
    bootstrap.install()


def test_once(finder: None) -> None:
    before = len(sys.meta_path)
    bootstrap.install()
    assert len(sys.meta_path) == before


def test_exactly_one_name(finder: None) -> None:
    ours = sys.meta_path[-1]
    assert ours.find_spec("nova.virt.mh", None) is not None
    for name in ("nova.virt", "nova.virt.mh.x", "mh", "nova.virt.mhx"):
        assert ours.find_spec(name, None) is None


def test_without_the_entry_point_nova_gets_an_import_error(
    finder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "NAME", "no-such-driver")
    with pytest.raises(ImportError, match=r"hook\.bootstrap\.driver"):
        importlib.import_module(bootstrap.MODULE)
