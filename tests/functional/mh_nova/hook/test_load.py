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

"""The way nova itself loads the driver, in a process of its own."""

import subprocess
import sys
from pathlib import Path

LOAD = """
import sys
from mh_nova import bootstrap
bootstrap.install()
assert not [m for m in sys.modules if m.split(".")[0] in ("nova", "libvirt")]
from nova.cmd import compute
assert "nova.virt.mh" not in sys.modules
import nova.conf
from nova import objects
nova.conf.CONF([], project="nova", default_config_files=[])
nova.conf.CONF.set_override("instances_path", sys.argv[1])
objects.register_all()
from nova.virt import driver
from nova.virt.libvirt.driver import LibvirtDriver
one = driver.load_compute_driver(None, "mh.TrustedLibvirtDriver")
assert isinstance(one, LibvirtDriver)
assert type(one.image_backend).__name__ == "MHBackend"
assert nova.conf.CONF.mh.agent_socket
assert not [m for m in sys.modules if m.startswith("mh_nova.agent")]
print(type(one).__module__, type(one).__name__)
"""


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_nova_loads_it_by_name(tmp_path: Path) -> None:
    done = run(LOAD, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "mh_nova.hook.driver",
        "TrustedLibvirtDriver",
    ]


def test_without_the_finder_nova_does_not_find_it(tmp_path: Path) -> None:
    done = run(LOAD.replace("bootstrap.install()", ""), str(tmp_path))
    assert done.returncode == 1
    assert "nova.virt.mh" in done.stderr


def test_a_nova_with_another_signature_does_not_start(tmp_path: Path) -> None:
    change = (
        "from nova.virt.libvirt.driver import LibvirtDriver\n"
        "def suspend(self, context, instance, new): pass\n"
        "LibvirtDriver.suspend = suspend\n"
        "one = driver.load"
    )
    # a real module file, so that its source can be read
    module = tmp_path / "changed.py"
    module.write_text(LOAD.replace("one = driver.load", change))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(module), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "hook.compat.signature" in done.stderr


def test_the_console_script_is_nova_compute() -> None:
    done = run(
        "import sys; sys.argv = ['mh-nova-compute', '--version']\n"
        "from mh_nova.cmd.compute import main\nmain()\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["34.0.0"]
