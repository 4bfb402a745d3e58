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
"""The guard in a mount namespace: what a folder cannot show."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mh_nova.agent import conf as agent_conf

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="mounts in a namespace of its own: needs root"
)

#: Runs in the namespace; prints the findings' ids.
_LOOK = """
import json, resource, sys
from types import SimpleNamespace
from mh_nova.agent.guard import Guard
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
agent = SimpleNamespace(**json.loads(sys.argv[1]))
prover = SimpleNamespace(check=lambda: None, ak_certificate="PEM")
guard = Guard(SimpleNamespace(agent=agent), prover, sys.argv[2])
print(json.dumps([event.id for event in guard.findings()]))
print(guard.kind(guard.save_dir).value)
"""

_TMPFS = "mount -t tmpfs tmpfs $DOMAINS; "
_BINDS = (
    "for name in $KEPT; do mkdir -p $KEEP/$name $DOMAINS/$name; "
    "mount --bind $KEEP/$name $DOMAINS/$name; done; "
)


def look(folder: Path, script: str, **more: object) -> tuple[list[str], str]:
    """Findings, and what the save directory is, after some mounts."""
    root = folder / "root"
    (root / "proc/sys/kernel").mkdir(parents=True, exist_ok=True)
    (root / "proc/swaps").write_text("Filename\n")
    (root / "proc/sys/kernel/core_pattern").write_text("core\n")
    (folder / "qemu.conf").write_text("")
    (folder / "state").mkdir(mode=0o700, exist_ok=True)
    (folder / "qemu").mkdir(exist_ok=True)
    conf = {
        "require_tmpfs": True,
        "libvirt_domain_dir": str(folder / "qemu"),
        "libvirt_kept": list(agent_conf.KEPT),
        "require_safe_swap": True,
        "live_migration": False,
        "qemu_conf": str(folder / "qemu.conf"),
        "state_dir": str(folder / "state"),
        "fs_verity": "auto",
        **more,
    }
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-ec", script + 'exec "$@"', "sh"),
            *(sys.executable, "-c", _LOOK, json.dumps(conf), str(root)),
        ],
        env={
            **os.environ,
            "DOMAINS": str(folder / "qemu"),
            "KEEP": str(folder / "kept"),
            "KEPT": " ".join(agent_conf.KEPT),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    ids, kind = done.stdout.splitlines()
    return json.loads(ids), kind


def test_as_the_units_mount_it(tmp_path: Path) -> None:
    assert look(tmp_path, _TMPFS + _BINDS) == ([], "clear")


def test_nothing_mounted(tmp_path: Path) -> None:
    found, _kind = look(tmp_path, "")
    assert found == ["agent.guard.tmpfs"]


def test_a_bare_tmpfs(tmp_path: Path) -> None:
    """Plain UEFI guests would lose their firmware variables."""
    found, kind = look(tmp_path, _TMPFS + "mkdir $DOMAINS/save; ")
    assert found == ["agent.guard.kept"] * len(agent_conf.KEPT)
    assert kind == "memory"


@pytest.mark.parametrize("name", agent_conf.KEPT)
def test_one_that_is_not_bound_back(tmp_path: Path, name: str) -> None:
    found, _kind = look(
        tmp_path, _TMPFS + _BINDS + f"umount $DOMAINS/{name}; "
    )
    assert found == ["agent.guard.kept"]


def test_what_is_kept_may_be_left_to_the_operator(tmp_path: Path) -> None:
    assert look(tmp_path, _TMPFS, libvirt_kept=[])[0] == []
