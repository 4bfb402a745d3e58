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
"""The deployment guard: each finding brought about, on a host in a folder.

What a folder cannot show (mounts, fscrypt) is in the functional tests.
"""

import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mh_core.errors import Unavailable
from mh_nova.agent import host_conf
from mh_nova.agent.guard import Guard
from mh_nova.agent.storage import Storage

SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


@pytest.fixture(autouse=True)
def no_core() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


class Host:
    """A host against which nothing speaks, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("proc/swaps", SWAPS)
        self.write("proc/sys/kernel/core_pattern", "core\n")
        self.write("etc/libvirt/qemu.conf", "")
        (folder / "state").mkdir(mode=0o700)
        self.agent = SimpleNamespace(
            require_tmpfs=False,
            libvirt_domain_dir=str(folder / "qemu"),
            libvirt_kept=[],
            require_safe_swap=True,
            live_migration=False,
            qemu_conf=str(folder / "etc/libvirt/qemu.conf"),
            state_dir=str(folder / "state"),
            instances_path=str(folder),
            fs_verity="auto",
        )
        self.prover: Any = SimpleNamespace(
            check=lambda: None, ak_certificate="PEM"
        )

    def write(self, name: str, data: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    def findings(self) -> list[str]:
        conf = SimpleNamespace(agent=self.agent)
        guard = Guard(conf, self.prover, str(self.folder))
        return [
            event.id.removeprefix("agent.guard.") for event in guard.findings()
        ]

    def block(self, name: str, *below: str, dm: str = "") -> None:
        """A device of the fake kernel, over others."""
        device = self.folder / "sys/devices" / name
        (device / "slaves").mkdir(parents=True)
        for one in below:
            (device / "slaves" / one).symlink_to(f"../../{one}")
        if dm:
            (device / "dm").mkdir()
            (device / "dm/uuid").write_text(dm + "\n")

    def swap_file(self, device: str) -> None:
        """A swap file on the file system of this folder, which the fake
        kernel says is on this device."""
        path = self.write("swap file", "")
        number = path.stat().st_dev
        link = (
            self.folder
            / "sys/dev/block"
            / f"{number >> 8 & 0xFFF}:{number & 0xFF | number >> 12 & ~0xFF}"
        )
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../devices/{device}")
        self.write("proc/swaps", SWAPS + "/swap\\040file file 8 0 -2\n")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_nothing_speaks_against_it(host: Host) -> None:
    assert host.findings() == []


# core dumps


@pytest.mark.parametrize(
    "text",
    [
        'max_core = "unlimited"',
        "max_core = 'unlimited'",
        "max_core=1",
        "  max_core = 4096 # bytes",
        "max_core = -1",
        "max_core =",
        'user = "root"; max_core = "unlimited"',
        "max_core = 0\nmax_core = 1",
        'user = "root"\r\nmax_core = "unlimited"\r\n',
        "dump_guest_core = 1",
        b"\xff\xfe",
    ],
)
def test_core_dumps_on(host: Host, text: str | bytes) -> None:
    host.write("etc/libvirt/qemu.conf", text)
    assert host.findings() == ["core"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max_core = 0",
        "x = 1\n\n max_core=0 # off\n",
        "#max_core = 1",
        "dump_guest_core = 0",
    ],
)
def test_core_dumps_off(host: Host, text: str) -> None:
    host.write("etc/libvirt/qemu.conf", text)
    assert host.findings() == []


def test_no_qemu_conf(host: Host) -> None:
    Path(host.agent.qemu_conf).unlink()
    assert host.findings() == ["core"]


def test_the_agent_could_leave_a_core_file(host: Host) -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("the limit cannot be raised here")
    resource.setrlimit(resource.RLIMIT_CORE, (1, hard))
    assert host.findings() == ["core"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("core", []),
        ("/var/crash/core.%p", []),
        ("|/usr/lib/systemd/systemd-coredump %P %u %g %s %t %c %h", []),
        ("|/usr/lib/systemd/systemd-coredump %P", ["core"]),
        ("|/usr/share/apport/apport -p%p -s%s -c%c", ["core"]),
        ("|/bin/sh /systemd-coredump %c", ["core"]),
    ],
)
def test_a_program_that_core_dumps_are_piped_to(
    host: Host, pattern: str, found: list[str]
) -> None:
    host.write("proc/sys/kernel/core_pattern", pattern + "\n")
    assert host.findings() == found


# dumps and saves


def test_automatic_dumps_in_the_clear(host: Host) -> None:
    host.write("etc/libvirt/qemu.conf", f'auto_dump_path = "{host.folder}"\n')
    assert host.findings() == ["dump"]
    host.write("etc/libvirt/qemu.conf", 'auto_dump_path = "/dev/shm"\n')
    assert host.findings() == []


@pytest.mark.parametrize(
    ("value", "found"),
    [("none", []), ("all", ["dump"]), ("persistent", ["dump"])],
)
def test_libvirtd_saves_guests_when_it_ends(
    host: Host, value: str, found: list[str]
) -> None:
    host.write(
        "etc/libvirt/qemu.conf", f'auto_shutdown_try_save = "{value}"\n'
    )
    assert host.findings() == found


@pytest.mark.parametrize(
    ("settings", "script", "found"),
    [
        ("ON_SHUTDOWN=shutdown\n", "", []),
        ("ON_SHUTDOWN='shutdown'\n", "", []),
        ("ON_SHUTDOWN=suspend\n", "", ["libvirt-guests"]),
        ("export ON_SHUTDOWN=suspend\n", "", ["libvirt-guests"]),
        (
            "ON_SHUTDOWN=shutdown\nON_SHUTDOWN=suspend\n",
            "",
            ["libvirt-guests"],
        ),
        ("ON_SHUTDOWN=$WHAT\n", "", ["libvirt-guests"]),
        ("#ON_SHUTDOWN=shutdown\n", "", ["libvirt-guests"]),
        ("", 'ON_SHUTDOWN="shutdown"\n', []),
        (
            "",
            "ON_SHUTDOWN=suspend\n  ON_SHUTDOWN=shutdown\n",
            ["libvirt-guests"],
        ),
    ],
)
def test_libvirt_guests(
    host: Host, settings: str, script: str, found: list[str]
) -> None:
    host.write("etc/default/libvirt-guests", settings)
    host.write("usr/lib/libvirt/libvirt-guests.sh", script)
    # not enabled: whatever it would do, it does not
    assert host.findings() == []
    wants = host.folder / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "libvirt-guests.service").symlink_to("/lib/x")
    assert host.findings() == found


def test_libvirt_guests_is_masked(host: Host) -> None:
    units = host.folder / "etc/systemd/system"
    (units / "a.target.wants").mkdir(parents=True)
    (units / "a.target.wants/libvirt-guests.service").symlink_to("/lib/x")
    assert host.findings() == ["libvirt-guests"]
    (units / "libvirt-guests.service").symlink_to("/dev/null")
    assert host.findings() == []


# swap


def test_swap_in_the_clear(host: Host) -> None:
    host.block("sda")
    host.swap_file("sda")
    assert host.findings() == ["swap"]
    host.agent.require_safe_swap = False
    assert host.findings() == []


@pytest.mark.parametrize("uuid", ["CRYPT-PLAIN-swap", "CRYPT-LUKS2-0123-swap"])
def test_swap_on_dm_crypt(host: Host, uuid: str) -> None:
    host.block("sda")
    host.block("dm-0", "sda", dm=uuid)
    host.swap_file("dm-0")
    assert host.findings() == []


def test_swap_on_lvm_over_dm_crypt(host: Host) -> None:
    host.block("sda")
    host.block("dm-0", "sda", dm="CRYPT-LUKS2-0123-disk")
    host.block("dm-1", "dm-0", dm="LVM-abc")
    host.swap_file("dm-1")
    assert host.findings() == []


def test_swap_over_one_disk_that_is_in_the_clear(host: Host) -> None:
    host.block("sda")
    host.block("sdb")
    host.block("dm-0", "sda", dm="CRYPT-LUKS2-0123-disk")
    host.block("dm-1", "dm-0", "sdb", dm="LVM-abc")
    host.swap_file("dm-1")
    assert host.findings() == ["swap"]


def test_swap_that_the_kernel_does_not_explain(host: Host) -> None:
    host.write("proc/swaps", SWAPS + "/dev/gone partition 8 0 -2\n")
    assert host.findings() == ["swap"]
    (host.folder / "proc/swaps").unlink()
    assert host.findings() == ["swap"]


# live migration


TLS = (
    "migrate_tls_force = 1\nmigrate_tls_x509_verify = 1\n"
    'migrate_tls_x509_cert_dir = "/dev/shm"\n'
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        TLS.replace("force = 1", "force = 0"),
        TLS.replace("verify = 1", "verify = 0"),
        TLS.replace("/dev/shm", "/etc"),
        "#" + TLS,
        TLS + "migrate_tls_force = 0\n",
    ],
)
def test_live_migration_without_tls(host: Host, text: str) -> None:
    host.write("etc/libvirt/qemu.conf", text)
    assert host.findings() == []
    host.agent.live_migration = True
    assert set(host.findings()) == {"migration-tls"}


def test_live_migration_with_tls(host: Host) -> None:
    host.write("etc/libvirt/qemu.conf", TLS)
    host.agent.live_migration = True
    assert host.findings() == []


# the agent's own


def test_tpm_and_certificate(host: Host) -> None:
    def gone() -> None:
        raise Unavailable("agent.tpm.unavailable", "gone")

    host.prover = SimpleNamespace(check=gone, ak_certificate=None)
    assert host.findings() == ["tpm", "enrolled"]


def test_state_directory(host: Host) -> None:
    state = Path(host.agent.state_dir)
    state.chmod(0o750)
    assert host.findings() == ["state"]
    state.rmdir()
    assert host.findings() == ["state"]


def test_domain_directory_on_a_disk(host: Host) -> None:
    host.agent.require_tmpfs = True
    host.agent.libvirt_kept = ["save"]
    # not there, or on a disk
    assert host.findings() == ["tmpfs"]
    host.agent.libvirt_domain_dir = "/proc"
    assert host.findings() == ["tmpfs"]


def test_several_at_once(host: Host) -> None:
    host.write("etc/libvirt/qemu.conf", "max_core = 1")
    host.block("sda")
    host.swap_file("sda")
    assert host.findings() == ["swap", "core"]


# whatever stands in the files

_LINES = st.lists(
    st.one_of(
        st.text(alphabet="abc_=\"' #;[]\t0123", max_size=20),
        st.sampled_from(["max_core = 0", "#max_core = 1", 'x = "y"']),
    ),
    max_size=6,
)


@given(_LINES, _LINES)
def test_a_setting_on_its_own_line_is_always_seen(
    before: list[str], after: list[str]
) -> None:
    text = "\n".join([*before, 'max_core = "unlimited"', *after])
    assert "unlimited" in host_conf.qemu(text, "max_core")


@given(st.text(max_size=200))
def test_any_list_of_swaps(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """A line that cannot be understood is a swap area in the clear."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "proc").mkdir()
    data = b"Filename\n" + text.encode(errors="replace")
    (folder / "proc/swaps").write_bytes(data)
    lines = data.decode().split("\n")[1:]
    areas = [line for line in lines if line.strip()]
    assert len(Storage(str(folder)).open_swaps()) == len(areas)


def test_fs_verity(host: Host) -> None:
    """tmpfs has none; only where it is required does that speak against
    the host."""
    host.agent.instances_path = "/dev/shm"
    for mode, found in (("auto", []), ("off", []), ("require", ["verity"])):
        host.agent.fs_verity = mode
        assert host.findings() == found
    host.agent.instances_path = str(host.folder / "nowhere")
    assert host.findings() == ["verity"]
