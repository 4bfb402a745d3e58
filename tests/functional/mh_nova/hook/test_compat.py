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

"""The record is that of the nova installed here."""

import json
import subprocess
import sys

from mh_nova.hook import compat
from mh_nova.hook.backend import MHBackend
from mh_nova.hook.driver import TrustedLibvirtDriver
from mh_nova.hook.image import MHImage


def test_the_record_equals_the_installed_nova() -> None:
    assert compat.recorded("34.0.0") == compat.current()
    assert compat.check() == ()


def test_the_tool_prints_the_record() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mh_nova.hook.compat"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    document = json.loads(done.stdout)
    assert document == {"nova": "34.0.0", "methods": compat.current()}


def test_every_override_is_recorded() -> None:
    """Nobody overrides another method and forgets the guard."""
    for klass, path in (
        (TrustedLibvirtDriver, "nova.virt.libvirt.driver:LibvirtDriver"),
        (MHBackend, "nova.virt.libvirt.imagebackend:Backend"),
        (MHImage, "nova.virt.libvirt.imagebackend:Image"),
    ):
        parent = next(
            one for one in klass.__mro__ if one.__module__.startswith("nova.")
        )
        ours = klass.__mro__[: klass.__mro__.index(parent)]
        overridden = {
            name
            for one in ours
            for name, value in vars(one).items()
            if callable(value) or isinstance(value, staticmethod)
            if hasattr(parent, name)
        }
        assert overridden - set(compat.TARGETS[path]) - {"__init__"} == set()
        assert len(overridden) > 2
