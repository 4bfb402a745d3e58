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
"""Samples of configuration and access rules, release notes, documentation.

Made by the tools that an operator or a packager would use.
"""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]
BIN = pathlib.Path(sys.executable).parent
CONFIGS = sorted(ROOT.glob("etc/*/config-generator.conf"))
RULES = sorted(ROOT.glob("etc/*/policy-generator.conf"))


def _run(*argv: object) -> str:
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_configured_program_has_a_generator() -> None:
    names = {path.parent.name for path in CONFIGS}
    assert {"mh-agent", "mh-attest", "mh-kms"} <= names
    assert {path.parent.name for path in RULES} == {"mh-attest", "mh-kms"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_configuration_sample(
    path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    sample = tmp_path / "sample.conf"
    _run(
        BIN / "oslo-config-generator",
        *("--config-file", path),
        *("--output-file", sample),
    )
    text = sample.read_text()
    options = re.findall(r"^#([a-z_]+) = ", text, re.M)
    groups = re.findall(r"^\[([a-z_]+)\]", text, re.M)
    assert len(options) > 3
    assert len(groups) > 1


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.parent.name)
def test_access_rules_sample(
    path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    sample = tmp_path / "policy.yaml"
    _run(
        BIN / "oslopolicy-sample-generator",
        *("--config-file", path),
        *("--output-file", sample),
    )
    assert "/v1/" in sample.read_text()


def test_release_notes_are_readable_by_reno() -> None:
    if importlib.util.find_spec("reno") is None:
        pytest.skip("reno is not installed")
    _run(BIN / "reno", "-q", "lint")
    notes = list((ROOT / "releasenotes/notes").glob("*.yaml"))
    assert notes


def test_documentation_builds_without_a_warning(
    tmp_path: pathlib.Path,
) -> None:
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("sphinx is not installed")
    _run(
        *(sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html"),
        *("-d", tmp_path / "doctrees"),
        ROOT / "doc/source",
        tmp_path / "html",
    )
    assert (tmp_path / "html/index.html").exists()
