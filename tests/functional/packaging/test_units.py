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
"""The systemd units, judged by systemd's own tools; none is started.

Units are verified in a root directory of their own, which holds stubs of
what a distribution brings, so that nothing of this machine decides.
"""

import configparser
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

UNITS = pathlib.Path(__file__).parents[3] / "etc/systemd"
SERVICES = ("mh-agent", "mh-kms", "mh-attest")
BIND_MOUNTS = (
    "save",
    "snapshot",
    "checkpoint",
    "nvram",
    "dump",
    "ram",
    "channel",
)
# What the units refer to and the distribution provides.
_TARGETS = (
    "basic",
    "local-fs",
    "local-fs-pre",
    "multi-user",
    "network-online",
    "shutdown",
    "sysinit",
    "umount",
)
_NOVA = "[Service]\nExecStart=/usr/bin/nova-compute\n"
# systemd-analyze security, 0 (nothing left) to 10; what each reached.
_EXPOSURE = {"mh-agent": 30, "mh-kms": 15, "mh-attest": 15}

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="needs systemd-analyze (Debian package systemd)",
)


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "etc/systemd/system"
    shutil.copytree(UNITS, folder)
    for target in _TARGETS:
        (folder / f"{target}.target").write_text("[Unit]\nDescription=stub\n")
    (folder / "nova-compute.service").write_text(_NOVA)
    for command in _commands():
        path = tmp_path / command.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return tmp_path


def _commands() -> set[str]:
    text = "".join(
        path.read_text() for path in sorted(UNITS.rglob("*")) if path.is_file()
    )
    return set(re.findall(r"^ExecStart=(/\S+)", text, re.M))


def _read(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / name).read_text())
    return parser


def _analyze(root: pathlib.Path, verb: str, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        ["systemd-analyze", verb, f"--root={root}", "--no-pager", *words],
        cwd=root / "etc/systemd/system",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def _verify(root: pathlib.Path) -> tuple[int, str]:
    folder = root / "etc/systemd/system"
    units = [
        f"./{path.name}"
        for pattern in ("*.service", "*.mount")
        for path in sorted(folder.glob(pattern))
    ]
    return _analyze(root, "verify", "--man=no", *units)


def test_units_are_what_systemd_expects(root: pathlib.Path) -> None:
    # an unknown key is only a warning, so there must be no word at all
    assert _verify(root) == (0, "")


def test_verify_would_have_found_a_mistake(root: pathlib.Path) -> None:
    unit = root / "etc/systemd/system/mh-agent.service"
    unit.write_text(unit.read_text().replace("LimitCORE", "LimitCore"))
    _code, output = _verify(root)
    assert "LimitCore" in output


@pytest.mark.parametrize("name", SERVICES)
def test_exposure_has_not_grown(root: pathlib.Path, name: str) -> None:
    code, output = _analyze(
        root,
        "security",
        "--offline=true",
        f"--threshold={_EXPOSURE[name]}",
        f"./{name}.service",
    )
    assert code == 0, output


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined(name: str) -> None:
    service = _read(f"{name}.service")["Service"]
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["PrivateTmp"] == "yes"
    assert service["MemoryDenyWriteExecute"] == "yes"
    assert service["LimitCORE"] == "0"
    assert service["MemorySwapMax"] == "0"
    assert service["UMask"] == "0077"
    assert service["StateDirectoryMode"] == "0700"
    assert (service["User"] == "root") == (name == "mh-agent")


def test_agent_has_the_tpm_and_no_other_device() -> None:
    service = _read("mh-agent.service")["Service"]
    assert service["DevicePolicy"] == "closed"
    assert service["DeviceAllow"] == "/dev/tpmrm0 rw"


def test_agent_runs_between_libvirt_and_nova() -> None:
    text = (UNITS / "mh-agent.service").read_text()
    before = " ".join(re.findall(r"^Before=(.*)", text, re.M)).split()
    after = " ".join(re.findall(r"^After=(.*)", text, re.M)).split()
    assert "nova-compute.service" in before
    assert {"libvirtd.service", "var-lib-libvirt-qemu.mount"} <= set(after)


def test_drop_in_replaces_nova_computes_command() -> None:
    text = (UNITS / "nova-compute.service.d/mystery-hill.conf").read_text()
    lines = re.findall(r"^ExecStart=(.*)", text, re.M)
    assert lines[0] == ""
    assert lines[1].split()[0].endswith("/mh-nova-compute")
    assert "Wants=mh-agent.service" in text


def test_domain_directory_is_in_memory_and_the_rest_is_kept() -> None:
    mount = _read("var-lib-libvirt-qemu.mount")["Mount"]
    assert (mount["Type"], mount["Where"]) == (
        "tmpfs",
        "/var/lib/libvirt/qemu",
    )
    kept = (UNITS / "mystery-hill.tmpfiles").read_text()
    for name in BIND_MOUNTS:
        mount = _read(f"var-lib-libvirt-qemu-{name}.mount")["Mount"]
        assert mount["Options"] == "bind"
        assert mount["Where"] == f"/var/lib/libvirt/qemu/{name}"
        assert f"d {mount['What']} " in kept


def test_no_mount_happens_under_running_guests() -> None:
    for path in UNITS.glob("*.mount"):
        unit = _read(path.name)
        condition = unit["Unit"]["ConditionPathExistsGlob"]
        assert condition == "!/run/libvirt/qemu/*.pid"
        assert unit["Install"]["WantedBy"] == "local-fs.target"


def test_save_directory_is_encrypted_before_it_is_bound() -> None:
    unit = _read("mh-agent-save-dir.service")
    mount = _read("var-lib-libvirt-qemu-save.mount")["Mount"]
    text = (UNITS / "mh-agent-save-dir.service").read_text()
    before = " ".join(re.findall(r"^Before=(.*)", text, re.M)).split()
    assert "var-lib-libvirt-qemu-save.mount" in before
    assert unit["Service"]["ExecStart"].split()[-1] == mount["What"]
    assert unit["Service"]["Type"] == "oneshot"
    condition = unit["Unit"]["ConditionPathExistsGlob"]
    assert condition == "!/run/libvirt/qemu/*.pid"
    # nobody who did not ask for it gets it
    assert unit["Install"]["WantedBy"] == "var-lib-libvirt-qemu-save.mount"


def test_users_exist_for_the_servers(tmp_path: pathlib.Path) -> None:
    # makes the users in an empty root, which is where they stay
    (tmp_path / "etc").mkdir()
    subprocess.run(
        [
            "systemd-sysusers",
            f"--root={tmp_path}",
            str(UNITS / "mystery-hill.sysusers"),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    users = (tmp_path / "etc/passwd").read_text()
    for name in ("mh-kms", "mh-attest"):
        assert f"{name}:" in users
        assert _read(f"{name}.service")["Service"]["User"] == name


def test_python_runs_without_writable_code() -> None:
    """What MemoryDenyWriteExecute does, for the libraries that could mind.

    PR_SET_MDWE (Linux 6.3) is the same restriction as systemd's filter.
    """
    program = (
        "import ctypes, mmap, sys\n"
        "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):\n"
        "    sys.exit(77)\n"
        "try:\n"
        "    mmap.mmap(-1, 4096, prot=7)\n"
        "    sys.exit('not in force')\n"
        "except PermissionError:\n"
        "    pass\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(int)()\n"
        "import granian, libvirt, lxml.etree, sqlite3, tpm2_pytss\n"
        "from cryptography.hazmat.primitives.asymmetric import ec\n"
        "ec.generate_private_key(ec.SECP256R1())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert done.returncode == 0, done.stderr
