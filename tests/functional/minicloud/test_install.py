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
"""The installer's dealings with the machine, on files of its own."""

from __future__ import annotations

import importlib
import pathlib
import socket
import subprocess
import types

import pytest

from tests.minicloud import layout


@pytest.fixture
def packages(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(layout.REPOSITORY / "tools"))
    module = importlib.import_module("install_packages")
    monkeypatch.setattr(module, "POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setattr(module, "SAVED", tmp_path / "policy-rc.d.saved")
    return module


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(layout.REPOSITORY / "tools"))
    return importlib.import_module("install_checks")


def test_services_are_refused_and_then_as_before(
    packages: types.ModuleType,
) -> None:
    with packages.no_services():
        done = subprocess.run([packages.POLICY, "x", "start"], check=False)
        assert done.returncode == 101
    assert not packages.POLICY.exists()


def test_a_policy_that_was_there_comes_back(
    packages: types.ModuleType,
) -> None:
    packages.POLICY.write_text("#!/bin/sh\nexit 7\n")
    packages.POLICY.chmod(0o700)

    def fail() -> None:
        with packages.no_services():
            assert packages.POLICY.read_text() == packages.OURS
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert packages.POLICY.read_text() == "#!/bin/sh\nexit 7\n"
    assert packages.POLICY.stat().st_mode & 0o777 == 0o700
    assert not packages.SAVED.exists()


def test_what_a_killed_run_left_is_put_right(
    packages: types.ModuleType,
) -> None:
    packages.SAVED.write_text("theirs")
    packages.POLICY.write_text(packages.OURS)
    packages.restore_policy()
    assert packages.POLICY.read_text() == "theirs"
    assert not packages.SAVED.exists()


def test_nothing_is_installed_where_nothing_is_missing(
    packages: types.ModuleType,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listing = tmp_path / "packages.txt"
    listing.write_text("# comment\n\nbase-files\ndpkg\n")
    monkeypatch.setattr(packages, "apt", None)
    said: list[str] = []
    packages.install(listing, tmp_path / "log", said.append)
    assert said == ["Debian packages: all 2 installed"]


def test_a_missing_package_is_seen(packages: types.ModuleType) -> None:
    names = ["dpkg", "no-such-package-at-all"]
    assert packages.installed(names) == {"dpkg"}


def test_the_list_of_packages_is_sorted_and_known() -> None:
    path = layout.REPOSITORY / "tests/minicloud/packages.txt"
    lines = path.read_text().splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    assert names == sorted(set(names))


def test_a_taken_port_is_named(
    checks: types.ModuleType,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        monkeypatch.setattr(layout, "PORTS", {"keystone": port})
        answer = checks._ports(tmp_path)
    assert answer.startswith("!")
    assert f"{port} (keystone)" in answer


def test_a_long_path_is_refused(
    checks: types.ModuleType, tmp_path: pathlib.Path
) -> None:
    assert checks._path(tmp_path / ("x" * 60)).startswith("!")
    assert checks._path(pathlib.Path("/srv/mh/run")).startswith("run folder")
